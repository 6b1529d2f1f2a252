"""`tactful rewards fit` and `report`: from answers about a simulated log to a version, its page and the terminal."""

import hashlib
import html
import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import expit
from typer.testing import CliRunner

from models import table
from models.errors import InputError
from models.rewards import store
from models.rewards.answers import Answers, Pair, Ranking, write
from models.rewards.preferences import known, random_pairs
from models.rewards.weeks import Weeks, weeks_of
from models.table import Transitions
from pipelines.cli import app
from pipelines.config import Config, load
from pipelines.inprocess import transitions_of
from pipelines.rewards import fitting, weights_page
from policies.simulator import simulate

ROOT = Path(__file__).parents[3]
TRUTH = {"sends": -0.17, "clicks": 1.0, "visits": 0.05, "weekly_active_days": 0.5, "disables": -2.0}
HOSTILE = '<script>alert("x")</script> [bold]'
NOBODY = np.zeros((0, 2), dtype=np.int64)


def config_of(folder: Path, **changes: str) -> Config:
    plain = {"run_dir": str(folder), "simulate.users": "400", "etl.as_of": "2026-03-01T00:00:00Z"}
    return load(ROOT / "configs" / "demo.toml", {**plain, **changes})


@cache
def log() -> Transitions:
    config = config_of(Path("unused"))
    assert config.simulate is not None
    return transitions_of(simulate(config.simulate, 3), config)


@cache
def weeks() -> Weeks:
    return weeks_of(log(), 7.0)


def said(pairs: np.ndarray, rater: str, seed: int, side: float = 0.0) -> list[Pair]:
    gap = weeks().totals[pairs[:, 0]] - weeks().totals[pairs[:, 1]]
    truth = np.array([TRUTH[name] for name in log().contract.rewards])
    left = np.random.default_rng(seed).random(len(pairs)) < expit(gap @ truth + side)
    names = weeks().id[pairs].tolist()
    return [Pair(a, b, "left" if each else "right", rater) for (a, b), each in zip(names, left, strict=True)]


@cache
def answers() -> tuple[Answers, Answers]:
    """Of one rater, and of two others, one of whom presses a key."""
    pairs = random_pairs(weeks(), NOBODY, 150, np.random.default_rng(0))
    key = [Pair(*weeks().id[pair], "left", HOSTILE) for pair in pairs[:20]]
    return Answers(tuple(said(pairs, "ann", 1))), Answers((*said(pairs[:60], "bob", 2, side=1.5), *key))


