"""A log from elsewhere by configuration alone: no training, named policies, and one known by the log it wrote."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pyspark.sql import SparkSession

from models.errors import InputError
from pipelines import jobs
from pipelines.config import Config, validate
from pipelines.evaluating import named_policies

ACTIONS = ["a", "b", "c"]
SHOWN = {"top": [0.5, 0.3, 0.2], "end": [0.1, 0.1, 0.8]}
"""What the other policy does in each place."""


def write(path: Path, rows: int, probabilities: dict[str, list[float]], seed: int) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    place = rng.choice(["top", "end"], rows)
    item = np.array([rng.choice(3, p=probabilities[each]) for each in place])
    p = np.array([probabilities[each][chosen] for each, chosen in zip(place, item, strict=True)])
    click = (rng.random(rows) < 0.1 + 0.2 * item).astype(int)
    moment = pd.Timestamp("2026-01-01") + pd.to_timedelta(np.arange(rows), "s")
    frame = pd.DataFrame({"n": np.arange(rows), "moment": moment, "place": place, "item": np.array(ACTIONS)[item]})
    frame = frame.assign(p=p, click=click)
    frame.to_csv(path, index=False)
    return frame


def tree(folder: Path, **policies: Any) -> dict[str, Any]:
    columns = {"user_id": "n", "decision_id": "n", "decided_at": "moment", "action": "item", "propensity": "p"}
    return {
        "name": "elsewhere",
        "run_dir": str(folder / "run"),
        "actions": ACTIONS,
        "rewards": ["column:click"],
        "data": {"decisions": {"path": str(folder / "log.csv"), "columns": columns}},
        "features": {"context_categories": {"place": ["top", "end"]}},
        "etl": {"watermark": "2026-01-02", "warmup_days": 0, "buckets": 1},
        "evaluate": {"per": "decision", "resamples": 200, "fqe_steps": 20, "policies": policies},
    }


OTHER = {"kind": "logged", "by": ["place"]}


@pytest.fixture(scope="module")
def run(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, dict[str, Any], pd.DataFrame]:
    folder = tmp_path_factory.mktemp("elsewhere")
    log = write(folder / "log.csv", 1500, {"top": [1 / 3] * 3, "end": [1 / 3] * 3}, 1)
    write(folder / "other.csv", 400, SHOWN, 2)
    policies = {
        "uniform": {"kind": "uniform"},
        "mine": {"kind": "fixed", "probabilities": {"b": 1.0, "c": 3.0}},
        "other": OTHER | {"path": str(folder / "other.csv")},
    }
    config = validate(tree(folder, **policies), "elsewhere.toml")
    return config, jobs.run(config), log


def test_each_named_policy_has_its_value(run: tuple[Config, dict[str, Any], pd.DataFrame]) -> None:
    _, summary, log = run
    evaluation = summary["evaluation"]
    assert list(evaluation["policies"]) == ["logging", "uniform", "mine", "other"]
    pi = {"uniform": log["item"] == log["item"], "mine": log["item"].map({"a": 0.0, "b": 0.75, "c": 2.25})}
    taken = [SHOWN[place][ACTIONS.index(item)] for place, item in zip(log["place"], log["item"], strict=True)]
    pi["other"] = 3 * pd.Series(taken)
    for name, weight in pi.items():
        estimates = evaluation["policies"][name]["estimates"]
        assert estimates["ips"]["click"]["estimate"] == pytest.approx((weight * log["click"]).mean(), abs=1e-9)
        snips = (weight * log["click"]).sum() / weight.sum()
        assert estimates["wpdis"]["click"]["estimate"] == pytest.approx(snips, abs=1e-9)
    # Its propensities depend on the place alone, and each of its actions was seen: it is known exactly.
    recorded = evaluation["policies"]["other"]["recorded"]
    assert (recorded["cells"], recorded["exact_cells"], recorded["decisions"]) == (2, 2, 400)
    assert evaluation["clusters"] == "rows"
    assert evaluation["warnings"] == []


def test_the_report_is_one_of_an_evaluation(run: tuple[Config, dict[str, Any], pd.DataFrame]) -> None:
    config, summary, _ = run
    assert summary["only_evaluated"]
    assert "verdict" not in summary
    page = (config.run_dir / "report.html").read_text()
    for section in ("differences", "metrics", "evidence", "data", "lineage"):
        assert f'<section id="{section}"' in page
        assert f'href="#{section}"' in page
    for section in ("verdict", "headline", "rollout", "learning", "scoring"):
        assert f'id="{section}"' not in page
        assert f"#{section}" not in page
    assert "every row is a cluster of its own" in page
    assert "resampling rows" in page
    steps = {path.stem for path in (config.run_dir / "steps").iterdir()}
    assert steps == {"etl", "evaluate", "report"}
    assert not (config.run_dir / "tried.json").exists()


def test_the_terminal_has_every_figure(
    run: tuple[Config, dict[str, Any], pd.DataFrame], capsys: pytest.CaptureFixture[str]
) -> None:
    config, _, _ = run
    found = jobs.evaluate(config)["evaluation"]
    said = capsys.readouterr().out
    for policy in ("uniform", "mine", "other"):
        for estimator in ("ips", "wpdis", "dr", "fqe"):
            estimate = found["policies"][policy]["estimates"][estimator]["click"]["estimate"]
            assert f"{estimate:.4f}" in said, (policy, estimator)
    assert "effective rows" in said
    assert "every row is a cluster of its own" in said


@pytest.mark.parametrize("step", ["train", "sweep", "promote"])
def test_steps_that_need_learning_say_so(run: tuple[Config, dict[str, Any], pd.DataFrame], step: str) -> None:
    with pytest.raises(InputError, match=r"no \[train\]|no \[sweep\]"):
        getattr(jobs, step)(run[0])


def changed(folder: Path, change: Any, **more: Any) -> Config:
    """A configuration whose other log was changed."""
    found = tree(folder, other=OTHER | {"path": str(folder / "other.csv")} | more)
    if change is not None:
        frame = write(folder / "other.csv", 60, SHOWN, 2)
        change(frame).to_csv(folder / "other.csv", index=False)
    return validate(found, "elsewhere.toml")


def cell(column: str, value: Any) -> Any:
    def change(frame: pd.DataFrame) -> pd.DataFrame:
        frame = frame.astype({column: object})
        frame.loc[3, column] = value
        return frame

    return change


@pytest.mark.parametrize(
    ("change", "more", "message"),
    [
        (cell("p", None), {}, "of 60 decisions of the log are some with no propensity"),
        (cell("p", 0.0), {}, r"some with a propensity outside \(0, 1\]"),
        (cell("p", 1.5), {}, r"some with a propensity outside \(0, 1\]"),
        (cell("p", "many"), {}, r"some with a propensity outside \(0, 1\]"),
        (cell("item", "z"), {}, r"1 of 60 .* an action that is none of a, b, c; .* action 'z'"),
        (cell("place", None), {}, "1 of 60 .* no value in place"),
        (lambda f: f, {"where": "n < 0"}, "has no decision"),
        (lambda f: f, {"columns": {"legal_actions": "array('a', 'b')"}}, "an action that was not legal"),
        (lambda f: f.drop(columns="p"), {}, r"evaluate\.policies\.other.*propensity.*'p' is no expression"),
        (lambda f: f, {"columns": {"decided": "n"}}, "'decided' is not read from this dataset"),
        (lambda f: f, {"path": "absent.csv"}, r"evaluate\.policies\.other\.path: absent\.csv does not exist"),
    ],
)
def test_another_log_that_says_too_little_is_refused(
    spark: SparkSession, tmp_path: Path, change: Any, more: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=f"(?s){message}"):
        named_policies(changed(tmp_path, change, **more), spark)


def test_its_columns_are_those_of_the_log_unless_it_says_otherwise(spark: SparkSession, tmp_path: Path) -> None:
    def renamed(frame: pd.DataFrame) -> pd.DataFrame:
        return frame.rename(columns={"item": "thing", "p": "chance"})

    config = changed(tmp_path, renamed, columns={"action": "thing", "propensity": "chance"}, where="n >= 10")
    (policy,) = named_policies(config, spark)
    assert policy.told["decisions"] == 50  # type: ignore[attr-defined]


def test_another_log_may_have_a_separator_of_its_own(spark: SparkSession, tmp_path: Path) -> None:
    config = changed(tmp_path, lambda frame: frame, separator=";")
    path = config.evaluate.policies["other"].path
    assert path is not None
    pd.read_csv(path).to_csv(path, sep=";", index=False)
    (policy,) = named_policies(config, spark)
    assert policy.told["decisions"] == 60  # type: ignore[attr-defined]


def test_never_and_always_are_the_default_where_there_is_a_hold(tmp_path: Path) -> None:
    found = tree(tmp_path)
    assert named_policies(validate(found, "x.toml")) == []
    found["actions"] = ["hold", "b", "c"]
    assert [policy.name for policy in named_policies(validate(found, "x.toml"))] == ["never", "always"]


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        ({"kind": "never"}, ["evaluate.policies.p: kind 'never' needs the action `hold`"]),
        ({"kind": "nevr"}, ["evaluate.policies.p.kind", "found 'nevr'", "'uniform'"]),
        ({"kind": "fixed", "probabilities": {"z": 1.0}}, ["evaluate.policies.p.probabilities: 'z'", "known: a, b, c"]),
        ({"kind": "logged", "path": "x", "by": ["plac"]}, ["evaluate.policies.p.by: 'plac'", "known: place"]),
        ({"kind": "logged"}, ["needs `path`"]),
        ({"kind": "logged", "path": "x", "separator": '"'}, ["separator", "one character", "quote"]),
        ({"kind": "uniform", "pth": "x"}, ["evaluate.policies.p.pth: no such key"]),
    ],
)
def test_a_policy_that_cannot_be_is_told_with_its_key(tmp_path: Path, policy: Any, words: list[str]) -> None:
    with pytest.raises(InputError) as error:
        validate(tree(tmp_path, p=policy), "elsewhere.toml")
    for word in words:
        assert word in str(error.value)


def test_a_policy_may_not_be_called_as_a_learner(tmp_path: Path) -> None:
    found = copy.deepcopy(tree(tmp_path, ddqn_cql={"kind": "uniform"}))
    found["train"] = {"weights": {"click": 1.0}}
    with pytest.raises(InputError, match=r"evaluate\.policies\.ddqn_cql: a learner of \[train\] is called so too"):
        validate(found, "elsewhere.toml")
