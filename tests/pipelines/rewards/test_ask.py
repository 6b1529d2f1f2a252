"""Which pairs a page asks, what is on it, and what it says where it cannot be made."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from models import table
from models.errors import InputError
from models.rewards import answers, network, store
from models.rewards.asking import repeated, with_repeats
from models.rewards.weeks import Weeks, weeks_of
from pipelines.cli import app
from pipelines.rewards.ask import Request, ask
from pipelines.rewards.fitting import run_fit
from pipelines.rewards.fitting_network import run_network
from pipelines.rewards.page import page_data
from tests.pipelines.rewards.simulated import ROOT, demo, log

RULE = {"sends": -0.5, "clicks": 2.0, "visits": 0.4, "weekly_active_days": 0.2}
CONFIG = Path("configs/demo.toml")


@pytest.fixture(autouse=True)
def _no_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "read", lambda *_: log())


def shown(path: Path) -> dict:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', path.read_text(), re.S)
    assert found is not None
    return json.loads(found[1])


def ids(path: Path) -> list[tuple[str, str]]:
    data = shown(path)
    return [tuple(data["weeks"][week]["id"] for week in pair["weeks"]) for pair in data["pairs"]]


def answer(path: Path, weeks: Weeks, pairs: list[tuple[str, str]], noise: float = 1.0, seed: int = 0) -> Path:
    """Answers to `pairs` by a rater with weights RULE and a standard logistic noise times `noise`."""
    worth = np.array([RULE.get(name, 0.0) for name in log().contract.rewards])
    gap = (
        weeks.totals[weeks.places([a for a, _ in pairs])] - weeks.totals[weeks.places([b for _, b in pairs])]
    ) @ worth
    better = gap + noise * np.random.default_rng(seed).logistic(size=len(pairs)) > 0
    said = [
        answers.Pair(a, b, "left" if first else "right", "ann") for (a, b), first in zip(pairs, better, strict=True)
    ]
    answers.write(path, said)
    return path


def unordered(pairs: list[tuple[str, str]]) -> set[frozenset[str]]:
    return {frozenset(pair) for pair in pairs}


def test_the_first_pairs_are_of_chance_and_some_come_twice_with_sides_swapped(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "ask.html"
    asked = ask(demo(tmp_path), Request(30, "ann", out, repeats=0.2, seed=4), CONFIG)

    data, pairs = shown(out), ids(out)
    assert (asked.by, asked.file, len(pairs)) == ("chance", "answers-ann.jsonl", 30)
    again = [(pair["repeats"], place) for place, pair in enumerate(data["pairs"]) if pair["repeats"] is not None]
    assert len(again) == 6
    for first, later in again:
        assert first < later
        assert pairs[later] == pairs[first][::-1]
    assert len(unordered(pairs)) == 24
    assert list(tmp_path.rglob("*.part")) == []


def test_the_same_seed_asks_every_rater_the_same_and_another_seed_other_pairs(tmp_path: Path) -> None:
    asked = {}
    for rater, seed in (("ann", 1), ("bob", 1), ("eve", 2)):
        ask(demo(tmp_path), Request(10, rater, tmp_path / rater, seed=seed), CONFIG)
        asked[rater] = ids(tmp_path / rater)
    assert asked["ann"] == asked["bob"]
    assert not unordered(asked["ann"]) & unordered(asked["eve"])
    assert shown(tmp_path / "ann")["key"] != shown(tmp_path / "bob")["key"], "one browser, two raters"


def test_users_of_the_test_split_are_not_asked_about(tmp_path: Path) -> None:
    ask(demo(tmp_path), Request(400, "ann", tmp_path / "a", repeats=0.0), CONFIG)
    weeks = weeks_of(log())
    of = log().split[weeks.first[weeks.places([name for pair in ids(tmp_path / "a") for name in pair])]]
    assert set(of.tolist()) == {0, 1}
    assert 2 in log().split[weeks.first]


def test_once_fitted_the_pairs_are_those_that_tell_most(tmp_path: Path) -> None:
    """Against pairs by chance: the expected information d'Vd h(d) of what is asked next is larger."""
    config, weeks = demo(tmp_path), weeks_of(log())
    ask(config, Request(60, "ann", tmp_path / "first", "mine", repeats=0.0), CONFIG)
    said = answer(tmp_path / "first.jsonl", weeks, ids(tmp_path / "first"))
    run_fit(config, "mine", [said])

    chosen = ask(config, Request(10, "ann", tmp_path / "next", "mine", [said], 0.0, seed=5), CONFIG)
    by_chance = ask(config, Request(10, "ann", tmp_path / "chance", None, [said], 0.0, seed=5), CONFIG)

    assert (chosen.by, by_chance.by) == ("what mine v1 leaves open", "chance")
    assert chosen.command.endswith("mine --answers " + f"{said} --answers answers-ann.jsonl")
    stored = json.loads((tmp_path / "rewards" / "mine" / "v0001" / "reward.json").read_text())
    cover, worth = np.array(stored["covariance"]), np.array([stored["weights"][name] for name in stored["rewards"]])
    columns = [log().contract.rewards.index(name) for name in stored["rewards"]]

    def information(path: Path) -> float:
        left, right = (weeks.places(list(side)) for side in zip(*ids(path), strict=True))
        gap = (weeks.totals[left] - weeks.totals[right])[:, columns]
        chance = 1 / (1 + np.exp(-gap @ worth))
        return float((np.einsum("nk,kl,nl->n", gap, cover, gap) * chance * (1 - chance)).sum())

    assert information(tmp_path / "next") > 2 * information(tmp_path / "chance")
    assert not unordered(ids(tmp_path / "next")) & unordered(ids(tmp_path / "first"))


