"""What a machine must have before Spark starts, and what Spark says while it does."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from models.errors import InputError
from pipelines import session
from pipelines.sections import SparkConfig
from pipelines.session import spark_session

SPEAKS = """
from pipelines.sections import SparkConfig
from pipelines.session import spark_session
spark = spark_session(SparkConfig(master="local[1]", conf={"spark.driver.extraJavaOptions": "-Dmine=kept"}), "speaks")
jvm = spark.sparkContext._jvm
mine = jvm.org.apache.logging.log4j.LogManager.getLogger("org.apache.mine")
mine.warn("not to be seen")
mine.error("to be seen")
print(jvm.java.lang.System.getProperty("mine"))
"""
JVM = "WARNING: Using incubator modules: jdk.incubator.vector"
"""Java's own word about a module that Spark's launcher asks for; no setting takes it away."""


def test_without_java_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    with pytest.raises(InputError, match="install Java 17") as caught:
        spark_session(SparkConfig(), "test")
    assert caught.value.exit_code == 2


def test_spark_starts_without_a_word_and_its_errors_are_seen() -> None:
    unset = {key: value for key, value in os.environ.items() if key not in ("SPARK_SUBMIT_OPTS", "SPARK_CONF_DIR")}
    done = subprocess.run(
        [sys.executable, "-c", SPEAKS],
        cwd=Path(__file__).parents[2],
        env=unset,
        capture_output=True,
        text=True,
        check=True,
    )
    (said,) = [line for line in done.stderr.splitlines() if line.strip() and line != JVM]
    assert said.endswith("ERROR spark mine: to be seen")
    assert done.stdout.split() == ["kept"]


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("", False),
        ("-Dother=1", False),
        ("-Dlog4j2.configurationFile=mine.xml", True),
    ],
)
def test_a_logging_that_somebody_chose_stays(given: str, kept: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPARK_CONF_DIR", raising=False)
    monkeypatch.setenv("SPARK_SUBMIT_OPTS", given)
    for _ in range(2):
        session._quieten()
    ours = f"-Dlog4j2.configurationFile={session.LOGGING.as_uri()}"
    assert os.environ["SPARK_SUBMIT_OPTS"] == (given if kept else f"{ours} {given}".strip())


def test_the_logging_of_the_machines_own_spark_stays(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SPARK_CONF_DIR", str(tmp_path))
    monkeypatch.setenv("SPARK_SUBMIT_OPTS", "")
    (tmp_path / "log4j2.properties").touch()
    session._quieten()
    assert os.environ["SPARK_SUBMIT_OPTS"] == ""
