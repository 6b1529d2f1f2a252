"""What a night says of itself on the terminal."""

from pathlib import Path
from typing import Any

import pytest

from pipelines.scoring.manifest import in_words

FOUND: dict[str, Any] = {
    "night": "2026-03-01",
    "candidates": 12_000,
    "users": 9_500,
    "by_action": {"badge": 1_000, "hold": 10_000, "push": 1_000},
    "by_rule": {"consent": 500, "policy": 11_500},
    "sends": 2_000,
    "expected_sends": 1_987.25,
    "void": 0,
    "forgotten": 0,
    "policy": "ddqn_cql",
    "model_version": "3",
    "version": 7,
}


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({}, []),
        ({"void": 1_200}, ["VOID: 1,200 candidates had expired before they were scored (score.valid_hours)"]),
        ({"forgotten": 2}, ["left out: 2 candidates of users who were erased"]),
    ],
)
def test_a_night_says_how_many_what_and_where(changed: dict[str, int], words: list[str]) -> None:
    assert in_words({**FOUND, **changed}, Path("/runs/my/scores")).splitlines() == [
        "night 2026-03-01: 12,000 candidates of 9,500 users scored, by ddqn_cql, version 3",
        "sends 2,000 (1,987.2 expected): 10,000 hold, 1,000 badge, 1,000 push",
        "decided by: policy 11,500, consent 500",
        *words,
        "written: /runs/my/scores (Delta table, version 7), /runs/my/scores/manifests/2026-03-01.json",
    ]
