"""What the learners are truly worth: `make study-learners`, Double DQN + CQL against d3rlpy's DiscreteCQL, and others.

On one simulated log, over seeds: each policy acts alone (no share of the logging policy, no exploration), and its true
value is that of the world itself, on the same luck for all. In the unit of the learner's objective,

    u(pi) = sum_c w_c V_c(pi) per user-week, gain = u(pi) - u(logging).

Both CQLs get the same transitions, layers, minibatch size, number of updates, learning rate, which falls linearly for
both, and alpha (d3rlpy's is half of ours, as its squared error is), and are taken at their last update. What they
cannot share is said here: d3rlpy learns one summed reward where ours has a head per component, started at its level;
its discount is one number a decision (ours is gamma^Delta), its target network is copied every 1 / target_rate updates
(ours follows by Polyak), its TD loss is Huber's, and it knows no legal actions: acting, both are held to them.

The log has 60,000 users unless said otherwise: with 6,000 or 20,000 each learner's seeds differ by as much as it gains,
and ten of them tell no two learners apart.

Bar: the paired 95% lower bound, over seeds, of u(ours) - u(d3rlpy) is at least -10% of d3rlpy's mean gain. Writes
OUT/summary.json.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table
from scipy import stats

from benchmarks.acting import Acting
from models import table
from models.batch import Held
from models.cloning import clone_behaviour
from models.learn import learn
from models.members import Learner
from models.network import Population
from models.optimise import FINAL_RATE
from models.reach import reach_within
from models.run import Run, prepare
from pipelines import jobs
from pipelines.config import Config, load
from pipelines.jobs import judging
from pipelines.simulate import policy_truth

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
# Into a file a table is as wide as it needs.
console = Console(soft_wrap=True, width=None if sys.stdout.isatty() else 160)

OURS, PEER = "ddqn_cql", "d3rlpy DiscreteCQL"
LEARNERS = {"ddqn": Learner(kind="ddqn"), OURS: Learner(), "iql": Learner(kind="iql"),
            "iql awr": Learner(kind="iql", policy="awr", temperature=3.0)}  # fmt: skip
FLOOR = -0.10


@app.command()
def main(
    seeds: Annotated[int, typer.Option(min=2)] = 10,
    config: Annotated[Path, typer.Option(help="a simulated log's configuration")] = Path("configs/demo.toml"),
    out: Annotated[Path, typer.Option()] = Path("runs/study-learners"),
    steps: Annotated[int | None, typer.Option(min=1, help="updates; by default as the configuration")] = None,
    users: Annotated[int, typer.Option(min=10, help="of the log")] = 60_000,
    truth_users: Annotated[int, typer.Option(min=10, help="that every policy acts on, each on the same luck")] = 20_000,
    peer: Annotated[Path, typer.Option(help="the Python of d3rlpy's environment")] = Path(".venv-d3rlpy/bin/python"),
) -> None:
    """Train, act, compare; exit code 1 where the bar is missed."""
    loaded = _configured(config, out, steps, users, truth_users)
    jobs.simulate(loaded)
    jobs.etl(loaded)
    transitions = table.read(loaded.transitions_path, loaded.contract)
    training = replace(loaded.learning, learners=dict(LEARNERS), seeds=seeds)
    run = prepare(transitions, training, loaded.seed, progress=True)
    policies = _ours(run)
    if peer.exists():
        policies += _peers(run, peer)
    else:
        console.print(f"{peer}: not there; `make d3rlpy-env` makes it. The study goes on without d3rlpy.")
    truth = policy_truth(loaded, policies, loaded.seed + judging.TRUTH_SEED, progress=True)
    found = _found(truth, training.weights, seeds)
    found |= {"users": users, "truth_users": truth_users, "transitions": len(transitions.user), "steps": training.steps,
              "threads": training.threads, "seeds": seeds}  # fmt: skip
    (out / "summary.json").write_text(json.dumps(found, indent=1) + "\n")
    console.print(_shown(found))
    if "lower_bound" in found:
        met = found["lower_bound"] >= found["floor"]
        console.print(
            f"{OURS} - {PEER}: {found['difference']:+.4f}, 95% lower bound {found['lower_bound']:+.4f}; bar "
            f"{found['floor']:+.4f}: {'met' if met else '[red]missed[/]'}. Written: {out / 'summary.json'}"
        )
        raise typer.Exit(0 if met else 1)


def _configured(config: Path, out: Path, steps: int | None, users: int, truth_users: int) -> Config:
    overrides = {
        f"data.{name}.path": str(out / "lake" / name) for name in ("decisions", "events", "users", "candidates")
    }
    overrides |= {
        "run_dir": str(out),
        "train.threads": str(os.cpu_count() or 1),
        "simulate.users": str(users),
        "simulate.truth_users": str(truth_users),
    }
    if steps is not None:
        overrides["train.steps"] = str(steps)
    return load(config, overrides)


def _ours(run: Run) -> list[Acting]:
    """Every member at its last update, and the cloned logging policy."""
    members = run.members()
    feed = Held.of(run.data, run.training.target)
    seen = learn(members, run.config, feed, reach_within(members, feed, run.table), progress=True)
    for each in seen:
        if each.stopped:
            console.print(each.stopped, style="red")
    clone, _ = clone_behaviour(run)
    found = [
        Acting(f"{member.name}/{member.number}", each.kept.network, each.kept.weights)
        for member, each in zip(members, seen, strict=True)
        if each.kept is not None and not each.stopped
    ]
    return [*found, Acting("behaviour/0", clone.member(0), np.ones(1), cloned=True)]


def _peers(run: Run, python: Path) -> list[Acting]:
    """d3rlpy's networks, one a seed, on the summed reward that ours is the weighted sum of."""
    log, config, units = run.table, run.config, run.units
    scales = units.weighed(config.weights)
    rows = run.training.all
    part = log.where(rows)
    mean_days = float(part.elapsed_days[~(part.terminal | part.truncated)].mean())
    first = np.diff(part.user, append=-1) != 0
    with tempfile.TemporaryDirectory() as folder:
        given = Path(folder) / "log.npz"
        np.savez(
            given,
            state=np.nan_to_num((part.state - units.mean) / units.std).astype(np.float32),
            action=part.action,
            reward=(part.reward @ scales.weights / scales.reward_sd).astype(np.float32),
            terminal=part.terminal.astype(np.float32),
            # Its trajectories end where ours do: nothing is bootstrapped over a gap.
            truncated=((part.truncated | first) & ~part.terminal).astype(np.float32),
            actions=np.array(len(log.contract.actions)),
        )
        settings = {
            "hidden": list(config.hidden),
            "batch_size": config.batch_size,
            "learning_rate": config.learning_rate,
            "final_rate": FINAL_RATE,
            "gamma": config.gamma_per_day**mean_days,
            # Its squared error has a half that ours has not.
            "alpha": LEARNERS[OURS].penalised / 2,
            "target_update_interval": round(1 / config.target_rate),
            "steps": config.steps,
        }
        # A process of one thread for each core: two threads of one would wait for each other.
        shares = [list(range(config.seeds))[core :: config.threads] for core in range(config.threads)]
        words = [
            [*_words(Path(folder), python, core, settings | {"seeds": those})] for core, those in enumerate(shares)
        ]
        running = [subprocess.Popen(each) for each in words]
        codes = [process.wait() for process in running]
        if any(codes):
            raise typer.Exit(1)
        parts = [dict(np.load(each[-1])) for each in words]
        order = np.argsort(np.concatenate(shares))
        weights = {name: np.concatenate([part[name] for part in parts])[order] for name in parts[0]}
    layers = sum(name.startswith("weight") for name in weights)
    whole = Population(
        [torch.from_numpy(weights[f"weight{layer}"]) for layer in range(layers)],
        [torch.from_numpy(weights[f"bias{layer}"]) for layer in range(layers)],
        torch.from_numpy(units.mean),
        torch.from_numpy(units.std),
        torch.zeros(1),
        torch.ones(1),
        len(log.contract.actions),
    )
    return [Acting(f"{PEER}/{seed}", whole.member(seed), np.ones(1)) for seed in range(config.seeds)]


