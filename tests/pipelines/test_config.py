"""A configuration says what is wrong with it: the key, what was found, the remedy."""

import copy
import json
import tomllib
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from models.errors import InputError
from pipelines import jobs
from pipelines.config import Config, load, validate
from pipelines.jobs import steps

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.toml"))
SMALL: dict[str, Any] = {
    "name": "small",
    "run_dir": "run",
    "rewards": ["sends", "clicks", "column:steps"],
    "data": {"decisions": {"path": "decisions.csv"}, "events": {"path": "events"}},
    "features": {"state": ["badge"], "context": ["relevance"], "context_categories": {"place": ["home", "work"]}},
    "train": {"weights": {"clicks": 1.0}},
}


def changed(changes: dict[str, Any]) -> dict[str, Any]:
    """SMALL with keys set, or removed where the value is ..."""
    tree = copy.deepcopy(SMALL)
    for path, value in changes.items():
        *parents, leaf = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        if value is ...:
            del node[leaf]
        else:
            node[leaf] = value
    return tree


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configurations_are_valid(path: Path) -> None:
    assert load(path).name == path.stem


def test_names_of_features_and_rewards_follow_the_configuration() -> None:
    contract = validate(SMALL, "small.toml").contract
    assert contract.actions == ("hold", "send")
    assert contract.features == ("badge", "relevance", "place=home", "place=work")
    assert contract.rewards == ("sends", "clicks", "steps")
    assert contract.units == {"sends": "notifications", "clicks": "clicks"}


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("nmae", "x", ["nmae", "no such key", "did you mean 'name'"]),
        ("train/stepz", 3, ["train.stepz", "no such key", "did you mean 'steps'"]),
        ("data/decisions/pth", "x", ["data.decisions.pth", "did you mean 'path'"]),
        ("run_dir", ..., ["run_dir: missing", "add it"]),
        ("etl", {"buckets": 0}, ["etl.buckets", "found 0", "greater than or equal to 1"]),
        ("etl", {"split": [0.5, 0.1, 0.1]}, ["etl.split", "(0.5, 0.1, 0.1)", "sum to 1"]),
        ("features/state", ["badgee"], ["features.state", "'badgee'", "did you mean 'badge'"]),
        ("features/state", ["badge", "badge"], ["features: badge is named more than once", "name each once"]),
        ("rewards", ["clics"], ["rewards: 'clics'", "did you mean 'clicks'", "column:clics"]),
        ("rewards", ["sends", "sends"], ["rewards: sends is named more than once"]),
        ("train/weights", {"visit": 1.0}, ["train.weights: 'visit'"]),
        ("train/weights", {"clicks": 0.0}, ["train.weights are all zero"]),
        ("train/gamma_per_day", 1.5, ["train.gamma_per_day is 1.5", "(0, 1]"]),
        ("actions", ["send"], ["actions: 1 configured", "two or more"]),
        ("actions", ["push", "hold"], ["`hold` must be the first action"]),
        ("gate", {"candidate": "iql"}, ["gate.candidate: 'iql' is not learned"]),
        ("policy", {"rollout_share": 0.0}, ["policy.rollout_share", "found 0.0", "greater than 0"]),
        ("policy", {"volume": 0.0}, ["policy.volume", "found 0.0", "greater than 0"]),
        ("policy", {"volume": 0.9, "lambda": 0.1}, ["policy.lambda: policy.volume fixes it"]),
        ("policy", {"lamda": 0.1}, ["policy.lamda", "did you mean 'lambda'"]),
        ("policy", {"volume_range": [0.8, 1.0]}, ["policy.volume_range: needs policy.volume"]),
        ("policy", {"volume": 1.1, "volume_range": [0.8, 1.0]}, ["policy.volume_range is [0.8, 1] and", "1.1"]),
        ("policy", {"volume": 0.9, "volume_range": [1.0, 0.8]}, ["policy.volume_range is [1, 0.8] and", "0.9"]),
        ("constraints", {"quiet_hours": [22, 25]}, ["constraints.quiet_hours", "[0, 24)"]),
        ("etl", {"known_gaps": ["2026/01/02"]}, ["etl.known_gaps.0", "found '2026/01/02'"]),
        ("data/events", ..., ["rewards: 'clicks' is counted from events", "map data.events"]),
    ],
)
def test_every_mistake_is_named_with_its_key_and_remedy(path: str, value: Any, words: list[str]) -> None:
    with pytest.raises(InputError) as error:
        _ = validate(changed({path: value}), "small.toml").contract
    assert error.value.exit_code == 2
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(("key", "value"), [("volume", 0.9), ("lambda", 0.2)])
def test_a_price_needs_an_action_that_sends_nothing(key: str, value: float) -> None:
    with pytest.raises(InputError, match=f"policy.{key}: every action of badge, push is a send"):
        validate(changed({"actions": ["badge", "push"], f"policy/{key}": value}), "small.toml")
    assert getattr(validate(changed({f"policy/{key}": value}), "small.toml").policy, key.replace("da", "da_")) == value


