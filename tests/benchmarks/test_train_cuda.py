"""The benchmark on a CUDA device: small where there is one, and a clear word where there is none."""

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from benchmarks.train_cuda import app, resident
from models.batch import Resident
from models.losses import discount_of


def test_without_a_device_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    done = CliRunner().invoke(app, ["--out", str(tmp_path / "found")])
    assert done.exit_code == 2
    assert "torch sees no CUDA device here" in done.output
    assert not (tmp_path / "found").exists()


def test_the_table_that_is_made_in_place_has_what_an_update_needs() -> None:
    data: Resident = resident(120, torch.device("cpu"))
    assert data.bytes_per_transition == 4 * 32 + 2 + 1 + 4 + 4 + 1 + 1
    # Each user has 50 decisions: after the last nothing is bootstrapped, and no row follows.
    assert torch.equal(data.stops, ~data.follows)
    assert data.stops.nonzero().flatten().tolist() == [49, 99]
    batch = data.at(torch.tensor([[0, 49, 118]]), torch.tensor([0.9]))
    assert torch.equal(batch.next_state[0], data.state[[1, 49, 119]])
    assert torch.equal(batch.discount[0], discount_of(0.9, data.elapsed, data.stops)[[0, 49, 118]])
    assert 0.5 <= float(data.elapsed.min()) < float(data.elapsed.max()) < 2.0
    assert sorted(data.action.unique().tolist()) == [0, 1]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device here")
def test_the_benchmark_small(tmp_path: Path) -> None:
    small = {"rows": 2000, "members": "1,2", "hidden": 8, "batch": 16, "rounds": 2, "seconds": 0.01}
    words = [f"--{name}={value}" for name, value in small.items()]
    done = CliRunner().invoke(app, [*words, "--ways", "single kernels,recorded", "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "summary.json").read_text())
    assert len(found["found"]) == 2 * 3 * 2
    assert all(each["per_s"] > 0 and each["kernels"] > 50 for each in found["found"])
