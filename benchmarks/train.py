"""The learner against d3rlpy's DiscreteCQL on one random log: `make bench-train`, or `python -m benchmarks.train`.

First loss and gradients of both are compared (benchmarks/train_equal.py). Then, on one thread and on `threads`, all
contenders in turn, `rounds` times, each warmed up once:

- d3rlpy: one member, in a process of its own; with its sampling, as `fit` does it, and without;
- populations of one and of `members`, with two hidden layers of `hidden` and of `narrow` units, each member drawing
  minibatches of its own, or all of them sharing one (`shared`): `Block.update` in the order of `models.learn.learn`;
- the GEMM peak: the product that does best among several of the size of a layer and larger.

A member-transition is one transition that one member was updated with. It costs, S features, H hidden units, O outputs,

    F = 2 (S H + H H + H O)               a forward pass: a multiplication and an addition per weight
    3 F                                   Q(s) and Q(s') of the online network, Q'(s') of the target network
    2 F - 2 S H                           backward: gradients of weights and of inputs, the state's left out
    5 F - 2 S H                           in all: 726,016 FLOP for S = 32, H = 256, O = 2

Biases, activations, the loss, Adam and the target network's step are not counted.
"""

import json
import os
import platform
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from itertools import repeat
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.train_equal import SCRIPT, differences
from models.batch import Held, Resident, rows_of
from models.blocks import Block, abreast, blocks_of
from models.contract import Contract
from models.distributed import Group
from models.members import Learner
from models.run import member_of
from models.scaling import Units
from models.table import Transitions
from models.training import TrainConfig

Report = dict[str, Any]

FEATURES, ACTIONS = 32, 2
PER_USER = 50
"""Decisions; the last of a user is terminal for every fifth, else truncated."""
SPAN = 60
"""Updates of a block before the next, as `learn` makes them between two points of a curve of 3000 updates."""
TOLERANCE = 1e-5
"""Of loss and gradients against d3rlpy's, relative, in float32."""
PRODUCTS = ((1, 2048, 2048, 2048), (1, 1024, 1024, 1024), (4, 1024, 256, 256), (16, 1024, 256, 256))
"""Of the GEMM peak: matrices, rows, inner, columns."""
PEAK_FLOP = 40e9
"""At each product, each round."""
BARS = {
    "p1_to_d3rlpy": 3.5,
    "p16_to_d3rlpy": 5.5,
    "p16_of_gemm_peak": 0.55,
    "p16_hidden64_member_transitions_per_s": 1e6,
}

console = Console(soft_wrap=True)
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@dataclass(frozen=True)
class Sizes:
    rows: int
    batch: int
    members: int
    hidden: int
    narrow: int

    def flop(self, hidden: int) -> int:
        """Of a member-transition."""
        forward = 2 * (FEATURES * hidden + hidden * hidden + hidden * ACTIONS)
        return 5 * forward - 2 * FEATURES * hidden


def random_log(rows: int) -> Transitions:
    """Normal states, coin flips for actions, rewards of no meaning; decisions half a day to two apart."""
    rng = np.random.default_rng(0)
    user = np.arange(rows) // PER_USER
    last = np.diff(user, append=-1) != 0
    terminal = last & (user % 5 == 0)
    return Transitions(
        contract=Contract(("hold", "send"), tuple(f"f{s}" for s in range(FEATURES)), ("clicks",)),
        user=user,
        user_id=np.arange(user[-1] + 1).astype(str).astype(object),
        decided_at=np.arange(rows),
        state=rng.standard_normal((rows, FEATURES), dtype=np.float32),
        legal=np.ones((rows, ACTIONS), dtype=bool),
        action=rng.integers(0, ACTIONS, rows),
        propensity=np.full(rows, 1 / ACTIONS),
        estimated=np.zeros(rows, dtype=bool),
        reward=rng.standard_normal((rows, 1)),
        elapsed_days=rng.uniform(0.5, 2.0, rows),
        terminal=terminal,
        truncated=last & ~terminal,
        silent=np.zeros(rows, dtype=bool),
        warm_up=np.zeros(rows, dtype=bool),
        split=np.zeros(rows, dtype=np.int8),
        version=0,
        fingerprint="random",
    )


class Ours:
    """A population, kept between rounds."""

    def __init__(
        self, feed: Held, units: Units, sizes: Sizes, members: int, hidden: int, threads: int, shared: bool
    ) -> None:
        config = TrainConfig(
            weights={"clicks": 1.0}, steps=100_000, batch_size=sizes.batch, hidden=(hidden, hidden), threads=threads
        )
        those = [member_of("cql", m, Learner(), config, units, m, 0 if shared else m) for m in range(members)]
        self.blocks = blocks_of(those, config, feed, torch.zeros(members, 1))
        self.threads = threads
        self.done = 0
        self.transitions = sizes.batch * members
        """Of an update."""

    def run(self, updates: int) -> float:
        """Seconds of so many updates of every member."""
        group, end, started = Group(), self.done + updates, time.perf_counter()

        def go_on(block: Block, first: int) -> None:
            for step in range(first, min(first + SPAN, end)):
                block.update(step, group)

        with abreast(self.blocks, self.threads, group) as each:
            for first in range(self.done, end, SPAN):
                list(each(go_on, self.blocks, repeat(first)))
        self.done = end
        return time.perf_counter() - started


