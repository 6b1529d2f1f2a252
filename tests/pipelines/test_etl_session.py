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
    unset = {
        key: value for key, value in os.environ.items() if key not in ("SPARK_HOME", "SPARK_CONF_DIR", *session.OPTIONS)
    }
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


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A Spark without a logging of its own, and nothing in the environment that chooses one; its folder."""
    for name in ("SPARK_CONF_DIR", *session.OPTIONS):
        # Set first, so that what a test leaves there goes when it ends.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("SPARK_HOME", str(tmp_path / "spark"))
    (tmp_path / "spark" / "conf").mkdir(parents=True)
    return tmp_path / "spark"


OURS = f"-Dlog4j2.configurationFile={session.LOGGING.as_uri()}"


@pytest.mark.parametrize("given", ["", "-Dother=1", "-Dmine=-Xlog4j.configurationFile"])
def test_options_that_choose_no_logging_are_kept(given: str, bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARK_SUBMIT_OPTS", given)
    for _ in range(2):
        session._quieten()
    assert os.environ["SPARK_SUBMIT_OPTS"] == f"{OURS} {given}".strip()


@pytest.mark.parametrize("name", ["log4j2.configurationFile", "log4j.configurationFile"])
@pytest.mark.parametrize("variable", ["SPARK_SUBMIT_OPTS", "JDK_JAVA_OPTIONS"])
def test_a_logging_that_somebody_chose_stays(
    variable: str, name: str, bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPARK_SUBMIT_OPTS", "-Dother=1")
    monkeypatch.setenv(variable, f"-Dother=1 -D{name}=mine.xml")
    before = dict(os.environ)
    session._quieten()
    assert dict(os.environ) == before


@pytest.mark.parametrize("chosen", [True, False])
@pytest.mark.parametrize("file", ["log4j2.properties", "log4j2.xml", "log4j2.yaml", "log4j2.json"])
def test_the_logging_of_the_machines_own_spark_stays(
    file: str, chosen: bool, bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In SPARK_CONF_DIR, and where that is not set, or empty, in SPARK_HOME/conf."""
    folder = bare / "conf"
    monkeypatch.setenv("SPARK_CONF_DIR", "")
    if chosen:
        folder = bare / "other"
        folder.mkdir()
        monkeypatch.setenv("SPARK_CONF_DIR", str(folder))
    (folder / file).touch()
    session._quieten()
    assert "SPARK_SUBMIT_OPTS" not in os.environ


def test_what_lies_in_a_folder_that_spark_does_not_read_chooses_nothing(
    bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (bare / "conf" / "log4j2.properties.template").touch()
    (bare / "other").mkdir()
    (bare / "other" / "log4j2.properties").touch()
    session._quieten()
    assert os.environ["SPARK_SUBMIT_OPTS"] == OURS
    monkeypatch.delenv("SPARK_SUBMIT_OPTS")
    (bare / "conf" / "log4j2.properties").touch()
    monkeypatch.setenv("SPARK_CONF_DIR", str(bare / "empty"))
    session._quieten()
    assert os.environ["SPARK_SUBMIT_OPTS"] == OURS