UNIFORM = {"kind": "uniform"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"gate/segments": ["badgee"]}, ["gate.segments: 'badgee' is not a state feature", "did you mean 'badge'"]),
        ({"evaluate/marginal": {"relevnce": 2}}, ["evaluate.marginal: 'relevnce'", "did you mean 'relevance'"]),
        (
            {"evaluate/marginal": {"badge": 13, "relevance": 5}},
            ["evaluate.marginal asks for 65 bins", "more than 64", "fewer features or parts"],
        ),
        (
            {"evaluate/most_per_decision": {"click": 2.0}},
            ["evaluate.most_per_decision: 'click' is not a reward component", "did you mean 'clicks'"],
        ),
        ({"evaluate/most_per_decision": {"ctr": 1.0}}, ["evaluate.most_per_decision: 'ctr'"]),
        *(
            ({"evaluate/policies": {name: UNIFORM}}, [f"evaluate.policies.{name}: ", "called so", "rename it"])
            for name in ("random", "click_threshold", "survival_uplift", "logging", "ddqn_cql")
        ),
        *(
            ({"train/learners": {"ddqn_cql": 1.0, name: 0.0}}, [f"train.learners.{name}: ", "called so", "rename it"])
            for name in ("random", "logging", "never", "always")
        ),
        ({"gate/estimator": "ips"}, ["gate.estimator is 'ips'", "evaluate.per = 'week'", "use dr or wpdis"]),
        (
            {"gate/estimator": "pdis", "evaluate/per": "decision"},
            ["gate.estimator is 'pdis'", "evaluate.per = 'decision'", "use dr, wpdis or ips"],
        ),
        (
            {"gate/confidence": 0.999, "evaluate/resamples": 999},
            ["evaluate.resamples is 999", "confidence of 0.999", "1000 or more"],
        ),
        (
            {"train": ..., "evaluate/baselines": ["random"]},
            ["evaluate.baselines is ('random',)", "no [train]", "remove it, or add [train]"],
        ),
        ({"train": ..., "evaluate/baseline_send_rate": 0.0}, ["evaluate.baseline_send_rate is 0.0", "no [train]"]),
    ],
)
def test_what_evaluation_could_not_use_is_told_before_anything_is_learned(
    changes: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(InputError) as error:
        validate(changed(changes), "small.toml")
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"gate/segments": ["badge", "place=home"]},
        {"evaluate/marginal": {"badge": 8, "relevance": 8}},
        {"evaluate/most_per_decision": {"clicks": 2.0, "steps": 9.0}},
        {"train/learners": {"ddqn_cql": 1.0, "never": 0.0}, "evaluate/policies": {"even": UNIFORM}},
        {"gate/estimator": "ips", "evaluate/per": "decision"},
        {"gate/estimator": "wdr", "evaluate/per": "decision"},
        {"gate/confidence": 0.99, "evaluate/resamples": 100},
        {"train": ..., "evaluate/baselines": []},
    ],
)
def test_what_evaluation_can_use_is_taken(changes: dict[str, Any]) -> None:
    tree = changed(changes)
    taken = validate(tree, "small.toml").model_dump(mode="json")
    for path in changes:
        section, *key = path.split("/")
        assert (taken[section] is None) == (changes[path] is ...)
        assert not key or taken[section][key[0]] not in (None, {})


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_what_is_written_down_can_be_read_again(path: Path) -> None:
    read = load(path)
    assert validate(json.loads(read.model_dump_json()), "again") == read


def test_a_file_that_is_absent_or_no_toml_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent\.toml: no such configuration file"):
        load(tmp_path / "absent.toml")
    with pytest.raises(InputError, match="cannot be read"):
        load(tmp_path)
    (tmp_path / "bad.toml").write_text("name = ")
    with pytest.raises(InputError, match=r"bad\.toml: not valid TOML"):
        load(tmp_path / "bad.toml")


def test_an_override_inside_a_value_is_an_error() -> None:
    with pytest.raises(InputError, match=r"--set name\.x: 'name' is a value"):
        load(CONFIGS[0], {"name.x": "1"})


