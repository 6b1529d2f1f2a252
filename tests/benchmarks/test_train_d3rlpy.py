"""The learner's loss is d3rlpy's for the same weights and batch, and the benchmark against it runs."""

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from benchmarks.train import BARS, Sizes, app
from benchmarks.train_equal import by_ours, case, differences

D3RLPY = Path(__file__).parents[2] / ".venv-d3rlpy" / "bin" / "python"


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_loss_and_gradients_are_those_of_d3rlpy(dtype: torch.dtype, tolerance: float) -> None:
    if not D3RLPY.exists():
        pytest.skip("d3rlpy is not installed; run `make d3rlpy-env`")
    found = differences(D3RLPY, dtype, features=8, hidden=32, rows=256)
    assert set(found) == {"loss", "td", "gap", *(f"{part}{layer}" for part in ("weight", "bias") for layer in range(3))}
    # d3rlpy adds its losses up in float32, whatever they are.
    assert max(found.pop(name) for name in ("loss", "td")) < 1e-6, found
    assert max(found.values()) < tolerance, found


@pytest.mark.parametrize("part", ["alpha", "gamma", "reward", "terminal", "elapsed", "target.weight2", "next_state"])
def test_the_case_tells_each_part_of_the_loss(part: str) -> None:
    given = case(torch.float32, features=8, hidden=32, rows=256)
    changed = given | {part: 1 - given[part] if part == "terminal" else 0.5 * given[part]}
    before, after = (by_ours(each)["weight2"].reshape(3, -1) for each in (given, changed))
    # Of each member, a hundred times what is tolerated.
    assert (abs(after - before).max(axis=1) > 1e-3 * abs(before).max()).all()


def test_the_flops_of_a_member_transition() -> None:
    # F = 2 (32 256 + 256 256 + 256 2) = 148,480; three forward, and twice one backward less 2 32 256 = 16,384.
    assert Sizes(1, 1, 1, 1, 1).flop(256) == 3 * 148_480 + 2 * 148_480 - 16_384


def test_the_benchmark_without_d3rlpy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.train.PEAK_FLOP", 1.0)
    monkeypatch.setattr("benchmarks.train.PRODUCTS", ((1, 8, 8, 8), (2, 8, 8, 8)))
    small = {"rows": 200, "rounds": 2, "updates": 3, "threads": 1, "members": 3, "hidden": 8, "narrow": 4, "batch": 16}
    words = [f"--{name}={value}" for name, value in small.items()]
    done = CliRunner().invoke(app, ["--alone", *words, "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "summary.json").read_text())
    # State 4 * 32, two actions' legality, action, reward, days, two flags.
    assert found["bytes_per_transition"] == 128 + 2 + 1 + 4 + 4 + 1 + 1
    assert set(found["bars_met"]) == {"p16_of_gemm_peak", "p16_hidden64_member_transitions_per_s"} < set(BARS)
    assert found["threads"] == 1
    one = found["by_threads"]["1"]["per_s"]
    assert {"p1", "p16", "p16 shared", "p16 narrow", "gemm 2x8x8x8"} <= set(one)
    assert all(len(each["runs"]) == 2 and min(each["runs"]) > 0 for each in one.values())


def test_an_environment_that_is_not_there_is_named_with_the_remedy(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["--python", str(tmp_path / "python"), "--out", str(tmp_path)])
    assert done.exit_code == 2
    assert "make d3rlpy-env" in done.output.replace("\n", " ")
