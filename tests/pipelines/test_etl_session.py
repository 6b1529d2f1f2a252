"""What a machine must have before Spark starts."""

from pathlib import Path

import pytest

from models.errors import InputError
from pipelines.sections import SparkConfig
from pipelines.session import spark_session


def test_without_java_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    with pytest.raises(InputError, match="install Java 17") as caught:
        spark_session(SparkConfig(), "test")
    assert caught.value.exit_code == 2
