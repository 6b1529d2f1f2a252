"""`tactful promote`, `promote --version`, `rollback`, and the champion that `score` gets, as a user calls them."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from deltalake import DeltaTable
from pyspark.sql import SparkSession
from typer.testing import CliRunner, Result

from models.artifact import load
from models.errors import InputError, TransientError
from models.registry import Registry
from models.registry.promotions import fold
from pipelines import jobs
from pipelines.cli import app
from pipelines.config import Config, validate
from pipelines.etl.units import feature_units
from pipelines.jobs import acting, steps
from pipelines.sections import STATE_FEATURES, Features
from pipelines.summary import number
from tests.models.registry.registries import aliases
from tests.pipelines.test_etl_crash import toml
from tests.pipelines.test_road import small


@pytest.fixture(scope="module")
def path(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A configuration file whose policies were learned and evaluated, and are not promoted yet."""
    folder = tmp_path_factory.mktemp("promote")
    tree = small(folder)
    tree["simulate"] |= {"users": 150, "truth_users": 50}
    tree["quality"] = {"docs": False}
    tree["train"] |= {"seeds": 1, "steps": 40, "behaviour_steps": 40, "value_steps": 40}
    made = folder / "small.toml"
    made.write_text("\n".join(toml(tree)))
    config = validate(tree, "small.toml")
    for step in (jobs.simulate, jobs.etl, jobs.train, jobs.evaluate):
        step(config)
    return made


@pytest.fixture(scope="module")
def config(path: Path) -> Config:
    from pipelines.config import load as load_config

    return load_config(path, {})


@pytest.fixture(scope="module")
def registry(config: Config) -> Registry:
    return steps.registry_of(config)


def tactful(*words: str) -> Result:
    return CliRunner().invoke(app, words)


def judged_promote(*_: Any) -> dict[str, Any]:
    return {"verdict": "PROMOTE", "candidate": "ddqn_cql", "reasons": ["as the test has it"], "checks": []}


def versions(registry: Registry) -> list[str]:
    found = registry.client.search_model_versions(f"name = '{registry.model}'", order_by=["version_number ASC"])
    return [str(each.version) for each in found]