class D3rlpy:
    """d3rlpy in a process of its own, which waits while others run."""

    def __init__(self, python: Path, table: Transitions, sizes: Sizes, out: Path) -> None:
        log = out / "log.npz"
        columns = ("state", "action", "reward", "terminal", "truncated")
        np.savez(log, actions=ACTIONS, **{name: getattr(table, name) for name in columns})
        words = [str(python), str(SCRIPT), "time", str(log), str(sizes.hidden), str(sizes.batch)]
        self.said = out / "d3rlpy.log"
        with self.said.open("w") as said:
            self.process = subprocess.Popen(
                words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, text=True
            )

    def run(self, updates: int, threads: int) -> tuple[float, float]:
        """Seconds of so many updates, and those of them that it drew minibatches in."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps({"threads": threads, "updates": updates}), file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if not answer:
            console.print(f"d3rlpy ended with {self.process.wait()}; {self.said} says why.", style="red")
            raise typer.Exit(1)
        told = json.loads(answer)
        return told["seconds"], told["sampling"]

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def products() -> dict[str, Callable[[], float]]:
    """By name, what measures FLOP/s of each product once."""

    def of(matrices: int, rows: int, inner: int, columns: int) -> Callable[[], float]:
        a, b = torch.randn(matrices, rows, inner), torch.randn(matrices, inner, columns)
        out, flop = torch.empty(matrices, rows, columns), 2 * matrices * rows * inner * columns
        count = max(1, round(PEAK_FLOP / flop))

        def measure() -> float:
            started = time.perf_counter()
            for _ in range(count):
                if matrices == 1:
                    torch.mm(a[0], b[0], out=out[0])
                else:
                    torch.bmm(a, b, out=out)
            return count * flop / (time.perf_counter() - started)

        return measure

    return {"gemm " + "x".join(map(str, shape)): of(*shape) for shape in PRODUCTS}


def measured(
    feed: Held, units: Units, sizes: Sizes, rival: D3rlpy | None, threads: int, rounds: int, updates: int
) -> dict[str, Report]:
    """Per contender all runs and their median: transitions, member-transitions or FLOP a second."""
    torch.set_num_threads(threads)

    def ours(members: int, hidden: int, shared: bool = False) -> Callable[[], float]:
        learner = Ours(feed, units, sizes, members, hidden, threads, shared)
        count = updates if members == 1 else max(1, updates // 2)
        return lambda: learner.transitions * count / learner.run(count)

    many = sizes.members
    contenders = {
        "p1": ours(1, sizes.hidden),
        "p16": ours(many, sizes.hidden),
        "p16 shared": ours(many, sizes.hidden, shared=True),
        "p1 narrow": ours(1, sizes.narrow),
        "p16 narrow": ours(many, sizes.narrow),
        "p16 narrow shared": ours(many, sizes.narrow, shared=True),
        **products(),
    }
    found: dict[str, list[float]] = {}
    for turn in range(rounds + 1):
        told: dict[str, float] = {}
        if rival is not None:
            seconds, sampling = rival.run(updates, threads)
            told = {
                "d3rlpy": sizes.batch * updates / seconds,
                "d3rlpy without sampling": sizes.batch * updates / (seconds - sampling),
            }
        told |= {name: run() for name, run in contenders.items()}
        if turn:
            for name, rate in told.items():
                found.setdefault(name, []).append(rate)
            console.print(f"  {threads} thread{'s' * (threads > 1)}, {turn} of {rounds}: " + ", ".join(
                f"{name} {told[name] / 1e3:,.0f} k/s" for name in ("d3rlpy", "p1", "p16", "p16 narrow") if name in told
            ))  # fmt: skip
    return {name: {"median": median(runs), "runs": runs} for name, runs in found.items()}


@app.command()
def bench(
    rows: Annotated[int, typer.Option(min=100, help="transitions of the log")] = 500_000,
    rounds: Annotated[int, typer.Option(min=1, help="timed runs of each contender")] = 7,
    updates: Annotated[int, typer.Option(min=1, help="in a run of one member; half as many with more")] = 120,
    threads: Annotated[int, typer.Option(min=1, help="at which the bars are judged; 1 is measured as well")] = 2,
    members: Annotated[int, typer.Option(min=2)] = 16,
    hidden: Annotated[int, typer.Option(min=1, help="units of each of two hidden layers")] = 256,
    narrow: Annotated[int, typer.Option(min=1, help="the same, of the narrow populations")] = 64,
    batch: Annotated[int, typer.Option(min=1, help="transitions per update and member")] = 1024,
    python: Annotated[Path, typer.Option(help="of the environment with d3rlpy")] = Path(".venv-d3rlpy/bin/python"),
    alone: Annotated[bool, typer.Option("--alone", help="without d3rlpy")] = False,
    out: Annotated[Path, typer.Option(help="where summary.json lies")] = Path("runs/bench-train"),
) -> None:
    """The whole benchmark; writes OUT/summary.json."""
    if not alone and not python.exists():
        console.print(f"{python}: no such file. Make it (make d3rlpy-env), or leave d3rlpy out (--alone).", style="red")
        raise typer.Exit(2)
    out.mkdir(parents=True, exist_ok=True)
    sizes = Sizes(rows, batch, members, hidden, narrow)
    table = random_log(rows)
    units = Units.of(table, np.ones(rows, dtype=bool))
    data = Resident.of(table, units, torch.device("cpu"))
    feed = Held.of(data, rows_of(table, "train").target)
    apart = {} if alone else differences(python, features=FEATURES, hidden=hidden, rows=batch)
    if apart:
        console.print(f"Loss and gradients: at most {max(apart.values()):.1g} (relative) from d3rlpy's")
    rival = None if alone else D3rlpy(python, table, sizes, out)
    try:
        runs = {count: measured(feed, units, sizes, rival, count, rounds, updates) for count in sorted({1, threads})}
    finally:
        if rival is not None:
            rival.close()
    ratios = {count: _ratios(found, sizes) for count, found in runs.items()}
    summary = ratios[threads] | {
        "threads": threads,
        "bars_met": {name: ratios[threads][name] >= bar for name, bar in BARS.items() if name in ratios[threads]},
        "differences_from_d3rlpy": apart,
        "bytes_per_transition": data.bytes_per_transition,
        "flop_per_member_transition": {"hidden": sizes.flop(hidden), "narrow": sizes.flop(narrow)},
        "sizes": vars(sizes) | {"features": FEATURES, "actions": ACTIONS, "rewards": 1},
        "rounds": rounds,
        "cpus": os.cpu_count(),
        "versions": _versions(None if alone else python),
        "by_threads": {str(count): ratios[count] | {"per_s": runs[count]} for count in sorted(runs)},
    }
    (out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    console.print(_shown(runs, ratios, sizes))
    console.print(f"{data.bytes_per_transition:.0f} bytes a transition. Written: {out / 'summary.json'}")
    if apart and not max(apart.values()) < TOLERANCE:
        console.print("Loss or gradients differ from d3rlpy's:", apart, style="bold red")
        raise typer.Exit(1)


def _ratios(found: dict[str, Report], sizes: Sizes) -> dict[str, float]:
    """What the benchmark is for, at one number of threads; ratios to d3rlpy only where it ran."""
    rate = {name: float(each["median"]) for name, each in found.items()}
    peak = max(each for name, each in rate.items() if name.startswith("gemm"))
    against = {}
    if "d3rlpy" in rate:
        against = {f"{name}_to_d3rlpy": rate[name] / rate["d3rlpy"] for name in ("p1", "p16")}
    return against | {
        "p16_of_gemm_peak": rate["p16"] * sizes.flop(sizes.hidden) / peak,
        "p16_hidden64_member_transitions_per_s": rate["p16 narrow"],
        "gemm_peak_flop_per_s": peak,
    }


def _versions(python: Path | None) -> dict[str, str]:
    found = {name: version(name) for name in ("torch", "numpy")} | {"python": platform.python_version()}
    if python is not None:
        asked = "from importlib.metadata import version; print(version('d3rlpy'), version('torch'))"
        told = subprocess.run([python, "-c", asked], check=True, capture_output=True, text=True).stdout.split()
        found |= {"d3rlpy": told[0], "torch of d3rlpy": told[1]}
    return found


def _shown(runs: dict[int, dict[str, Report]], ratios: dict[int, dict[str, float]], sizes: Sizes) -> Table:
    """Rates in thousands a second, products in GFLOP a second; a column per number of threads."""
    counts = sorted(runs)
    table = Table("", *(f"{count} thread{'s' * (count > 1)}" for count in counts))
    titles = {
        "p1": f"one member, {sizes.hidden} hidden, k/s",
        "p16": f"{sizes.members} members, k/s",
        "p16 shared": f"{sizes.members} members that share minibatches, k/s",
        "p1 narrow": f"one member, {sizes.narrow} hidden, k/s",
        "p16 narrow": f"{sizes.members} members, {sizes.narrow} hidden, k/s",
        "p16 narrow shared": f"{sizes.members} members, {sizes.narrow} hidden, that share minibatches, k/s",
    }
    for name in runs[counts[0]]:
        gemm = name.startswith("gemm")
        title = f"{name}, GFLOP/s" if gemm else titles.get(name, f"{name}, k/s")
        table.add_row(title, *(f"{runs[count][name]['median'] / (1e9 if gemm else 1e3):,.0f}" for count in counts))
    for name in BARS:
        if name in ratios[counts[0]] and not name.endswith("per_s"):
            table.add_row(name, *(f"{ratios[count][name]:.2f}" for count in counts))
    return table


if __name__ == "__main__":
    app()
