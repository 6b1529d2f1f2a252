"""What must not be written down: user ids in reports and MLflow, passwords anywhere; and names that would be code."""

import contextlib
import io
import logging
import re
import sqlite3
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from pyspark.sql import SparkSession

from models.errors import InputError, QualityError, TactfulError
from pipelines import jobs
from pipelines.config import Config, validate
from pipelines.etl.schemas import DECISIONS, TEXT, Wanted
from pipelines.etl.sources import open_dataset, quoted
from pipelines.jobs.steps import registry_of
from tests.pipelines.test_road import small

PASSWORD = "hunter2-hunter2"
USER_ID = re.compile(r"\bu\d{7}\b")
"""As the simulated world writes them."""
TABLES = ("transitions", "quarantine", "consent", "scores", "propensities")
"""Tables of users: whoever may read them knows whom they are about."""


@pytest.fixture(scope="module")
def road(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, str]:
    """The whole road and a look at its night, with passwords in the configuration; what was printed and logged."""
    tree = small(tmp_path_factory.mktemp("secrets"), simulate={"users": 200, "days": 12, "epsilon": 0.6})
    tree["train"] |= {"learners": {"ddqn_cql": 1.0}, "seeds": 2}
    tree["evaluate"] |= {"baselines": []}
    tree["spark"]["conf"] = {
        "spark.hadoop.fs.s3a.secret.key": PASSWORD,
        "spark.ssl.keyPassword": PASSWORD,
        "spark.lake.token": PASSWORD,
    }
    config, said = validate(tree, "small.toml"), io.StringIO()
    handler = logging.StreamHandler(said)
    root, level = logging.getLogger(), logging.getLogger().level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            jobs.run(config)
            # The simulated log ends before the night: its rows are open.
            with contextlib.suppress(QualityError):
                jobs.monitor(config)
            jobs.report(config)
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
    return config, said.getvalue()


def left(config: Config) -> dict[Path, bytes]:
    """Every file that a run leaves for people and for MLflow."""
    files = [path for path in config.run_dir.rglob("*") if path.is_file()]
    return {path: path.read_bytes() for path in files if path.relative_to(config.run_dir).parts[0] not in TABLES}


def readable(content: bytes) -> str:
    return content.decode("utf-8", errors="replace")


def test_the_road_leaves_what_is_looked_at(road: tuple[Config, str]) -> None:
    config, said = road
    names = {str(path.relative_to(config.run_dir)) for path in left(config)}
    for name in ("report.html", "summary.json", "mlflow.db", "steps/monitor.json", "steps/etl.json"):
        assert name in names
    for kind in ("monitor.html", "monitor.json", "expectations.json", "policy.onnx", "contract.json"):
        assert any(name.endswith(kind) for name in names), kind
    assert any(name.startswith("artifacts/") for name in names)
    assert "monitor" in said


def test_no_report_and_no_artifact_names_a_user(road: tuple[Config, str]) -> None:
    config, _ = road
    lake = config.run_dir.parent / "lake"
    assert USER_ID.search(str(pd.read_parquet(lake / "users")["user_id"].iloc[0]))
    named = {str(path): found[0] for path, content in left(config).items()
             if (found := USER_ID.search(readable(content)))}  # fmt: skip
    assert named == {}


def test_mlflow_knows_no_user_and_no_password(road: tuple[Config, str]) -> None:
    """Parameters, tags, metrics and versions, as the database has them."""
    config, _ = road
    with contextlib.closing(sqlite3.connect(config.run_dir / "mlflow.db")) as database:
        dump = "\n".join(database.iterdump())
    assert "ddqn_cql" in dump
    assert USER_ID.search(dump) is None
    assert PASSWORD not in dump


def test_no_password_is_written_or_said(road: tuple[Config, str]) -> None:
    config, said = road
    assert [str(path) for path, content in left(config).items() if PASSWORD.encode() in content] == []
    assert PASSWORD not in said
    for path in (config.run_dir / "scores" / "_delta_log").glob("*.json"):
        assert PASSWORD not in path.read_text()


