"""`tactful rewards goal`: from transitions to a version of a reward that can be trained on, and what it tells."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from models.errors import InputError
from models.rewards import store
from models.rewards.goal import component
from pipelines import jobs, reading
from pipelines.cli import app
from pipelines.config import Config, validate
from pipelines.etl.flow import run_etl
from pipelines.rewards import goals
from pipelines.rewards.goals import policy_of, run_goal
from tests.pipelines.inprocess import in_process, simulated_log
from tests.pipelines.test_road import sections, small

RULE = {"success": ["visits_7d >= 2"], "rounds": 1, "steps": 60, "visited": 300}
BEST = {"success_from": "best_users", "best_by": {"visits": 1.0}, "rounds": 1, "steps": 60, "visited": 300}


def config_of(folder: Path, goal: dict[str, Any], **changes: Any) -> Config:
    train = {**small(folder)["train"], "seeds": 1, "steps": 40}
    return validate(small(folder, **{"learned": {"goal": goal}, "train": train, **changes}), "small.toml")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small log and its transitions."""
    place = tmp_path_factory.mktemp("goals")
    simulated_log(config_of(place, RULE))
    return place


@pytest.mark.parametrize(("name", "goal"), [("often", RULE), ("best", BEST)])
def test_a_version_says_what_it_was_learned_from(folder: Path, name: str, goal: dict[str, Any]) -> None:
    config = config_of(folder, goal)
    run_goal(config, name)
    kept = store.read(config.rewards_path, name)
    facts, log = kept.facts, reading.logged(config)
    assert (kept.kind, facts["component_unit"], facts["fingerprint"]) == ("goal", "goal-days", log.fingerprint)
    assert facts["features"] == list(log.contract.features)
    assert facts["settings"]["steps"] == 60
    assert [each["round"] for each in facts["rounds"]] == [0, 1]
    assert facts["rounds"][1]["held_out"]["visited"] == 300
    assert 0 < facts["rounds"][0]["effective_states"] <= len(log.user)
    assert facts["terminal"] == int(log.terminal.sum())
    assert facts["stand_ins"] == int((~log.terminal & (log.next_row < 0)).sum())
    paid = component(kept, log)
    assert facts["rounds"][1]["logged"] == pytest.approx(7 * paid.sum() / log.elapsed_days.sum())
    assert np.all((paid >= 0) & (paid <= log.elapsed_days))
    assert (paid[log.terminal] == 0).all()
    if goal is RULE:
        assert facts["best_users"] == 0
        assert facts["successes"] == int(((log.state[:, 1] >= 2) & ~log.warm_up).sum())
    else:
        # Of each split a tenth of the users whose account is open.
        assert 0.05 * len(log.user_id) < facts["best_users"] < 0.11 * len(log.user_id)


def test_policies_learn_from_the_log_seeded_by_the_best(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, seen = config_of(folder, {**BEST, "seed_copies": 3}), []
    monkeypatch.setattr(goals, "policy_of", lambda *args: seen.append(args[2]) or policy_of(*args))
    run_goal(config, "seeded")
    log = reading.logged(config)
    best = store.read(config.rewards_path, "seeded").facts["best_users"]
    assert len(seen) == 1
    assert len(seen[0].user_id) == len(log.user_id) + 3 * best
    assert seen[0].contract.rewards == (*log.contract.rewards, "seeded")


def test_what_it_pays_can_be_trained_on_beside_other_rewards(folder: Path) -> None:
    """Its own weight where train.weights names it; the version that paid is in the lineage."""
    train = {**small(folder)["train"], "seeds": 1, "steps": 40, "weights": {"often2": 1.0, "sends": -0.05}}
    config = config_of(folder, RULE, rewards=["sends", "clicks", "learned:often2"], train=train, gate={})
    with pytest.raises(InputError, match="often2: no learned reward"):
        jobs.train(config)
    plain = [name for name in config.rewards if ":" not in name]
    with in_process() as session:
        run_etl(session, config_of(folder, RULE, rewards=plain, gate={}, train=None), rebuild=True)
    run_goal(config, "often2")
    trained = jobs.train(config)
    assert trained["lineage"]["learned_versions"] == {"often2": 1}
    assert trained["weights"] == {"often2": 1.0, "sends": -0.05}
    with in_process() as session:
        run_etl(session, config_of(folder, RULE), rebuild=True)


def test_the_command(folder: Path, tmp_path: Path) -> None:
    tree = small(folder, train={**small(folder)["train"], "seeds": 1, "steps": 40}, learned={"goal": BEST})
    lines = [f"{key} = {value!r}" for key, value in tree.items() if not isinstance(value, dict)]
    path = tmp_path / "small.toml"
    path.write_text("\n".join([*lines, *sections(tree)]).replace("True", "true"))
    done = CliRunner().invoke(app, ["rewards", "goal", str(path), "asked", "--set", "learned.goal.rounds=0"])
    assert done.exit_code == 0, done.output
    assert "learned:asked: version 1" in done.output
    assert len(store.read(folder / "run" / "rewards", "asked").facts["rounds"]) == 1
    bad = CliRunner().invoke(app, ["rewards", "goal", str(path), "a-b", "--set", "learned.goal.rounds=0"])
    assert "no name for a reward" in str(bad.exception)


@pytest.mark.parametrize(
    ("goal", "message"),
    [
        ({"success": ["mood >= 1"]}, "'mood' is no state feature of the log"),
        ({"success": ["visits_7d >= 999"]}, "none of .* states is a success"),
        ({"success": ["visits_7d >= 0"]}, "all of .* states are successes, and a classifier without failures"),
        ({}, "success is empty"),
    ],
)
def test_goals_that_nothing_can_be_learned_of(folder: Path, goal: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        run_goal(config_of(folder, goal), "none")