def _words(folder: Path, python: Path, core: int, settings: Mapping[str, Any]) -> list[str]:
    """The command of one process of d3rlpy; the last word is where it leaves its networks."""
    (folder / f"{core}.json").write_text(json.dumps(settings))
    script = Path(__file__).with_name("learners_d3rlpy.py")
    places = (folder / name for name in ("log.npz", f"{core}.json", f"{core}.npz"))
    return [str(python), str(script), *map(str, places)]


def _found(truth: Mapping[str, Any], weights: Mapping[str, float], seeds: int) -> dict[str, Any]:
    """Gains of every learner and seed, and the paired comparison."""
    gains: dict[str, list[float]] = {}
    components: dict[str, list[dict[str, float]]] = {}
    for name, values in truth.items():
        if name == "logging":
            continue
        learner = name.rsplit("/", 1)[0]
        gains.setdefault(learner, []).append(sum(w * values[c]["difference"] for c, w in weights.items()))
        # Of the components that happened at all: a small world may see nobody switch off.
        base = {c: each["value"] for c, each in truth["logging"].items() if each["value"]}
        relative = {c: values[c]["difference"] / base[c] for c in base if values[c]["difference"] is not None}
        components.setdefault(learner, []).append(relative)
    found: dict[str, Any] = {
        "logging": sum(w * truth["logging"][c]["value"] for c, w in weights.items()),
        "gains": gains,
        "relative": {name: {c: float(np.mean([each[c] for each in those if c in each])) for c in those[0]}
                     for name, those in components.items()},
    }  # fmt: skip
    if len(gains.get(PEER, [])) == len(gains.get(OURS, [])) == seeds:
        difference = np.array(gains[OURS]) - np.array(gains[PEER])
        error = difference.std(ddof=1) / seeds**0.5
        found["difference"] = float(difference.mean())
        found["lower_bound"] = float(difference.mean() - stats.t.ppf(0.95, seeds - 1) * error)
        found["floor"] = FLOOR * abs(float(np.mean(gains[PEER])))
    return found


def _shown(found: Mapping[str, Any]) -> Table:
    wanted = ("sends", "clicks", "visits", "weekly_active_days", "disables")
    shown = Table("learner", "seeds", "gain per user-week: mean", "sd over seeds", *wanted)
    for name, gains in sorted(found["gains"].items(), key=lambda each: -float(np.mean(each[1]))):
        spread = f"{np.std(gains, ddof=1):.4f}" if len(gains) > 1 else ""
        relative = (f"{found['relative'][name].get(c, float('nan')):+.1%}" for c in wanted)
        shown.add_row(name, str(len(gains)), f"{np.mean(gains):+.4f}", spread, *relative)
    shown.caption = f"logging policy: {found['logging']:.4f}; components relative to it"
    return shown


if __name__ == "__main__":
    sys.exit(app())
