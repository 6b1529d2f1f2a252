"""`tactful rewards loop`: rounds in a simulated world, a killed one that goes on, and a log up to where a person is
needed and on from there."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.table import Table

from models.errors import InputError
from models.rewards import answers as told
from models.rewards import store
from models.rewards.learned import with_components
from models.rewards.logs import renamed, stacked
from models.rewards.weeks import Weeks, weeks_of
from models.table import Transitions
from pipelines import reading
from pipelines.config import Config, validate
from pipelines.inprocess import transitions_of
from pipelines.rewards import loop_asked, watching, weights_page
from pipelines.rewards.fitting_network import run_network, shown
from pipelines.rewards.loop_simulated import Simulated
from pipelines.rewards.looping import AnswersNeeded, run_loop
from policies.hacking import WRITTEN
from policies.simulator import simulate
from tests.pipelines.inprocess import simulated_log
from tests.pipelines.test_road import small

RATER = {"clicks": 3.0, "weekly_active_days": 0.5, "sends": -0.2, "visits": 0.1}
GATE = {
    "candidate": "ddqn",
    "shares": [0.3],
    "min_ess": 5,
    "return_weights": {"clicks": 1.0, "sends": -0.1},
    "metrics": {
        "weekly_active_days": {"direction": "up", "margin": 0.02},
        "sends": {"direction": "down", "margin": 0.0, "improve": True},
    },
}


def config_of(folder: Path, rater: dict[str, float] | None = None, form: str = "weights", **changes: Any) -> Config:
    plain = small(folder)
    train = {key: value for key, value in plain["train"].items() if key != "weights"}
    tree = {
        "simulate": {"users": 150, "days": 21, "truth_users": 60, "epsilon": 0.6},
        "train": {**train, "learners": {"ddqn": 0.0}, "seeds": 1, "steps": 40, "value_steps": 20,
                  "behaviour_steps": 20, "weights_from": "liked"},
        "evaluate": {"resamples": 100, "fqe_steps": 20, "baselines": []},
        "gate": GATE,
        "learned": {"loop": {"form": form, **({"rater": rater} if rater else {})},
                    "network": {"members": 3, "steps": 30},
                    "preference": {"components": ["sends", "clicks", "visits", "weekly_active_days"]}},
        **changes,
    }  # fmt: skip
    return validate({**plain, **tree}, "small.toml")


def rounds_in(config: Config) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((config.rewards_path / "liked" / "loop.json").read_text())["rounds"]
    return found


def test_rounds_in_a_simulated_world(tmp_path: Path) -> None:
    """Two rounds: the second asks about weeks of the first's policy alone, and learns from the answers of both."""
    config = config_of(tmp_path, RATER)
    run_loop(config, "liked", 2, 40, tmp_path / "small.toml")
    first, second = rounds_in(config)
    assert list(second) == ["round", "answers", "fitted", "trained", "evaluated"]
    assert store.versions(config.rewards_path, "liked") == [1, 2]
    pairs = [told.read([config.rewards_path / "liked" / "answers" / f"round-00{n}.jsonl"]).pairs for n in (1, 2)]
    assert [len(each) for each in pairs] == [40, 40]
    assert not {p.left for p in pairs[0]} & {p.left for p in pairs[1]}
    stored = store.read(config.rewards_path, "liked")
    assert stored.kind == "weights"
    assert stored.facts["support"]["rows"] > 500
    assert stored.facts["weights"] == second["fitted"]["weights"] != first["fitted"]["weights"]
    sides = second["evaluated"]["verdict"]["learned_rewards"]["liked"]
    assert set(sides["hand_written"]) == {"weekly_active_days", "sends", WRITTEN}
    assert sides["distance"]["outside"] is not None
    by_hand = sum(w * second["evaluated"]["truth"][name]["difference"] for name, w in RATER.items())
    assert second["evaluated"]["true_gain"] == pytest.approx(by_hand)


