"""`tactful rewards judge`: a language model compares user-weeks of a log, and is held against people before it counts.

It leaves three files: the answers, FILE.facts.json beside them (how far they can be trusted, and what they cost), and
RUN_DIR/rewards/NAME/judge.jsonl, the transcript, from which a run that ended goes on without asking anything twice.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress

from models.contract import SPLITS
from models.errors import InputError, TactfulError
from models.rewards import answers, store
from models.rewards.answers import Pair
from models.rewards.describe import in_words
from models.rewards.judge.client import Client, key_from_environment
from models.rewards.judge.fit import Judged, fit_judged
from models.rewards.judge.judging import Opinion, Session, codes_of, draw_pairs, judge, leverage
from models.rewards.judge.prompt import Constitution, constitution
from models.rewards.judge.settings import JudgeConfig
from models.rewards.judge.transcript import Transcript
from models.rewards.judge.trust import agreement
from models.rewards.support import Support, seen_rows
from models.rewards.weeks import Weeks, weeks_of
from models.table import Transitions
from pipelines import reading
from pipelines.config import Config
from pipelines.jobs.steps import write_json

TRANSCRIPT = "judge.jsonl"
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Request:
    """What the command was asked for."""

    name: str
    """The learned reward: where the transcript lies, and what `fit` adds a version to."""
    pairs: int
    out: Path
    human: Sequence[Path] = ()
    """Answers of people, whose pairs are asked first."""
    fit: bool = False
    """Whether corrected weights become the next version of the reward."""
    untrusted: bool = False
    """Whether they do so even where the judge is not trusted."""


def run_judge(
    config: Config,
    request: Request,
    console: Console | None = None,
    tell: Callable[[dict[str, Any]], None] = lambda facts: None,
) -> dict[str, Any]:
    """Ask, write answers and facts, and return the facts; users of the test split are left out.

    `tell` gets the facts also where an error follows.

    Raises InputError where there is no [learned.judge], no principle or no such pair, where the endpoint refuses, where
    the budget is used up (what is answered until then is written) and where weights are wanted of an untrusted judge;
    TransientError where the endpoint does not answer.
    """
    store.check_name(request.name)
    settings = _settings(config)
    principles, key = constitution(settings.constitution), key_from_environment(settings)
    people = _people(request.human)
    _check_out(request.out, settings)
    log = reading.logged(config)
    weeks = weeks_of(log, config.learned.days, log.split != SPLITS.index("test"))
    asked = _pairs_of(people, weeks)
    drawn = draw_pairs(leverage(weeks.totals), request.pairs, config.seed, without=asked)
    path = config.rewards_path / request.name / TRANSCRIPT
    with Transcript(path) as kept, _progress(console, 2 * (len(asked) + len(drawn))) as progress:
        client = Client(settings, kept, key)
        session = judge(client, principles, [*asked, *drawn], lambda place: in_words(log, weeks, place), progress)
    # Pairs that people answered come first.
    theirs = frozenset(asked)
    first = sum((each.left, each.right) in theirs for each in session.opinions)
    for_people, given = (
        Session(each).pairs(weeks.id, settings.rater, settings.conflicts)
        for each in (session.opinions[:first], session.opinions[first:])
    )
    facts: dict[str, Any] = {
        **_who(settings, principles),
        **_trust(for_people, people, settings),
        **_heard(session, principles, len(asked) + len(drawn)),
        "estimate": _estimate(session.opinions, weeks, log, config.seed),
        "calls": kept.calls,
        "tokens": kept.tokens,
        "transcript": str(path),
        "fingerprint": log.fingerprint,
        "days": config.learned.days,
    }
    if given:
        facts["sha256"] = _write(request.out, given)
        write_json(answers.facts_path(request.out), facts)
    if facts["answered"]:
        tell(facts)
    if session.stopped is not None:
        raise _with_progress(session.stopped, facts, request.out if given else None)
    if not given:
        raise InputError(
            f"{settings.endpoint}: no pair has an answer in both orders; {path} holds what the model said."
        )
    if request.fit:
        ids = {week for each in session.opinions for week in weeks.id[[each.left, each.right]]}
        facts["version"] = _store(config, request, facts, log, Support.of([(log, seen_rows(log, weeks, ids))]))
    return facts


def _settings(config: Config) -> JudgeConfig:
    found = config.learned.judge
    if found is None:
        raise InputError(
            f"{config.name}: the configuration has no [learned.judge]; add one with url, model and constitution, see "
            "docs/rewards.md. Nothing else needs it."
        )
    return found


def _people(files: Sequence[Path]) -> Sequence[Pair]:
    """The pairs that people answered; no judge vouches for another."""
    found = answers.read(files).pairs if files else ()
    for each in found:
        if each.rater.startswith(answers.JUDGE):
            raise InputError(f"--human: {each.rater} is no person; name answers of people.")
    return found


def _check_out(path: Path, settings: JudgeConfig) -> None:
    """Answers of this judge are written anew from the transcript; nobody else's are lost by it."""
    if path.exists():
        others = [each for each in answers.read([path], untrusted=True).raters if each != settings.rater]
        if others:
            raise InputError(f"--out {path}: holds answers of {others[0]}; name another file.")


def _pairs_of(people: Sequence[Pair], weeks: Weeks) -> list[tuple[int, int]]:
    """The places of every pair that people answered, once."""
    left, right = (weeks.places([getattr(each, side) for each in people]) for side in ("left", "right"))
    ends = zip(left.tolist(), right.tolist(), strict=True)
    return list({frozenset(each): each for each in ends}.values())