def test_of_a_network_the_pairs_are_those_its_members_disagree_about(tmp_path: Path) -> None:
    config, weeks = demo(tmp_path, **{"learned.network.steps": "60"}), weeks_of(log())
    ask(config, Request(60, "ann", tmp_path / "first", repeats=0.0), CONFIG)
    said = answer(tmp_path / "first.jsonl", weeks, ids(tmp_path / "first"))
    stored = run_network(config, "felt", [said])

    chosen = ask(config, Request(10, "ann", tmp_path / "next", "felt", [said], 0.0), CONFIG)
    ask(config, Request(10, "ann", tmp_path / "chance", None, [said], 0.0), CONFIG)

    assert chosen.by == "what felt v1 leaves open"
    returns = network.member_returns(stored, log(), weeks)

    def doubt(path: Path) -> float:
        pairs = np.column_stack([weeks.places(list(side)) for side in zip(*ids(path), strict=True)])
        return float(network.disagreement(returns, pairs).min())

    assert doubt(tmp_path / "next") > doubt(tmp_path / "chance")


def test_a_goal_is_learned_from_no_pairs_and_leaves_them_to_chance(tmp_path: Path) -> None:
    store.add(tmp_path / "rewards", "around", "goal", {}, {})
    asked = ask(demo(tmp_path), Request(5, "ann", tmp_path / "a", "around"), CONFIG)
    assert asked.by == "chance, as around is a goal and learned from no pairs"


def test_no_pair_is_asked_again_until_none_is_left(tmp_path: Path) -> None:
    few = {"learned.days": "14"}
    config = demo(tmp_path, **few)
    weeks = weeks_of(log(), 14.0, log().split != 2)
    there = len(weeks.id) * (len(weeks.id) - 1) // 2
    ask(config, Request(there - 3, "ann", tmp_path / "a", repeats=0.0), CONFIG)
    said = [answer(tmp_path / "a.jsonl", weeks, ids(tmp_path / "a"))]
    ask(config, Request(3, "ann", tmp_path / "b", None, said, 0.0), CONFIG)
    said.append(answer(tmp_path / "b.jsonl", weeks, ids(tmp_path / "b")))
    assert len(unordered(ids(tmp_path / "a")) | unordered(ids(tmp_path / "b"))) == there
    with pytest.raises(InputError, match=rf"{there} of them asked; 1 new ones are wanted"):
        ask(config, Request(1, "ann", tmp_path / "c", None, said, 0.0), CONFIG)
    assert not (tmp_path / "c").exists()