def test_a_killed_loop_goes_on_to_the_same_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, cut = (config_of(tmp_path / name, RATER, form="network") for name in ("whole", "cut"))
    run_loop(whole, "liked", 1, 40, tmp_path / "small.toml")

    def killed(self: Simulated, number: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Simulated, "_train", killed)
        with pytest.raises(KeyboardInterrupt):
            run_loop(cut, "liked", 1, 40, tmp_path / "small.toml")
    assert list(rounds_in(cut)[0]) == ["round", "answers", "fitted"]
    run_loop(cut, "liked", 1, 40, tmp_path / "small.toml")
    assert rounds_in(cut) == rounds_in(whole)
    assert store.versions(cut.rewards_path, "liked") == [1]
    # Nothing is done twice: the rater is asked no more.
    monkeypatch.setattr(Simulated, "_answer", killed)
    assert run_loop(cut, "liked", 1, 40, tmp_path / "small.toml") == rounds_in(whole)


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A log and its transitions, where a person has to answer."""
    config = config_of(tmp_path_factory.mktemp("asked"))
    simulated_log(config)
    return config


def answered(config: Config, number: int) -> None:
    """A rater's file for a round, by the rule that clicks and active days are good."""
    table = reading.logged(config)
    weeks = weeks_of(table, config.learned.days, table.split != 2)
    utility = weeks.totals @ np.array([RATER.get(name, 0.0) for name in table.contract.rewards])
    rng = np.random.default_rng(number)
    said = []
    for _ in range(30):
        a, b = rng.choice(len(weeks.id), 2, replace=False)
        left = rng.random() < 1 / (1 + math.exp(utility[b] - utility[a]))
        said.append(told.Pair(weeks.id[a], weeks.id[b], "left" if left else "right", "ann"))
    told.write(config.rewards_path / "liked" / "answers" / f"round-00{number}.jsonl", said)


def test_a_log_waits_for_a_person_and_goes_on(logged: Config) -> None:
    folder = logged.rewards_path / "liked"
    for _ in range(2):
        with pytest.raises(
            AnswersNeeded, match=r"round 1 waits for answers\. Open .*round-001\.html.*round-001\.jsonl"
        ):
            run_loop(logged, "liked", 2, 12, Path("small.toml"))
    assert AnswersNeeded.exit_code == 2
    page = (folder / "round-001.html").read_text()
    assert "round-001.jsonl" in page
    answered(logged, 1)
    with pytest.raises(AnswersNeeded, match="round 2 waits"):
        run_loop(logged, "liked", 2, 12, Path("small.toml"))
    first, second = rounds_in(logged)
    assert list(first) == ["round", "asked", "fitted", "trained", "evaluated"]
    assert list(second) == ["round", "asked"]
    verdict = first["evaluated"]["verdict"]
    told_of = verdict["learned_rewards"]["liked"]
    assert (told_of["kind"], told_of["version"]) == ("weights", 1)
    assert told_of["distance"]["outside"] is not None
    assert set(told_of["hand_written"]) == {"weekly_active_days", "sends", WRITTEN}


def test_a_network_is_learned_and_shown_by_the_commands(logged: Config, tmp_path: Path) -> None:
    answered(logged, 9)
    file = logged.rewards_path / "liked" / "answers" / "round-009.jsonl"
    stored = run_network(logged, "net", [file])
    assert store.read(logged.rewards_path, "net").facts == json.loads(json.dumps(stored.facts))
    line, worth, calibrated = shown(stored)
    assert str(line).startswith("net version 1, a network: ")
    assert isinstance(worth, Table)
    assert worth.row_count == len(logged.rewards)
    assert isinstance(calibrated, Table)
    weights_page.run_report(logged, "net", None)
    # As the objective of a policy: one more component of the log.
    there = with_components(reading.logged(logged), [stored])
    assert there.reward[~there.warm_up & (there.split != 2), -1].std() == pytest.approx(1, abs=1e-3)


class Sends:
    """Sends with probability 3/4."""

    name, learned = "sends", False

    def action_probabilities(self, state: Any, legal: Any) -> Any:
        return np.tile([0.25, 0.75], (len(legal), 1))


def test_the_weight_of_a_week_by_hand(table_of_rows: Transitions) -> None:
    """mu = 1/2: a send counts 1.5, a hold 0.5; seven sends 1.5^7 = 17.09, seven holds 0.5^7; never above WEIGHT."""
    weeks = weeks_of(table_of_rows)
    found = loop_asked.week_weights(table_of_rows, weeks, Sends())
    assert found == pytest.approx([1.5**7, 0.5**7])
    rare = Transitions(**{**vars(table_of_rows), "propensity": np.full(14, 0.1)})
    assert loop_asked.week_weights(rare, weeks, Sends()).max() == pytest.approx(loop_asked.WEIGHT)
    unknown = Transitions(**{**vars(table_of_rows), "propensity": np.full(14, np.nan)})
    with pytest.raises(InputError, match="run `tactful propensity`"):
        loop_asked.week_weights(unknown, weeks, Sends())


