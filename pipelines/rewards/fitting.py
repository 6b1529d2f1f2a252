"""Weights from answers: what `tactful rewards fit` reads, learns and writes."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from models.rewards import answers as told
from models.rewards import store
from models.rewards.answers import Answers
from models.rewards.heldout import HeldOut, hold_out
from models.rewards.intervals import Ratio
from models.rewards.preferences import Fitted, fit
from models.rewards.raters import Rater
from models.rewards.store import Stored
from models.rewards.support import Support, seen_rows
from models.rewards.weeks import Weeks, weeks_of
from models.table import Transitions
from pipelines import reading
from pipelines.config import Config
from pipelines.jobs.steps import console, step
from pipelines.rewards.weights_shown import shown

SPLITS_SHOWN = 50
"""Pairs on which raters split that are written down; their number is told in full."""


def run_fit(config: Config, name: str, files: Sequence[Path], untrusted: bool = False) -> Stored:
    """Learn weights from `files` of answers about the newest transitions, and write them as the next version of `name`.

    Raises InputError as `answers.read`, `table.read`, `weeks_of` and `fit` do.
    """
    with step(config, f"rewards_fit_{name}") as result:
        answers = told.read(files, untrusted)
        transitions = reading.logged(config)
        weeks = weeks_of(transitions, config.learned.days)
        facts = learned_facts(config, transitions, weeks, answers) | {"answers": digest(files)}
        facts["support"] = Support.of([(transitions, seen_rows(transitions, weeks, answers.weeks))]).plain()
        stored = store.add(config.rewards_path, name, "weights", facts, {})
        result |= {"version": stored.version, **facts}
    for each in shown(facts, f"{name} version {stored.version}"):
        console.print(each)
    return stored


def digest(files: Sequence[Path]) -> str:
    """SHA-256 of what the files hold, in their order."""
    found = hashlib.sha256()
    for path in files:
        found.update(path.read_bytes())
    return found.hexdigest()


def learned_facts(config: Config, transitions: Transitions, weeks: Weeks, answers: Answers) -> dict[str, Any]:
    """Everything the report says of weights learned from `answers`, as JSON."""
    settings, rewards = config.learned.preference, transitions.contract.rewards
    found = fit(weeks, rewards, answers, settings)
    names = found.components
    return {
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "rewards": list(names),
        "units": {name: transitions.contract.units.get(name, "") for name in names},
        "weights": _by_name(names, found.weights.tolist()),
        "intervals": _by_name(names, found.intervals.tolist()),
        "scale": _by_name(names, found.scale.tolist()),
        "covariance": found.covariance.tolist(),
        "confidence": settings.confidence,
        "unit": found.unit,
        "ratios": {name: _ratio(each) for name, each in found.ratios.items()},
        "noise": {"tie": found.tie, "reliability": {each.name: each.reliability for each in found.raters}},
        "raters": [_rater(each) for each in found.raters],
        "splits": [asdict(each) for each in found.splits[:SPLITS_SHOWN]],
        "together": [asdict(each) for each in found.together],
        "held_out": held_out_facts(weeks, rewards, answers, config),
        "counts": _counts(answers, found, weeks),
        "not_learned": not_learned(found),
        "fingerprint": transitions.fingerprint,
        "data_version": transitions.version,
        "days": config.learned.days,
        "seed": config.seed,
        "settings": asdict(settings),
    }


def _by_name(names: Sequence[str], values: Sequence[Any]) -> dict[str, Any]:
    return dict(zip(names, values, strict=True))


def _ratio(found: Ratio) -> dict[str, float | None]:
    return {"estimate": found.value if np.isfinite(found.value) else None, "low": found.low, "high": found.high}


def _rater(found: Rater) -> dict[str, Any]:
    return {**asdict(found), "one_sided": found.one_sided, "favours": found.favours}


def _counts(answers: Answers, found: Fitted, weeks: Weeks) -> dict[str, int]:
    said = [each for pair in answers.pairs for each in (pair.left, pair.right)]
    said += [each for ranking in answers.rankings for each in ranking.order]
    return {
        "pairs": len(answers.pairs),
        "rankings": len(answers.rankings),
        "ties": sum(each.ties for each in found.raters),
        "raters": len(found.raters),
        "weeks": len(set(said)),
        "weeks_of_log": len(weeks.id),
        "splits": len(found.splits),
        "contradictions": sum(each.contradictions for each in found.raters),
    }


def held_out_facts(weeks: Weeks, rewards: tuple[str, ...], answers: Answers, config: Config) -> dict[str, Any] | None:
    """Accuracy and calibration on held-out comparisons; None where the answers are too few, or linked."""
    found = hold_out(weeks, rewards, answers, config.learned.preference, config.seed)
    if found is None:
        return None
    return {
        "comparisons": len(found.predicted),
        "pairs_of_weeks": len(np.unique(found.decided.group)),
        "folds": found.folds,
        "accuracy": found.accuracy(),
        "accuracy_by_side": found.accuracy_by_side(),
        "log_loss": found.log_loss(),
        "log_loss_by_side": found.log_loss_by_side(),
        **{f"{key}_interval": list(ends) for key, ends in _intervals(found, config).items()},
        "calibration": [list(each) for each in found.calibration()],
        "calibration_error": found.calibration_error(),
    }


def _intervals(found: HeldOut, config: Config) -> Mapping[str, tuple[float, float]]:
    return found.intervals(config.learned.preference.confidence, config.seed)


def not_learned(found: Fitted) -> list[str]:
    """What the answers could not tell, a sentence each."""
    said = [
        f"The weight of {name} is not told from 0."
        for name, (low, high) in zip(found.components, found.intervals.tolist(), strict=True)
        if low <= 0 <= high
    ]
    said += [
        f"What one unit of {name} is worth in {found.unit} has no bounds: the weight of {found.unit} may be 0."
        for name, each in found.ratios.items()
        if each.low is None
    ]
    for each in found.raters:
        if each.one_sided:
            said.append(
                f"{each.name} chose the {'left' if each.left else 'right'} side in all of {each.left + each.right} "
                "decided pairs: these answers say of a key that was pressed, and little of the weeks."
            )
        elif each.favours:
            said.append(f"{each.name} favours the {each.favours} side; the weights are corrected for it.")
    clash = sum(each.contradictions for each in found.raters)
    if clash:
        said.append(f"{clash} times a rater decided the same two user-weeks both ways; that is noise, and counted so.")
    return said
