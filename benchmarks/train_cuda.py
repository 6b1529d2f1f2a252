"""The learner on a CUDA device: `python -m benchmarks.train_cuda`, from a table that lies there whole.

Populations of 1, 16 and 128 members, 32 features, two hidden layers of `hidden` units, 2 actions, each member drawing
minibatches of its own, by every precision of `train.precision`: the update as single kernels, recorded as a graph, and
recorded with its small operations fused by torch.compile. Beside them, measured in the same run, what the device can
do: bytes a second of a copy, and FLOP a second of the layer's product and of a large one. What an update moves and
computes, and how many kernels it launches, say which of the three it waits for.

Rates are member-transitions a second, medians of `rounds` runs of at least `seconds` each; benchmarks/train.py counts
the FLOP of one.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks.train import ACTIONS, FEATURES, Sizes, random_log
from models.batch import Held, Resident
from models.blocks import Block, blocks_of
from models.distributed import Group
from models.members import Learner
from models.recorded import PRECISIONS, WARM_UP, Precision, products
from models.run import member_of
from models.scaling import Units
from models.training import TrainConfig

BARS = {1: 3e6, 128: 40e6}
"""Member-transitions a second, by members."""
WAYS = ("single kernels", "recorded", "fused and recorded")
LARGE = 8192
"""Of the square product that shows what the device can do."""

console = Console(soft_wrap=True, width=160)
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def resident(rows: int, device: torch.device) -> Resident:
    """As `random_log`, made where it lies: each user 50 decisions, the last one followed by nothing."""
    generator = torch.Generator(device).manual_seed(0)

    def uniform(low: float, high: float) -> Tensor:
        return torch.empty(rows, device=device).uniform_(low, high, generator=generator)

    last = torch.arange(1, rows + 1, device=device) % 50 == 0
    return Resident(
        state=torch.randn(rows, FEATURES, device=device, generator=generator),
        legal=torch.ones(rows, ACTIONS, dtype=torch.bool, device=device),
        action=(uniform(0, 1) < 0.5).to(torch.uint8),
        reward=torch.randn(rows, 1, device=device, generator=generator),
        elapsed=uniform(0.5, 2.0),
        stops=last,
        follows=~last,
    )


def block_of(feed: Held, units: Units, sizes: Sizes, members: int, precision: Precision, fused: bool) -> Block:
    config = TrainConfig(
        weights={"clicks": 1.0}, steps=1_000_000, batch_size=sizes.batch, hidden=(sizes.hidden, sizes.hidden),
        precision=precision, compile=fused,
    )  # fmt: skip
    those = [member_of("cql", m, Learner(), config, units, m, m) for m in range(members)]
    (block,) = blocks_of(those, config, feed, torch.zeros(members, 1))
    return block


def timed(update: Callable[[int], Any], rounds: int, seconds: float) -> dict[str, Any]:
    """Updates a second: the median of `rounds` runs, each, and how long the first updates took."""
    started = time.perf_counter()
    done = 2 * WARM_UP
    for step in range(done):
        update(step)
    torch.cuda.synchronize()
    first = time.perf_counter() - started
    count = 8
    rates: list[float] = []
    while len(rates) < rounds:
        started = time.perf_counter()
        for step in range(done, done + count):
            update(step)
        torch.cuda.synchronize()
        took, done = time.perf_counter() - started, done + count
        if took < seconds:
            count = max(2 * count, int(1.2 * count * seconds / took))
        else:
            rates.append(count / took)
    return {"updates_per_s": median(rates), "runs": rates, "first_updates_s": first}


def kernels(update: Callable[[int], Any]) -> dict[str, Any]:
    """How many kernels an update launches, and how long they run one after another."""
    for step in range(WARM_UP):
        update(step)
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        update(WARM_UP)
        torch.cuda.synchronize()
    found = [
        each for each in seen.key_averages() if each.self_device_time_total > 0 and not each.key.startswith("aten")
    ]
    longest = sorted(found, key=lambda each: -each.self_device_time_total)[:12]
    return {
        "kernels": sum(each.count for each in found),
        "us": sum(each.self_device_time_total for each in found),
        "longest": [[each.key[:100], each.count, each.self_device_time_total] for each in longest],
    }


def ceilings(sizes: Sizes, device: torch.device) -> dict[str, float]:
    """Bytes a second of a copy, read and written; FLOP a second of products."""

    def rate(work: Callable[[], Any], amount: float) -> float:
        return amount * float(timed(lambda _: work(), 3, 0.1)["updates_per_s"])

    source = torch.empty(2**30, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    found = {"copy bytes/s": rate(lambda: target.copy_(source), 2 * 2**30)}
    large, layer = torch.randn(LARGE, LARGE, device=device), torch.randn(128, sizes.batch, sizes.hidden, device=device)
    weight = torch.randn(128, sizes.hidden, sizes.hidden, device=device)
    for precision in PRECISIONS:
        kind = torch.bfloat16 if precision == "bf16" else torch.float32
        a, x, w = large.to(kind), layer.to(kind), weight.to(kind)
        with products(precision):
            found[f"{precision} {LARGE}^3 FLOP/s"] = rate(lambda a=a: a @ a, 2 * LARGE**3)  # type: ignore[misc]
            flop = 2 * 128 * sizes.batch * sizes.hidden**2
            found[f"{precision} layer of 128 FLOP/s"] = rate(lambda x=x, w=w: torch.bmm(x, w), flop)  # type: ignore[misc]
    return found


@app.command()
def bench(
    rows: Annotated[int, typer.Option(min=100, help="resident transitions")] = 50_000_000,
    members: Annotated[str, typer.Option(help="members of the populations")] = "1,16,128",
    hidden: Annotated[int, typer.Option(min=1, help="units of each of two hidden layers")] = 256,
    batch: Annotated[int, typer.Option(min=1, help="transitions per update and member")] = 1024,
    rounds: Annotated[int, typer.Option(min=1)] = 5,
    seconds: Annotated[float, typer.Option(min=0.001, help="of a run, at least")] = 0.5,
    precisions: Annotated[str, typer.Option(help="of train.precision")] = ",".join(PRECISIONS),
    ways: Annotated[str, typer.Option(help="of an update")] = ",".join(WAYS),
    out: Annotated[Path, typer.Option(help="where summary.json lies")] = Path("runs/bench-train-cuda"),
) -> None:
    """The whole benchmark; writes OUT/summary.json."""
    if not torch.cuda.is_available():
        console.print("torch sees no CUDA device here; benchmarks/train.py measures the CPU.", style="red")
        raise typer.Exit(2)
    out.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda")
    table = random_log(100_000)
    units = Units.of(table, np.ones(len(table.user), dtype=bool))
    data = resident(rows, device)
    feed = Held(data, torch.arange(rows, device=device))
    numbers = [int(each) for each in members.split(",")]
    sizes = Sizes(rows, batch, max(numbers), hidden, hidden)
    report: dict[str, Any] = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "sizes": vars(sizes),
        "bytes_per_transition": data.bytes_per_transition,
        "flop_per_member_transition": sizes.flop(hidden),
        "ceilings": ceilings(sizes, device),
        "found": [],
    }
    for count in numbers:
        for precision in (each for each in PRECISIONS if each in precisions.split(",")):
            for way in (each for each in WAYS if each in ways.split(",")):
                report["found"].append(_one(feed, units, sizes, count, precision, way, rounds, seconds))
                (out / "summary.json").write_text(json.dumps(report, indent=1) + "\n")
    best = {n: max(each["per_s"] for each in report["found"] if each["members"] == n) for n in numbers}
    report |= {f"p{n}_member_transitions_per_s": rate for n, rate in best.items()}
    report["bars_met"] = {f"p{n}": best[n] >= bar for n, bar in BARS.items() if n in best}
    (out / "summary.json").write_text(json.dumps(report, indent=1) + "\n")
    console.print(_shown(report))


def _one(
    feed: Held, units: Units, sizes: Sizes, count: int, precision: Precision, way: str, rounds: int, seconds: float
) -> dict[str, Any]:
    # Of one function it compiles no more than a few versions, and what comes after them runs as it is.
    torch._dynamo.reset()
    block, group = block_of(feed, units, sizes, count, precision, way == WAYS[2]), Group()

    def singly(step: int) -> None:
        block.descent.begin(step)
        with products(precision):
            block.single(block.draws.at(step))

    update = singly if way == WAYS[0] else lambda step: block.update(step, group)
    torch.cuda.reset_peak_memory_stats()
    told = timed(update, rounds, seconds) | {"members": count, "precision": precision, "way": way}
    told["per_s"] = told["updates_per_s"] * sizes.batch * count
    told["peak_bytes"] = torch.cuda.max_memory_allocated()
    # Of what is replayed a profiler sees no more than of what was recorded.
    told |= kernels(singly)
    console.print(f"{count} members, {precision}, {way}: {told['per_s'] / 1e6:.2f} M/s, {told['kernels']} kernels of "
                  f"{told['us']:.0f} us, first {told['first_updates_s']:.1f} s")  # fmt: skip
    return told


def _shown(report: dict[str, Any]) -> Table:
    shown = Table("members", "precision", "update", "M/s", "us an update", "kernels", "their us", "first updates, s")
    for each in report["found"]:
        shown.add_row(
            *(str(each["members"]), each["precision"], each["way"], f"{each['per_s'] / 1e6:.2f}"),
            *(f"{1e6 / each['updates_per_s']:.0f}", str(each["kernels"]), f"{each['us']:.0f}"),
            f"{each['first_updates_s']:.1f}",
        )
    for name, value in report["ceilings"].items():
        shown.add_row("", "", name, f"{value / 1e12:.2f} T")
    return shown


if __name__ == "__main__":
    app()