@pytest.fixture
def table_of_rows() -> Transitions:
    from tests.policies.conftest import make_table

    return make_table(["a"] * 14, [1] * 7 + [0] * 7, [0.5] * 14, [0.0] * 14)


def test_logs_are_stacked_as_logs_of_different_users(tmp_path: Path) -> None:
    config = config_of(tmp_path, RATER)
    assert config.simulate is not None
    plain = config.model_copy(update={"rewards": config.logged_rewards})
    one, two = (transitions_of(simulate(config.simulate, seed), plain) for seed in (1, 2))
    with pytest.raises(InputError, match="share a user id"):
        stacked([one, two])
    two = renamed(two, "later-")
    both = stacked([one, two])
    apart: list[Weeks] = [weeks_of(each) for each in (one, two)]
    together = weeks_of(both)
    assert together.id.tolist() == [*apart[0].id, *apart[1].id]
    # Sums over a week are differences of running ones, which round otherwise.
    assert together.totals == pytest.approx(np.concatenate([each.totals for each in apart]), abs=1e-9)
    assert np.array_equal(both.next_row[len(one.user) :] >= 0, two.next_row >= 0)


def test_what_a_candidate_was_trained_on(tmp_path: Path) -> None:
    """As weights: a return by its name; as a component: a component; what weighs nothing was not trained on."""
    weights = config_of(tmp_path)
    store.add(weights.rewards_path, "liked", "weights", {"weights": {"clicks": 2.0}}, {})
    stored = watching.trained_on(weights, None)
    assert list(stored) == ["liked"]
    assert watching.returns_of(weights, stored) == {"liked": {"clicks": 2.0}, WRITTEN: GATE["return_weights"]}
    train = {**small(tmp_path)["train"], "learners": {"ddqn": 0.0}, "seeds": 1}
    rewards = [*small(tmp_path)["rewards"], "learned:liked"]
    mixed = config_of(
        tmp_path, rewards=rewards, gate={**GATE, "return_weights": {}},
        train={**train, "weights": {"liked": 1.0, "clicks": 0.5}},
    )  # fmt: skip
    assert watching.returns_of(mixed, watching.trained_on(mixed, None)) == {WRITTEN: {"clicks": 0.5}}
    without = config_of(tmp_path, rewards=rewards, train={**train, "weights": {"clicks": 0.5}})
    assert watching.trained_on(without, None) == {}
    assert watching.returns_of(without, {}) == {}


@pytest.mark.parametrize(
    ("name", "rounds", "changes", "words"),
    [
        ("liked", 0, {}, "--rounds is 0"),
        ("1st", 1, {}, "'1st' is no name"),
        ("other", 1, {}, "set train.weights_from = 'other'"),
        ("liked", 1, {"simulate": None, "learned": {"loop": {"rater": RATER}}}, r"needs a simulated world"),
        ("liked", 1, {"learned": {"loop": {"rater": {"joy": 1.0}}}}, "'joy' is no component"),
        ("liked", 1, {"train": None, "gate": {}}, r"has no \[train\]"),
    ],
)
def test_a_loop_that_cannot_be(tmp_path: Path, name: str, rounds: int, changes: dict[str, Any], words: str) -> None:
    config = config_of(tmp_path, **changes)
    with pytest.raises(InputError, match=words):
        run_loop(config, name, rounds, 10, Path("small.toml"))


def test_a_loop_goes_on_as_it_was_begun(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    folder = config.rewards_path / "liked"
    folder.mkdir(parents=True)
    begun = {"pairs": 10, "form": "weights", "simulated": False, "seed": 5}
    (folder / "loop.json").write_text(json.dumps({"begun": begun, "rounds": []}))
    with pytest.raises(InputError, match="begun with pairs = 10, now it is 12"):
        run_loop(config, "liked", 1, 12, Path("small.toml"))
    (folder / "loop.json").write_text("{")
    with pytest.raises(InputError, match="no state of a loop"):
        run_loop(config, "liked", 1, 10, Path("small.toml"))


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"form": "tree"}, "form: found 'tree'"),
        ({"candidates": 0}, "candidates is 0"),
        ({"exploration": 0.0}, "must lie in"),
    ],
)
def test_settings_of_a_loop_out_of_range(tmp_path: Path, changed: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        config_of(tmp_path, learned={"loop": changed})
