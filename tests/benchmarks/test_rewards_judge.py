"""The study of the judge errs as it says it does, and counts what it says it counts."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from benchmarks.rewards.judge import BIAS, BROKEN, FAULTS, WRONG, app, cosine, judging, part, summary
from models.rewards.judge.prompt import Constitution, question
from tests.models.rewards.openai_server import FAULTS as KNOWN

PRINCIPLES = Constitution("1. x", {1: "x"})
UTILITY = {f"week {n}": value for n, value in enumerate(np.linspace(-3, 3, 60))}


def asked(seed: int, a: str, b: str) -> int:
    say, _ = judging(UTILITY, seed)
    return int(json.loads(say(question(PRINCIPLES, a, b)))["answer"] == "A")


@pytest.mark.parametrize("seed", [2, 3], ids=["fresh noise", "one opinion"])
def test_the_judge_says_a_as_often_as_its_formula(seed: int) -> None:
    """P(says A) = e + (1 - 2e) sigma(w.d + b), over all 3,540 ordered pairs; and the same answer every time."""
    pairs = [(a, b) for a in UTILITY for b in UTILITY if a != b]
    said = np.array([asked(seed, a, b) for a, b in pairs])
    eta = np.array([UTILITY[a] - UTILITY[b] for a, b in pairs]) + BIAS
    p = WRONG + (1 - 2 * WRONG) / (1 + np.exp(-eta))
    for part_of in (eta < -1, np.abs(eta) <= 1, eta > 1):
        assert abs(said[part_of].mean() - p[part_of].mean()) < 4 * 0.5 / np.sqrt(part_of.sum())
    assert said[:50].tolist() == [asked(seed, a, b) for a, b in pairs[:50]]


def test_one_opinion_makes_fewer_conflicts_than_fresh_noise() -> None:
    names = list(UTILITY)[20:40]
    pairs = [(a, b) for a in names for b in names if a < b]
    fresh, shared = (np.mean([asked(seed, a, b) == asked(seed, b, a) for a, b in pairs]) for seed in (2, 3))
    assert shared < fresh - 0.03


def test_requests_are_broken_as_often_as_it_says_and_not_the_same_for_ever() -> None:
    _, fault = judging(UTILITY, 5)
    asked = [question(PRINCIPLES, a, b) for a in UTILITY for b in UTILITY if a != b]
    found = [fault(0, each) for each in asked]
    share = np.mean([each is not None for each in found])
    assert abs(share - FAULTS) < 4 * np.sqrt(FAULTS * (1 - FAULTS) / len(asked))
    assert {each for each in found if each} == set(BROKEN) <= set(KNOWN)
    lost = next(n for n, each in enumerate(found) if each)
    assert any(fault(0, asked[lost]) is None for _ in range(3))


def test_a_small_study_has_every_number(tmp_path: Path) -> None:
    found = part(1, 1, tmp_path, seeds=2, users=150, pairs=80)
    left = json.loads((tmp_path / "judge.json").read_text())
    assert (
        left["judge_cosine"] == found["judge_cosine"] == np.mean([row["cosine"]["corrected"] for row in left["seeds"]])
    )
    assert [row["one_opinion"] for row in left["seeds"]] == [True, False]
    assert found["judge"]["calls"] >= 2 * 2 * 80
    for row in left["seeds"]:
        assert row["calls"] > 160
        assert 0 < row["conflicts"] < 0.7
        assert row["wrong"][1] <= row["wrong"][0] <= row["wrong"][2]
    again = part(1, 1, tmp_path / "again", seeds=2, users=150, pairs=80)
    assert again == found, "several requests at a time, and the same numbers"


def test_the_summary_by_hand() -> None:
    row = {
        "cosine": {"corrected": 0.9, "uncorrected": 0.8, "one_order": 0.7},
        "cosine_raw": dict.fromkeys(("corrected", "uncorrected", "one_order"), 0.5),
        "length": dict.fromkeys(("corrected", "uncorrected", "one_order"), 1.0),
        "wrong": [0.25, 0.1, 0.3],
        "bias": [0.4, 0.3, 0.45],
        "conflicts": 0.4,
        "calls": 10,
        "asked_again": 1,
        "no_answer": 0,
    }
    other = {**row, "cosine": {**row["cosine"], "corrected": 1.0}, "bias": [0.6, 0.5, 0.7]}
    found = summary([row, other])
    assert found["judge_cosine"] == pytest.approx(0.95)
    told = found["judge"]
    assert told["above_bar"] == 1
    assert (told["wrong"]["covered"], told["bias"]["covered"]) == (2, 1)
    assert told["wrong"]["width"] == pytest.approx(0.2)
    assert told["bias"]["mean"] == pytest.approx(0.5)
    # Student's t at one degree of freedom: 12.706 x 0.0707 / sqrt(2).
    assert told["cosine"]["corrected"]["high"] - 0.95 == pytest.approx(12.7062 * 0.05, rel=1e-4)
    assert (told["calls"], told["asked_again"]) == (20, 2)
    assert cosine(np.array([3.0, 4.0]), np.array([4.0, 3.0])) == pytest.approx(24 / 25)


def test_it_runs_by_itself(tmp_path: Path) -> None:
    words = ["--out", str(tmp_path), "--seeds", "2", "--users", "100", "--pairs", "50"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert "judge_cosine" in done.output
