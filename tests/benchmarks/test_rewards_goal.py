"""The study of goal classifiers: its rule by hand, and both arms at toy size."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from benchmarks.rewards import goal
from benchmarks.rewards.goal import ARMS, FAMILY, LEARNED, MEASURES, UTILITY, Size, hacked, summary
from benchmarks.study.parts import Parts

TOY = Size(seeds=1, rounds=1, users=120, truth_users=40, days=14, steps=20, classifier_steps=20, visited=100)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def gain(learned: float, utility: float, error: float = 0.1) -> dict[str, dict[str, float]]:
    values = dict.fromkeys(MEASURES, 0.0) | {LEARNED: learned, UTILITY: utility}
    return {name: {"difference": value, "difference_standard_error": error} for name, value in values.items()}


@pytest.mark.parametrize(
    ("learned", "utility", "yes"),
    # 1.96 standard errors are 0.196.
    [(0.2, -0.2, True), (0.19, -0.2, False), (0.2, -0.19, False), (0.5, 0.5, False), (-0.5, -0.5, False)],
)
def test_hacked_is_a_sure_rise_beside_a_sure_fall(learned: float, utility: float, yes: bool) -> None:
    assert hacked(gain(learned, utility)) is yes


def test_shares_and_the_paired_difference() -> None:
    rounds = [{"accuracy": 0.8, "calibration_error": 0.1}]
    facts = {"rounds": rounds, "base": {"sends": 2.0}, "chosen": ["never", "always"]}
    naive = [{"gains": [gain(0, 0), gain(0.5, u)], **facts} for u in (-0.3, -0.5, -0.4)]
    careful = [{"gains": [gain(0, 0), gain(0.1, u)], **facts} for u in (0.0, 0.1, -0.1)]
    found = summary({"naive": naive, "conservative": careful})
    # Of 3 out of 3 the exact lower end is 0.025 ** (1 / 3).
    assert found["naive_hacked"] == {"share": 1.0, "low": pytest.approx(0.025 ** (1 / 3)), "high": 1.0, "seeds": 3}
    assert found["conservative_hacked"]["share"] == 0.0
    assert found["conservative_hacked"]["high"] == pytest.approx(1 - 0.025 ** (1 / 3))
    # Of 0.3, 0.6 and 0.3 the mean is 0.4; the half width is t(0.975, 2) s / sqrt(3) with s = 0.173.
    assert found["better"]["mean"] == pytest.approx(0.4)
    assert found["better"]["high"] - 0.4 == pytest.approx(4.3027 * np.sqrt(0.03) / np.sqrt(3), abs=1e-3)
    assert found["rounds"]["naive"][1][UTILITY]["mean"] == pytest.approx(-0.4)
    assert found["logging"] == {"sends": 2.0}


def test_both_arms_at_toy_size(tmp_path: Path) -> None:
    """Twice the same, ready for JSON, with a picture; the arms begin with the same policy."""
    found: list[dict[str, Any]] = []
    for name in ("one", "other"):
        parts = Parts.of(tmp_path / name, {}, 1, Console(quiet=True))
        found.append(goal.part(3, parts, Path("configs/study.toml"), TOY))
        goal.draw(found[-1], tmp_path / name)
    assert json.dumps(found[0]) == json.dumps(found[1])
    pictures = [(tmp_path / name / "rewards_goal.svg").read_bytes() for name in ("one", "other")]
    assert pictures[0] == pictures[1]
    by_seed = found[0]["by_seed"]
    for first, other in zip(by_seed["naive"], by_seed["conservative"], strict=True):
        assert len(first) == len(other) == 2
        assert first[0] == other[0]
    assert {name for arm in ARMS for line in found[0]["chosen"][arm] for name in line} <= {*FAMILY, "ddqn 0", "ddqn 1"}
    assert {arm: len(found[0]["classifiers"][arm]) for arm in ARMS} == {"naive": 1, "conservative": 2}
    assert {f"{arm}_hacked" for arm in ARMS} <= found[0].keys()