def test_overrides_are_parsed_as_toml_or_taken_as_text() -> None:
    path = next(path for path in CONFIGS if path.stem == "demo")
    found = load(path, {"seed": "9", "data.decisions.path": "/some/where.csv", "etl.known_gaps": '["2026-01-07"]'})
    assert (found.seed, str(found.data.decisions.path), found.etl.known_gaps) == (
        9,
        "/some/where.csv",
        [date(2026, 1, 7)],
    )


def test_the_etl_hash_names_what_decides_a_transition_and_nothing_else() -> None:
    path = next(path for path in CONFIGS if path.stem == "demo")
    base = load(path).etl_hash()
    assert tomllib.loads(path.read_text())["etl"]["buckets"] == 2
    for key, value, same in (
        ("etl.as_of", "2026-02-01", True),
        ("etl.known_gaps", '["2026-01-07"]', True),
        ("data.decisions.path", "/elsewhere", True),
        ("data.decisions.separator", ";", True),
        ("data.candidates.path", "/tonight", True),
        ("train.steps", "5", True),
        ("etl.lookback_days", "14", False),
        ("etl.buckets", "3", False),
        ("features.context", '["relevance"]', False),
        ("constraints.max_sends_24h", "2", False),
    ):
        assert (load(path, {key: value}).etl_hash() == base) is same, key


@pytest.mark.parametrize(
    ("events", "given", "per"),
    [
        (True, {}, "week"),
        (False, {}, "decision"),
        (False, {"per": "week"}, "week"),
        (True, {"per": "decision"}, "decision"),
        (False, {"resamples": 200}, "decision"),
    ],
)
def test_a_log_without_events_is_judged_at_one_decision_by_default(events, given, per):
    tree = {
        "name": "log",
        "run_dir": "run",
        "rewards": ["sends"],
        "data": {"decisions": {"path": "d"}, **({"events": {"path": "e"}} if events else {})},
        "features": {"state": ["hour_sin"]},
        "evaluate": given,
    }
    assert validate(tree, "log.toml").evaluate.per == per
    assert given or validate({k: v for k, v in tree.items() if k != "evaluate"}, "log.toml").evaluate.per == per


def test_a_component_that_only_a_learners_own_weights_misspell_is_named() -> None:
    learners = {"mine": {"weights": {"clix": 1.0}}}
    with pytest.raises(InputError, match=r"train\.learners\.mine\.weights: 'clix' is not a reward component"):
        validate(changed({"train/learners": learners}), "small.toml")


def unguarded(folder: Path, **overrides: str) -> Config:
    """The demo without [gate.metrics]."""
    text = next(each for each in CONFIGS if each.stem == "demo").read_text()
    file = folder / "unguarded.toml"
    file.write_text(text[: text.index("[gate.metrics")])
    return load(file, {"run_dir": str(folder / "run"), "data.decisions.path": str(folder / "lake"), **overrides})


@pytest.mark.parametrize("command", [jobs.run, jobs.promote])
def test_what_nothing_would_guard_is_refused_before_it_begins(command: Callable[[Config], Any], tmp_path: Path) -> None:
    config = unguarded(tmp_path)
    with pytest.raises(InputError, match=r"gate\.metrics is empty; name the metrics to guard"):
        command(config)
    assert [each.name for each in tmp_path.iterdir()] == ["unguarded.toml"]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({}, ["gate.metrics is empty: `tactful promote` will judge nothing; name the metrics"]),
        ({"train.seeds": "1"}, ["train.seeds is 1: one seed", "give train.seeds = 2 or more", "gate.metrics is empty"]),
    ],
)
def test_training_of_what_cannot_be_promoted_says_so_first(
    overrides: dict[str, str], words: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Before it looks for the transitions, which are not there."""
    with pytest.raises(InputError, match="no transitions"):
        jobs.train(unguarded(tmp_path, **overrides))
    for word in words:
        assert word in caplog.text
    assert ("train.seeds" in caplog.text) == bool(overrides)


def test_evaluating_what_was_learned_says_that_nothing_is_guarded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = unguarded(tmp_path)
    lineage: dict[str, Any] = {"data_version": 0, "estimates_version": None}
    steps.write_json(steps.step_path(config, "train"), {"lineage": lineage})
    with pytest.raises(InputError, match="no transitions"):
        jobs.evaluate(config)
    assert "gate.metrics is empty: `tactful promote` will judge nothing" in caplog.text