def test_both_sides_share_every_scale() -> None:
    weeks = weeks_of(log())
    asked = with_repeats(np.array([[0, 1], [2, 3]]), 0, 0)
    data = page_data(log(), weeks, asked, 7.0)
    for place, component in enumerate(data["components"]):
        assert component["widest"] == pytest.approx(np.abs(weeks.totals[:4, place]).max(), abs=1e-6)
    assert {len(week["days"]) for week in data["weeks"]} == {data["rows"]} == {8}


def test_nothing_on_the_page_says_who_or_when(tmp_path: Path) -> None:
    ask(demo(tmp_path), Request(40, "ann", tmp_path / "a"), CONFIG)
    page = (tmp_path / "a").read_text()
    assert [user for user in log().user_id if f'"{user}"' in page] == []
    assert not re.search(r"20[23]\d-\d\d|\d{13,}", re.sub(r'"(id|key)": "[0-9a-f]{16}"', "", page))


@pytest.mark.parametrize(("n", "share", "repeats"), [(20, 0.1, 2), (9, 0.1, 0), (10, 0.1, 1), (3, 0.5, 1), (1, 0.5, 0)])
def test_the_share_of_repeats_is_rounded_down(n: int, share: float, repeats: int) -> None:
    assert repeated(n, share) == repeats
    pairs = np.arange(2 * (n - repeats)).reshape(-1, 2)
    assert len(with_repeats(pairs, repeats, 1)) == n


BAD = [
    (["--pairs", "0"], "pairs: 0 asked for; one or more are needed"),
    (["--pairs", "100000"], "new ones are wanted"),
    (["--rater", " "], "rater: ' ' is no name"),
    (["--rater", "a\nb"], "is no name"),
    (["--rater", "x" * 61], "at most 60 letters"),
    (["--repeats", "0.7"], "repeats is 0.7; it must be a share between 0 and 0.5"),
    (["--out", "/dev/null/ask.html"], "cannot be written"),
    (["--answers", "absent.jsonl"], "absent.jsonl: cannot be read"),
    (["--set", "learned.days=400"], "learned.days"),
]


@pytest.mark.parametrize(("words", "message"), BAD, ids=[" ".join(words)[:24] for words, _ in BAD])
def test_bad_input_is_told_by_name(tmp_path: Path, words: list[str], message: str) -> None:
    where = ["--set", f"run_dir={tmp_path}", "--out", str(tmp_path / "a.html")]
    done = CliRunner().invoke(app, ["rewards", "ask", str(ROOT / "configs" / "demo.toml"), *where, *words])
    assert done.exit_code != 0
    assert isinstance(done.exception, InputError)
    assert message in str(done.exception)


def test_a_pair_of_another_log_is_told(tmp_path: Path) -> None:
    answers.write(tmp_path / "other.jsonl", [answers.Pair("0" * 16, "1" * 16, "left", "ann")])
    with pytest.raises(InputError, match="'0000000000000000' is none of the"):
        ask(demo(tmp_path), Request(5, "ann", tmp_path / "a", None, [tmp_path / "other.jsonl"]), CONFIG)


def test_the_command_says_how_to_go_on(tmp_path: Path) -> None:
    words = [
        "--set",
        f"run_dir={tmp_path}",
        "--out",
        str(tmp_path / "a.html"),
        "--rater",
        "Ann O'Neil",
        "--pairs",
        "12",
    ]
    done = CliRunner().invoke(app, ["rewards", "ask", str(ROOT / "configs" / "demo.toml"), "clicks", *words])
    assert done.exit_code == 0, done.output
    assert "12 pairs of" in done.output
    assert "1 come twice" in done.output
    assert "rewards fit" in done.output
    assert "answers-Ann-O-Neil.jsonl" in done.output
