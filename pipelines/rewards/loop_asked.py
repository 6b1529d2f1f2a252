"""Rounds of the loop on a log: a person answers, and the policy's weeks are those of the log that it would live too.

No log of the new policy is there until it acts. So from the second round on pairs come from weeks drawn with chance
proportional to their weight under the policy, the product of pi(a|s) / mu(a|s) over their rows, at most WEIGHT: weeks
that the policy, too, would have written, as an importance resample of the log (Rubin 1988, "Using the SIR algorithm").
"""

import shlex
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models import artifact
from models.contract import SPLITS
from models.errors import InputError
from models.rewards import answers as told
from models.rewards import store
from models.rewards.asking import with_repeats
from models.rewards.preferences import choose
from models.rewards.weeks import Weeks, weeks_of
from models.table import Transitions
from pipelines import reading
from pipelines.config import Config
from pipelines.jobs.judging import evaluate
from pipelines.jobs.learning import train
from pipelines.jobs.steps import policy_folder
from pipelines.rewards.ask import telling
from pipelines.rewards.fitting import run_fit
from pipelines.rewards.fitting_network import run_network
from pipelines.rewards.looping import AnswersNeeded, Loop
from pipelines.rewards.page import render
from policies.base import Policy, checked_probabilities
from policies.gate import judge
from policies.q_policy import QPolicy

WEIGHT = 50.0
"""A week counts for at most so many."""
POOL = 20
"""Weeks drawn for each pair that is asked."""


def round_of(config: Config, name: str, loop: Loop, number: int, config_path: Path) -> None:
    """One round, from where it was left. Raises AnswersNeeded where a person has to answer first."""
    asked = loop.stage(number, "asked", lambda: _ask(config, name, loop, number, config_path))
    files = loop.answers(number)
    if not files:
        raise AnswersNeeded(_next(loop, name, number, asked, config_path))
    told.read(files)
    fitted = loop.stage(number, "fitted", lambda: _fit(config, name, loop, number))
    versions = config.learned.versions | {name: fitted["version"]}
    pinned = config.model_copy(update={"learned": config.learned.model_copy(update={"versions": versions})})
    loop.stage(number, "trained", lambda: {"mlflow_run": train(pinned)["mlflow_run"]})
    loop.stage(number, "evaluated", lambda: _evaluate(pinned))


def _next(loop: Loop, name: str, number: int, asked: dict[str, Any], config_path: Path) -> str:
    """What a person does now."""
    page, file = loop.folder / asked["page"], loop.folder / "answers" / f"round-{number:03d}.jsonl"
    again = _command(loop, name, config_path)
    return (
        f"rewards loop {name}: round {number} waits for answers. Open {page} in a browser, answer, move the file "
        f"that it saves to {file} (of several raters round-{number:03d}-RATER.jsonl), and run `{again}` with as "
        "many --rounds as wanted."
    )


def _command(loop: Loop, name: str, config_path: Path) -> str:
    """What goes on from here."""
    return shlex.join(["tactful", "rewards", "loop", str(config_path), name, "--pairs", str(loop.begun["pairs"])])


def _ask(config: Config, name: str, loop: Loop, number: int, config_path: Path) -> dict[str, Any]:
    """The page of a round; users of the test split are left out, on whom the policy is judged."""
    log = reading.logged(config)
    weeks = weeks_of(log, config.learned.days, log.split != SPLITS.index("test"))
    rng = np.random.default_rng([config.seed, number])
    pairs = chosen(config, name, loop, number, log, weeks, rng)
    page = loop.folder / f"round-{number:03d}.html"
    words = {
        "name": config.name,
        "rater": "rater",
        "file": f"round-{number:03d}.jsonl",
        "command": _command(loop, name, config_path),
    }
    page.parent.mkdir(parents=True, exist_ok=True)
    unfinished = page.with_suffix(".partial")
    unfinished.write_text(render(log, weeks, with_repeats(pairs, 0, config.seed), config.learned.days, words), "utf-8")
    unfinished.replace(page)
    (loop.folder / "answers").mkdir(exist_ok=True)
    return {"page": page.name, "pairs": len(pairs), "fingerprint": log.fingerprint}


def chosen(
    config: Config, name: str, loop: Loop, number: int, log: Transitions, weeks: Weeks, rng: np.random.Generator
) -> NDArray[np.int64]:
    """[n, 2] places in `weeks`: of all at first, then those that the reward tells least of among the policy's."""
    wanted = int(loop.begun["pairs"])
    if number == 1:
        return choose(None, weeks, np.zeros((0, 2), np.int64), wanted, int(rng.integers(2**31)))
    policy = QPolicy(artifact.load(policy_folder(config, config.gate.candidate)), config.gate.candidate)
    # With the estimates of propensities that the log lacks; the rows are the same.
    weight = week_weights(reading.transitions(config), weeks, policy)
    there = np.flatnonzero(weight > 0)
    size = min(POOL * wanted, len(there))
    mine = np.sort(rng.choice(there, size, replace=False, p=weight[there] / weight[there].sum()))
    few, asked = weeks.only(mine), _asked_before(loop, number, weeks, mine)
    stored = store.read(config.rewards_path, name, loop.round(number - 1)["fitted"]["version"])
    return mine[telling(stored, log, few, asked, wanted, rng, config.learned.loop.candidates)]


def _asked_before(loop: Loop, number: int, weeks: Weeks, mine: NDArray[np.int64]) -> NDArray[np.int64]:
    """[M, 2] places, among `mine`, of pairs of earlier rounds both of whose weeks are there."""
    place = {week: position for position, week in enumerate(mine.tolist())}
    pairs = [weeks.places([each.left, each.right]) for each in told.read(loop.answered(number - 1)).pairs]
    found = [(place[a], place[b]) for a, b in pairs if a in place and b in place]
    return np.array(found, dtype=np.int64).reshape(-1, 2)


def week_weights(log: Transitions, weeks: Weeks, policy: Policy) -> NDArray[np.float64]:
    """[W] product over the rows of pi(a|s) / mu(a|s), at most WEIGHT. Raises InputError where propensities lack."""
    if np.isnan(log.propensity).any():
        raise InputError(
            f"{log.fingerprint}: propensities are unknown, so that the policy's weeks are; run `tactful propensity`."
        )
    chance = checked_probabilities(policy, log.state, log.legal)[np.arange(len(log.action)), log.action]
    with np.errstate(divide="ignore"):
        ratio = np.log(np.maximum(chance, 1e-300)) - np.log(log.propensity)
    found: NDArray[np.float64] = np.exp(np.minimum(weeks.sums(ratio), np.log(WEIGHT)))
    return np.where(found > 1e-12, found, 0.0)


def _fit(config: Config, name: str, loop: Loop, number: int) -> dict[str, Any]:
    learn = run_network if config.learned.loop.form == "network" else run_fit
    return {"version": learn(config, name, loop.answered(number)).version}


def _evaluate(config: Config) -> dict[str, Any]:
    left = evaluate(config, show=False)
    return {"verdict": judge(left["evaluation"], config.gate, left["tried"]) if config.gate.metrics else None}
