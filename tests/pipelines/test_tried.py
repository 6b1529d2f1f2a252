"""Who counts as a try of the gate's confidence: every policy judged on decisions of the same time."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from models import artifact
from models.errors import InputError
from pipelines.config import Config, validate
from pipelines.jobs import judging

Judge = Callable[..., int]


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return validate(
        {
            "name": "tried",
            "run_dir": str(tmp_path),
            "rewards": ["sends"],
            "data": {"decisions": {"path": "decisions.csv"}},
            "features": {"context": ["relevance"]},
            "train": {"weights": {"sends": -1.0}, "learners": {"ddqn_cql": 1.0}},
        },
        "tried.toml",
    )


@pytest.fixture
def judge(config: Config) -> Judge:
    """How many were tried, once a graph was judged on test users whose decisions lie between two days of January."""

    def tried(first: int, last: int, *graphs: str, kappa: float = 1.0) -> int:
        artifacts: dict[str, Any] = {}
        for graph in graphs:
            folder = config.run_dir / "policies" / graph
            folder.mkdir(parents=True, exist_ok=True)
            (folder / artifact.GRAPH).write_bytes(graph.encode())
            artifacts[graph] = SimpleNamespace(decision={"rollout_share": kappa})
        window = [f"2026-01-{day:02d}T12:00:00Z" for day in (first, last)]
        return judging._candidates_tried(config, window, artifacts)

    return tried


def test_a_log_that_grows_or_rolls_by_a_night_keeps_counting(judge: Judge) -> None:
    assert [judge(1, 20 + night, f"grows {night}") for night in range(5)] == [1, 2, 3, 4, 5]
    # Days 4 to 13, 5 to 14, ...: all that were judged up to here looked at some of them.
    assert [judge(4 + night, 13 + night, f"rolls {night}") for night in range(3)] == [6, 7, 8]


def test_a_period_that_nobody_has_looked_at_starts_anew(judge: Judge) -> None:
    assert judge(1, 10, "a", "b") == 2
    assert judge(11, 20, "c") == 1
    # One that reaches into both counts both.
    assert judge(10, 11, "d") == 4
    assert judge(21, 28, "e") == 1


def test_the_same_candidate_is_one_try_however_often_it_is_judged(judge: Judge) -> None:
    assert [judge(1, 10, "a"), judge(1, 10, "a"), judge(1, 12, "a"), judge(1, 10, "b", "a")] == [1, 1, 1, 2]
    # Acting otherwise it is another one.
    assert judge(1, 10, "a", kappa=0.5) == 3


def test_a_candidate_counts_in_every_period_it_was_judged_in(judge: Judge) -> None:
    judge(1, 5, "a")
    judge(21, 25, "a")
    assert judge(11, 15, "b") == 1
    assert [judge(2, 3, "c"), judge(22, 23, "d")] == [2, 2]


def test_what_is_recorded(config: Config, judge: Judge) -> None:
    judge(1, 10, "a")
    (entry,) = json.loads((config.run_dir / "tried.json").read_text())
    assert entry | {"candidate": ""} == {
        "candidate": "", "first": "2026-01-01T12:00:00Z", "last": "2026-01-10T12:00:00Z"
    }  # fmt: skip
    assert [path.name for path in config.run_dir.glob("tried*")] == ["tried.json"]


def test_a_record_without_times_is_refused(config: Config, judge: Judge) -> None:
    (config.run_dir / "tried.json").write_text(json.dumps({"0" * 64: ["1" * 64]}))
    with pytest.raises(InputError, match=r"tried\.json: an earlier version .* 1 candidates.* move it away"):
        judge(1, 10, "a")


def test_what_an_earlier_version_trained_is_to_be_trained_again(config: Config) -> None:
    with pytest.raises(InputError, match=r"train\.json: .*no `gains` of ddqn_cql.*run `tactful train` again"):
        judging._seeds(config, {"agreement": {"ddqn_cql": 0.9}})