@cache
def facts_of_all() -> dict[str, Any]:
    found = fitting.learned_facts(config_of(Path("unused")), log(), weeks(), answers()[0] + answers()[1])
    return {**found, "answers": "of all"}


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The answers as two files; the log is what training would read."""
    monkeypatch.setattr(table, "read", lambda *_, **__: log())
    paths = [tmp_path / "ann.jsonl", tmp_path / "others.jsonl"]
    for path, each in zip(paths, answers(), strict=True):
        write(path, each.pairs)
    return paths


def words(page: str) -> str:
    """What a reader sees."""
    body = re.sub(r"<style>.*?</style>|<head>.*?</head>", " ", page, flags=re.S)
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]*>", " ", body)))


def run(*arguments: object) -> str:
    done = CliRunner().invoke(app, ["rewards", *map(str, arguments)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def overrides(folder: Path) -> list[str]:
    return ["--set", f"run_dir={folder}", "--set", "simulate.users=400", "--set", "etl.as_of=2026-03-01T00:00:00Z"]


def test_from_answers_to_a_version_a_page_and_the_terminal(files: list[Path], tmp_path: Path) -> None:
    demo = ROOT / "configs" / "demo.toml"
    output = run("fit", demo, "people", "--answers", files[0], "--answers", files[1], *overrides(tmp_path))
    assert "people version 1" in output
    assert "Held out:" in output
    assert "in all of 20 decided pairs" in output
    facts = store.read(tmp_path / "rewards", "people").facts
    left: dict[str, Any] = json.loads((tmp_path / "steps" / "rewards_fit_people.json").read_text())
    assert {key: left[key] for key in facts} == facts
    assert left["version"] == 1
    page = run("report", demo, "people", *overrides(tmp_path))
    assert "rewards_people.html" in page.replace("\n", "")
    text = words((tmp_path / "rewards_people.html").read_text())
    for part in ("people version 1", "What is it worth?", "Weekly-active days", "favours left", "one key", HOSTILE):
        assert part in text


def test_the_facts_are_those_others_read(files: list[Path], tmp_path: Path) -> None:
    config = config_of(tmp_path)
    stored = fitting.run_fit(config, "people", files)
    facts, rewards = stored.facts, log().contract.rewards
    assert stored.kind == "weights"
    assert tuple(facts["rewards"]) == rewards == tuple(facts["weights"])
    assert facts["fingerprint"] == log().fingerprint
    assert facts["answers"] == hashlib.sha256(files[0].read_bytes() + files[1].read_bytes()).hexdigest()
    assert facts["days"] == 7.0
    for name, (low, high) in facts["intervals"].items():
        assert low < facts["weights"][name] < high
    truth_held = [low <= TRUTH[name] <= high for name, (low, high) in facts["intervals"].items()]
    assert sum(truth_held) >= 4
    compared = {each for pair in (answers()[0] + answers()[1]).pairs for each in (pair.left, pair.right)}
    splits = facts["counts"].pop("splits")
    assert splits == len(facts["splits"]) > 10
    assert facts["counts"] == {"pairs": 230, "rankings": 0, "ties": 0, "raters": 3, "weeks": len(compared),
                               "weeks_of_log": len(weeks().id), "contradictions": 0}  # fmt: skip
    held = facts["held_out"]
    assert held["comparisons"] == 230
    assert held["pairs_of_weeks"] == 150
    assert 0.5 < held["accuracy_by_side"] < held["accuracy"] < 1
    ann, bob, key = facts["raters"]
    assert (ann["favours"], bob["favours"], key["one_sided"]) == (None, "left", True)
    assert known(stored, rewards).weights.tolist() == list(facts["weights"].values())
    assert fitting.run_fit(config, "people", files[:1]).version == 2


def test_the_page_loads_nothing_and_names_no_user() -> None:
    page = weights_page.render(facts_of_all(), "people version 1")
    assert "<script" not in page
    assert "Content-Security-Policy" in page
    assert not re.search(r"(?:src|href)=\"(?!#|data:)", page)
    assert "http" not in re.sub(r"http-equiv", "", page)
    assert not any(str(user) in page for user in log().user_id)
    for tag in ("section", "table", "svg", "dl", "details"):
        assert page.count(f"<{tag}") == page.count(f"</{tag}>")


def test_what_could_not_be_learned_is_said(files: list[Path], tmp_path: Path) -> None:
    """Of 30 pairs hardly a weight is told from 0; a unit whose weight is not has ratios without bounds."""
    few = tmp_path / "few.jsonl"
    few.write_text("".join(files[0].read_text().splitlines(keepends=True)[:30]))
    names = '["sends", "weekly_active_days"]'
    changes = {"learned.preference.unit": "sends", "learned.preference.components": names}
    stored = fitting.run_fit(config_of(tmp_path, **changes), "people", [few])
    assert stored.facts["ratios"]["weekly_active_days"]["low"] is None
    assert "The weight of sends is not told from 0." in stored.facts["not_learned"]
    assert any("has no bounds: the weight of sends may be 0" in each for each in stored.facts["not_learned"])
    text = words(weights_page.render(stored.facts, "people version 1"))
    assert "unbounded" in text
    assert "No two raters decided the same user-weeks" in text


def test_rankings_of_the_same_weeks_are_fitted_and_called_untested(files: list[Path], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    order = [str(weeks().id[place]) for place in rng.choice(len(weeks().id), 12, replace=False)]
    path = tmp_path / "ranked.jsonl"
    path.write_text(
        "".join(
            json.dumps({"ranking": [order[i] for i in rng.permutation(12)], "rater": "cy"}) + "\n" for _ in range(8)
        )
    )
    settings = {"learned.preference.components": '["sends", "weekly_active_days"]'}
    stored = fitting.run_fit(config_of(tmp_path, **settings), "ranked", [path])
    assert stored.facts["held_out"] is None
    assert stored.facts["raters"][0]["side_interval"] is None
    text = words(weights_page.render(stored.facts, "ranked version 1"))
    assert "Untested" in text
    assert "Nothing could be held out" in text


def test_the_version_in_use_is_reported(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    for _ in range(2):
        store.add(config.rewards_path, "people", "weights", facts_of_all(), {})
    page = tmp_path / "rewards_people.html"
    weights_page.run_report(config, "people", None)
    assert "people version 2" in page.read_text()
    weights_page.run_report(config_of(tmp_path, **{"learned.versions": "{people = 1}"}), "people", None)
    assert "people version 1" in page.read_text()
    weights_page.run_report(config, "people", 2)
    assert "people version 2" in page.read_text()


def test_a_version_that_is_not_of_weights_has_no_such_report(tmp_path: Path) -> None:
    store.add(tmp_path / "rewards", "visited", "goal", {}, {})
    with pytest.raises(InputError, match="visited version 1 is of kind goal; this report is of weights"):
        weights_page.run_report(config_of(tmp_path), "visited", None)
    with pytest.raises(InputError, match="no learned reward"):
        weights_page.run_report(config_of(tmp_path), "people", None)


def test_nothing_is_written_where_answers_are_of_another_log(files: list[Path], tmp_path: Path) -> None:
    other = tmp_path / "other.jsonl"
    write(other, [Pair("0123456789abcdef", str(weeks().id[0]), "left", "ann")])
    with pytest.raises(InputError, match=r"'0123456789abcdef' is none of the \d+ user-weeks of this log"):
        fitting.run_fit(config_of(tmp_path), "people", [*files, other])
    assert store.versions(tmp_path / "rewards", "people") == []
    assert not (tmp_path / "steps" / "rewards_fit_people.json").exists()


def test_settings_are_keys_of_the_configuration(tmp_path: Path) -> None:
    found = config_of(tmp_path, **{"learned.preference.folds": "3", "learned.preference.side_sd": "0.5"})
    assert (found.learned.preference.folds, found.learned.preference.side_sd) == (3, 0.5)
    with pytest.raises(InputError, match=r"learned\.preference\.folds is 1"):
        config_of(tmp_path, **{"learned.preference.folds": "1"})
    with pytest.raises(InputError, match="fold"):
        config_of(tmp_path, **{"learned.preference.fold": "3"})


def test_pairs_and_rankings_add_up(files: list[Path], tmp_path: Path) -> None:
    pairs = random_pairs(weeks(), NOBODY, 60, np.random.default_rng(1))
    ranking = Ranking(tuple(str(each) for each in weeks().id[:4]), "ann")
    both = Answers(tuple(said(pairs, "ann", 3)), (ranking,))
    settings = {"learned.preference.components": '["sends", "weekly_active_days"]'}
    facts = fitting.learned_facts(config_of(tmp_path, **settings), log(), weeks(), both)
    assert facts["counts"]["rankings"] == 1
    assert facts["raters"][0]["answers"] == 61
    assert facts["raters"][0]["pairs"] == 60