def test_a_server_that_does_not_answer_is_named_without_its_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    # Nobody listens at the port of `discard`.
    uri = f"http://ann:{PASSWORD}@127.0.0.1:9/mlflow"
    config = validate(small(tmp_path, mlflow={"tracking_uri": uri}), "small.toml")
    with pytest.raises(TactfulError) as error:
        registry_of(config).load("champion")
    assert "127.0.0.1:9" in str(error.value)
    assert PASSWORD not in str(error.value)
    assert error.value.__cause__ is None, "a traceback would show what it came from"


def test_a_wrong_configuration_is_explained_without_its_passwords(tmp_path: Path) -> None:
    path = tmp_path / "wrong.toml"
    path.write_text(
        f'name = "x"\nrun_dir = "run"\nrewards = ["sends"]\nseed = "no number"\n[data.decisions]\npath = "d"\n'
        f'[features]\nstate = ["sends_7d"]\n[spark.conf]\n"spark.x.password" = "{PASSWORD}"\n'
        f'[mlflow]\ntracking_uri = "http://ann:{PASSWORD}@h/"\n'
    )
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.cli", "etl", str(path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "seed" in done.stderr
    assert PASSWORD not in done.stderr + done.stdout


# Names that try to be code


HOSTILE = ("a`b", "a'; drop table users; --", 'x" or 1=1', "$(touch pwned)", "`rm -rf .`", "a b; c", "a.b", "*")


@pytest.mark.parametrize("name", HOSTILE)
def test_a_column_of_any_name_is_a_column(spark: SparkSession, tmp_path: Path, name: str) -> None:
    """Of a CSV, which goes through Spark, and of a Parquet file, which does not: its values, and nothing is run."""
    frame = pd.DataFrame({name: ["1", "2"], "a": ["wrong", "wrong"]})
    frame.to_csv(tmp_path / "raw.csv", index=False)
    frame.to_parquet(tmp_path / "raw.parquet", index=False)
    config = validate({**small(tmp_path), "data": {"decisions": {"path": "d"}, "events": {"path": "e"}}}, "x")
    for suffix in ("csv", "parquet"):
        dataset = config.data.decisions.model_copy(update={"path": tmp_path / f"raw.{suffix}"})
        wanted = [Wanted(name, TEXT, alias=f"context:{name}")]
        source = open_dataset(spark, DECISIONS, "data.decisions", dataset, wanted)
        rows = source.over(spark, lambda batches: batches, source.schema).toArrow()
        assert rows.column(f"context:{name}").to_pylist() == ["1", "2"]
    assert not Path("pwned").exists()


@pytest.mark.parametrize("name", HOSTILE)
def test_a_quoted_name_is_one_name(spark: SparkSession, name: str) -> None:
    frame = spark.createDataFrame([(1, 2)], [name, "other"])
    assert frame.select(quoted(name)).columns == [name]


def test_an_expression_is_one_expression_over_the_log(spark: SparkSession, tmp_path: Path) -> None:
    """Mappings are Spark SQL on purpose, and can do no more than an expression can."""
    pd.DataFrame({"a": ["1"]}).to_csv(tmp_path / "raw.csv", index=False)
    config = validate({**small(tmp_path), "data": {"decisions": {"path": "d"}, "events": {"path": "e"}}}, "x")
    for text in ("a; drop table x", "(select 1", "a from raw", "a) as b, (a", "reflect('java.lang.System', 'exit')x"):
        dataset = config.data.decisions.model_copy(
            update={"path": tmp_path / "raw.csv", "columns": {"user_id": text}, "where": None}
        )
        with pytest.raises(InputError, match="is no expression over"):
            open_dataset(spark, DECISIONS, "data.decisions", dataset, [Wanted("user_id", TEXT)])


@pytest.mark.parametrize("model", ["it's", "a' or name = 'b", 'say "hi"', "a`b", "a/b", ""])
def test_a_name_that_a_registry_cannot_quote_is_refused(model: str, tmp_path: Path) -> None:
    """MLflow's filters are a language of their own."""
    with pytest.raises(InputError, match=r"mlflow\.model is .* alone") as error:
        validate(small(tmp_path, mlflow={"model": model}), "small.toml")
    assert error.value.exit_code == 2
    validate(small(tmp_path, mlflow={"model": "Sends 2.0_b-c é"}), "small.toml")