def test_an_evaluation_of_what_was_learned_is_a_table_too(config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    left = steps.left_by(config, "evaluate")["evaluation"]
    found = jobs.evaluate(config)["evaluation"]
    said = capsys.readouterr().out
    for name in ("ddqn", "ddqn_cql", "never"):
        for estimator in ("wpdis", "dr", "fqe"):
            figure = found["policies"][name]["estimates"][estimator]["clicks"]
            assert figure == left["policies"][name]["estimates"][estimator]["clicks"]
            assert number(figure["estimate"], 4) in said
    assert "effective users" in said


@pytest.mark.parametrize(
    "words",
    [["rollback"], ["promote", "--version", "1"], ["explain", "u1"], ["score"]],
    ids=["rollback", "promote", "explain", "score"],
)
def test_a_command_that_asks_a_registry_makes_none(words: list[str], path: Path, tmp_path: Path) -> None:
    """In a folder that is not the run's, and with a database that is not the registry's."""
    command, *more = words
    elsewhere, database = tmp_path / "elsewhere", tmp_path / "other.db"
    for key, value, place in (
        ("run_dir", str(elsewhere), elsewhere / "mlflow.db"),
        ("mlflow.tracking_uri", f"sqlite:///{database}", database),
    ):
        done = CliRunner().invoke(app, [command, str(path), *more, "--set", f"{key}={value}"])
        assert isinstance(done.exception, InputError), done.output
        assert f"{place}: no registry lies there; correct {key}" in str(done.exception)
        assert not list(tmp_path.rglob("*.db*"))


def test_a_refused_policy_leaves_the_champion_and_its_reasons(path: Path, config: Config, registry: Registry) -> None:
    done = tactful("promote", str(path))
    verdict = steps.left_by(config, "promote")["verdict"]["verdict"]
    assert verdict in {"REFUSE", "INCONCLUSIVE"}
    assert done.exit_code == {"REFUSE": 4, "INCONCLUSIVE": 5}[verdict]
    assert aliases(registry) == {"champion": "1", "challenger": "2"}
    assert steps.left_by(config, "promote")["registry"] == {"candidate": "2", "champion": "1", "challenger": "2"}
    tags = registry.client.get_model_version(registry.model, "2").tags
    lineage = steps.left_by(config, "train")["lineage"]
    assert (tags["verdict"], tags["policy"]) == (verdict, "ddqn_cql")
    assert tags["data_fingerprint"] == lineage["fingerprint"]
    assert tags["data_window"] == " to ".join(lineage["window"])
    assert tags["commit"] == lineage["commit"]
    assert tags["fingerprint"] == load(config.run_dir / "policies" / "ddqn_cql").fingerprint


def test_a_version_without_a_verdict_for_it_is_refused(path: Path, registry: Registry) -> None:
    before = aliases(registry)
    for version, why in (("2", r"its verdict is (REFUSE|INCONCLUSIVE)"), ("1", "it was registered without a verdict")):
        done = tactful("promote", str(path), "--version", version)
        assert done.exit_code == 4
        assert f"version {version} is not promoted: " in " ".join(done.output.replace("│", " ").split())
        assert re.search(why, " ".join(done.output.replace("│", " ").split()))
    assert aliases(registry) == before


@pytest.mark.parametrize("reason", ["", "  "])
def test_an_override_needs_a_reason(path: Path, registry: Registry, reason: str) -> None:
    before = aliases(registry)
    done = tactful("promote", str(path), "--version", "2", "--override", reason)
    assert isinstance(done.exception, InputError)
    assert "--override: empty; say why" in str(done.exception)
    assert aliases(registry) == before


def test_an_override_goes_with_a_version(path: Path) -> None:
    done = tactful("promote", str(path), "--override", "because")
    assert done.exit_code == 2
    assert "--override goes with --version" in " ".join(done.output.replace("│", " ").split())


def test_an_override_is_kept_and_rolled_back_in_one_command(path: Path, registry: Registry) -> None:
    done = tactful("promote", str(path), "--version", "2", "--override", "an experiment with 1% of users")
    assert done.exit_code == 0, done.output
    assert "version 2, by hand and without a verdict: PROMOTE" in " ".join(done.output.replace("│", " ").split())
    assert aliases(registry) == {"champion": "2", "previous": "1", "challenger": "2"}
    entry = registry.journal.entries()[-1]
    assert (entry.what, entry.version, entry.reason) == ("promote", "2", "an experiment with 1% of users")
    assert entry.by
    assert entry.at
    done = tactful("rollback", str(path), "--reason", "it sends at night")
    assert done.exit_code == 0, done.output
    assert aliases(registry) == {"champion": "1", "previous": "2", "challenger": "2"}
    assert registry.journal.entries()[-1].reason == "it sends at night"
    assert tactful("rollback", str(path)).exit_code == 0
    assert aliases(registry)["champion"] == "2"
    assert tactful("rollback", str(path)).exit_code == 0


def test_a_promoted_version_is_promoted_again_without_a_word(
    path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(acting, "judge", judged_promote)
    assert tactful("promote", str(path)).exit_code == 0
    promoted = versions(registry)[-1]
    assert aliases(registry) == {"champion": promoted, "previous": "1", "challenger": promoted}
    assert tactful("rollback", str(path)).exit_code == 0
    assert aliases(registry) == {"champion": "1", "previous": promoted, "challenger": promoted}
    done = tactful("promote", str(path), "--version", promoted)
    assert done.exit_code == 0, done.output
    assert aliases(registry) == {"champion": promoted, "previous": "1", "challenger": promoted}
    assert tactful("promote", str(path), "--version", "99").exception is not None


def test_what_lies_beside_the_artifact(config: Config, registry: Registry, tmp_path: Path) -> None:
    version = registry.fetch("2", tmp_path)
    evaluation = json.loads((version.folder / "judged" / "evaluation.json").read_text())
    assert evaluation == steps.left_by(config, "evaluate")["evaluation"]
    verdict = json.loads((version.folder / "judged" / "verdict.json").read_text())
    artifact, lineage = load(version.artifact), steps.left_by(config, "train")["lineage"]
    assert verdict["judged"] == {
        "fingerprint": artifact.fingerprint,
        "data_fingerprint": lineage["fingerprint"],
        **{name: lineage[name] for name in ("data_version", "estimates_version", "window", "commit")},
    }
    told = json.loads((version.artifact / "contract.json").read_text())
    assert list(told["features"]) == list(config.features.names)
    assert told["feature_units"] == {
        "sends_7d": "notifications",
        "visits_7d": "sessions",
        "hours_since_visit": "hours",
        "badge": "notifications",
        "hour_sin": "-1 to 1",
        "hour_cos": "-1 to 1",
        "relevance": "as in the column relevance",
        "tenure_days": "as in the column tenure_days",
    }
    assert told["lineage"]["window"] == lineage["window"]
    assert told["lineage"]["commit"] == lineage["commit"]


def test_every_feature_has_a_unit() -> None:
    categories = {"context_categories": {"topic": ["news", "sport"]}, "attribute_categories": {"os": ["ios"]}}
    features = Features(state=list(STATE_FEATURES), context=["relevance"], attributes=["age"], **categories)
    assert tuple(feature_units(features)) == features.names


def test_mlflow_holds_no_user_and_no_path_of_this_machine(config: Config, registry: Registry) -> None:
    """In no artifact of any run, and not in its database."""
    table = DeltaTable(config.transitions_path).to_pyarrow_table(columns=["user_id", "decision_id"]).to_pydict()
    ids = {name.encode() for name in {*table["user_id"], *table["decision_id"]} if name}
    assert len(ids) > 500
    artifacts = [path for path in (config.run_dir / "artifacts").rglob("*") if path.is_file()]
    assert len(artifacts) > 30
    for path in [*artifacts, config.run_dir / "mlflow.db"]:
        content = path.read_bytes()
        assert [name for name in ids if name in content] == [], path
    for path in artifacts:
        assert str(config.run_dir.parent).encode() not in path.read_bytes(), path


def test_two_promotions_of_one_folder_at_once(path: Path, config: Config, registry: Registry) -> None:
    """Both judge, register and leave their result; whichever came last is challenger."""
    before, known = aliases(registry), versions(registry)
    command = [str(Path(sys.executable).with_name("tactful")), "promote", str(path)]
    pipe = subprocess.PIPE
    running = [subprocess.Popen(command, stdout=pipe, stderr=subprocess.STDOUT, text=True) for _ in range(2)]
    told = [each.communicate(timeout=400)[0] for each in running]
    assert [each.returncode in {4, 5} for each in running] == [True, True], told
    made = versions(registry)[len(known) :]
    assert len(made) == 2
    last = registry.journal.entries()[-1]
    assert last.version in made
    assert aliases(registry) == {**before, "challenger": last.version}
    assert aliases(registry) == fold(registry.journal.entries()).aliases()
    assert steps.left_by(config, "promote")["registry"]["candidate"] in made


def scores(config: Config) -> list[str]:
    table = config.run_dir / "scores"
    return DeltaTable(table).file_uris() if DeltaTable.is_deltatable(str(table)) else []


def away(self: Registry, alias: str) -> str:
    raise TransientError(f"{self.tracking_uri}: does not answer; try again later.")


def test_a_night_without_a_champion_checked_before_writes_nothing(
    path: Path, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Registry, "named", away)
    done = tactful("score", str(path))
    assert isinstance(done.exception, TransientError)
    assert "No champion was checked before, so nothing is scored" in str(done.exception)
    assert scores(config) == []
    assert not steps.step_path(config, "score").exists()


def test_a_night_says_whether_its_champion_is_stale(
    path: Path, config: Config, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tactful("score", str(path)).exit_code == 0
    told = steps.left_by(config, "score")
    assert (told["model_stale"], told["model_version"]) == (False, aliases(registry)["champion"])
    with monkeypatch.context() as patched:
        patched.setattr(Registry, "named", away)
        assert tactful("score", str(path)).exit_code == 0
    later = steps.left_by(config, "score")
    assert later["model_stale"] is True
    assert (later["checked_at"], later["model_version"]) == (told["checked_at"], told["model_version"])
    before = scores(config)
    source = Path(
        registry.client.get_model_version(registry.model, told["model_version"]).source.removeprefix("file://")
    )
    (source / "tactful" / "extra.json").write_text("{}")
    done = tactful("score", str(path))
    assert isinstance(done.exception, InputError)
    assert "tactful/extra.json is not among the files that were registered" in str(done.exception)
    assert scores(config) == before
    (source / "tactful" / "extra.json").unlink()