def _who(settings: JudgeConfig, principles: Constitution) -> dict[str, Any]:
    return {
        "rater": settings.rater,
        "endpoint": settings.endpoint,
        "temperature": settings.temperature,
        "constitution": {"path": str(settings.constitution), "sha256": principles.sha256},
    }


def _trust(judged: Sequence[Pair], people: Sequence[Pair], settings: JudgeConfig) -> dict[str, Any]:
    """Whether the judge is trusted, why, and what was measured."""
    least = settings.trust_at_least
    if not people:
        return {"trusted": False, "why": "no pair that people answered was named (--human)", "agreement": None}
    found = agreement(judged, people)
    trusted = found.enough(least)
    low, high = found.interval
    why = (
        f"it prefers the week that people prefer in {found.agreed} of {found.decided} pairs, 95% interval {low:.2f} to "
        f"{high:.2f}, whose lower end is {'not ' if trusted else ''}below learned.judge.trust_at_least {least:g}"
    )
    return {"trusted": trusted, "why": why, "agreement": {**asdict(found), "rate": found.rate}}


def _heard(session: Session, principles: Constitution, pairs: int) -> dict[str, Any]:
    """Counts of what was said; shares are of pairs with two answers."""
    heard = [each for opinion in session.opinions for each in opinion.heard]
    complete = [each for each in session.opinions if each.complete]
    named = Counter(each.principle for each in heard if each.said)
    conflicts = [each for each in complete if each.conflict]
    both = Counter(each.heard[0].said for each in conflicts if each.heard[0].said == each.heard[1].said)
    return {
        "pairs": pairs,
        "asked": len(session.opinions),
        "answered": len(complete),
        "conflicts": len(conflicts),
        "first_shown_in_both": both["A"],
        "second_shown_in_both": both["B"],
        "asked_again": sum(each.asked_again for each in heard),
        "in_no_form": sum(each.said is None and each.gave_up is None for each in heard),
        "given_up": sum(each.gave_up is not None for each in heard),
        "from_transcript": sum(each.cached for each in heard),
        "models": dict(Counter(each.model or "unnamed" for each in heard if each.said)),
        "principles": {str(number): named[number] for number in principles.principles} | {"none": named[None]},
    }


def _estimate(opinions: Sequence[Opinion], weeks: Weeks, log: Transitions, seed: int) -> dict[str, Any]:
    """Corrected weights, flip rate and position bias; `why` there is none where the answers do not tell them."""
    left, right, first, second = codes_of(opinions)
    difference = weeks.totals[left] - weeks.totals[right]
    # Of a component that never differs nothing is said, and nothing is taken from the others.
    varies = np.flatnonzero((difference != 0).any(axis=0))
    names = [log.contract.rewards[column] for column in varies]
    try:
        found = fit_judged(difference[:, varies], first, second, confidence=CONFIDENCE, seed=seed)
    except InputError as error:
        return {"why": str(error)}
    return _estimated(found, names)


def _estimated(found: Judged, names: Sequence[str]) -> dict[str, Any]:
    return {
        "wrong": found.wrong,
        "wrong_interval": list(found.wrong_interval),
        "bias": found.bias,
        "bias_interval": list(found.bias_interval),
        "threshold": found.threshold,
        "rewards": list(names),
        "weights": dict(zip(names, found.weights.tolist(), strict=True)),
        "intervals": dict(zip(names, found.intervals.tolist(), strict=True)),
        "covariance": found.covariance.tolist(),
        "scale": dict(zip(names, found.scale.tolist(), strict=True)),
        "pairs": found.pairs,
    }


def _write(path: Path, given: Sequence[Pair]) -> str:
    """The answers, whole or not at all; returns their SHA-256."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    answers.write(partial, given)
    digest = hashlib.sha256(partial.read_bytes()).hexdigest()
    partial.replace(path)
    return digest


def _with_progress(stopped: TactfulError, facts: dict[str, Any], out: Path | None) -> TactfulError:
    """Why it stopped, and how far it came."""
    where = f", written to {out}" if out is not None else ""
    return type(stopped)(
        f"{stopped} Of {facts['pairs']} pairs {facts['answered']} were answered in both orders{where}."
    )


def _store(config: Config, request: Request, facts: dict[str, Any], log: Transitions, support: Support) -> int:
    """The next version of the reward, of the corrected weights."""
    found = facts["estimate"]
    if "why" in found:
        raise InputError(f"--fit: {found['why']}")
    if not (facts["trusted"] or request.untrusted):
        raise InputError(
            f"--fit: {facts['rater']} is not trusted: {facts['why']}; nothing is learned from it. Name answers of "
            "people with --human, or say --untrusted."
        )
    learned = {
        **{key: found[key] for key in ("rewards", "weights", "intervals", "covariance", "scale")},
        "noise": {key: found[key] for key in ("wrong", "wrong_interval", "bias", "bias_interval", "threshold")},
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "units": {name: log.contract.units.get(name, "") for name in found["rewards"]},
        "confidence": CONFIDENCE,
        "fingerprint": log.fingerprint,
        "data_version": log.version,
        "answers": facts["sha256"],
        "pairs": found["pairs"],
        "days": facts["days"],
        "support": support.plain(),
        "judge": {key: facts[key] for key in ("rater", "trusted", "why", "agreement", "constitution")},
    }
    return store.add(config.rewards_path, request.name, "weights", learned, {}).version


@contextmanager
def _progress(console: Console | None, questions: int) -> Iterator[Callable[[int], None]]:
    """A bar, where there is a terminal to show it on."""
    with Progress(console=console, transient=True, disable=console is None) as bar:
        task = bar.add_task("questions", total=questions)
        yield lambda done: bar.update(task, completed=done)
