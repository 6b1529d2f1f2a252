"""Which states are worth being in: [learned.goal] of a configuration, and the sets of states that it makes of a log."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from models.columns import MICROSECONDS_PER_DAY
from models.contract import SPLITS
from models.errors import InputError
from models.rewards.logs import column_of
from models.table import SOURCE, Transitions

CONDITION = re.compile(r"(?P<feature>\S.*?)\s+(?P<sign>>=|<=|=|>|<)\s+(?P<value>\S+)")
SIGNS = {">=": np.greater_equal, "<=": np.less_equal, "=": np.equal, ">": np.greater, "<": np.less}
RULE, BEST = "rule", "best_users"
Booleans = NDArray[np.bool_]


@dataclass(frozen=True)
class GoalConfig:
    """[learned.goal] of a configuration: what success is, and how a classifier of it is learned."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    success: tuple[str, ...] = ()
    """Conditions on state features, all of which hold: "visits_7d >= 3", "notifications_on = 1"."""
    success_from: Literal["rule", "best_users"] = "rule"
    """Or the last states of the best users' trajectories, so that nobody has to write a rule."""
    best_by: dict[str, float] = field(default_factory=dict)
    """Weight per component: the best users have the largest weighted reward a day."""
    best_share: float = 0.1
    """Of the users whose account is open."""
    best_days: float = 7.0
    """Their states in so many last days are successes; their earlier ones are neither."""
    seed_copies: int = 1
    """How often the best users' trajectories are added to what a policy learns from, beside once as logged."""
    features: tuple[str, ...] = ()
    """State features that the classifier sees; all by default."""
    rounds: int = 5
    """How often a policy is trained and the states it visits are added to the failures; 0 is the naive classifier."""
    visited: int = 4000
    """States taken of each policy."""
    members: int = 1
    """Networks whose logits are averaged."""
    hidden: tuple[int, ...] = (32,)
    """Units per hidden layer."""
    steps: int = 800
    """Updates."""
    batch_size: int = 256
    """States per update and member, half of them successes."""
    learning_rate: float = 1e-3
    label_smoothing: float = 0.05
    """e: a success is told as 1 - e / 2, a failure as e / 2."""
    mixup: float = 0.0
    """a: pairs of states are mixed by a share from Beta(a, a); 0: none are."""
    gradient_penalty: float = 0.01
    """Weight of the mean squared gradient of the logit between successes and failures; 0: none."""

    def __post_init__(self) -> None:
        if self.success_from not in (RULE, BEST):
            raise InputError(f"learned.goal.success_from is {self.success_from!r}; it must be {RULE} or {BEST}.")
        for name, least in (("seed_copies", 0), ("rounds", 0), ("visited", 1), ("members", 1), ("steps", 1)):
            if getattr(self, name) < least:
                raise InputError(f"learned.goal.{name} is {getattr(self, name)}; it must be {least} or more.")
        if self.batch_size < 4:
            raise InputError(f"learned.goal.batch_size is {self.batch_size}; it must be 4 or more: half are successes.")
        if not self.hidden or min(self.hidden) < 1:
            raise InputError(f"learned.goal.hidden is {list(self.hidden)}; give one or more layers of 1 or more units.")
        for name in ("learning_rate", "best_days"):
            if not getattr(self, name) > 0:
                raise InputError(f"learned.goal.{name} is {getattr(self, name)}; it must be above 0.")
        for name in ("mixup", "gradient_penalty"):
            if not getattr(self, name) >= 0:
                raise InputError(f"learned.goal.{name} is {getattr(self, name)}; it must be 0 or more.")
        for name, most in (("label_smoothing", "[0, 1)"), ("best_share", "(0, 1)")):
            if not 0 <= getattr(self, name) < 1 or (name == "best_share" and not self.best_share):
                raise InputError(f"learned.goal.{name} is {getattr(self, name)}; it must lie in {most}.")
        for text in self.success:
            _condition(text)

    @property
    def conditions(self) -> list[tuple[str, str, float]]:
        """(feature, sign, value) of each condition."""
        return [_condition(text) for text in self.success]


def _condition(text: str) -> tuple[str, str, float]:
    found = CONDITION.fullmatch(text.strip())
    try:
        if found is not None:
            return found["feature"], found["sign"], float(found["value"])
    except ValueError:
        pass
    raise InputError(
        f"learned.goal.success: {text!r} is no condition; write FEATURE, one of {', '.join(SIGNS)}, and a number, with "
        "spaces between, as 'visits_7d >= 3'."
    )


@dataclass(frozen=True)
class Sets:
    """Which of N rows begin in a state that is a success, and which in a failure; the others are neither."""

    success: Booleans
    failure: Booleans
    best: Booleans
    """[U] the users whose last states are successes; nobody where a rule says what success is."""


def sets_of(table: Transitions, config: GoalConfig) -> Sets:
    """The successes and failures among the rows of `table` past the warm-up, as `config` says.

    A condition on an unknown value does not hold. Best users are chosen within each split, so that held-out ones are.
    Raises InputError where no success is configured or two are, a feature or component is unknown, no state is a
    success, every state is one, or no user is best.
    """
    _check(table, config)
    rows = ~table.warm_up
    best = np.zeros(len(table.user_id), dtype=np.bool_)
    if config.success_from == RULE:
        success = rows.copy()
        for feature, sign, value in config.conditions:
            success &= SIGNS[sign](table.state[:, table.contract.features.index(feature)], np.float32(value))
        failure = rows & ~success
    else:
        best = _best_users(table, config)
        last = np.zeros(len(best), dtype=np.int64)
        np.maximum.at(last, table.user, table.decided_at)
        late = table.decided_at > last[table.user] - config.best_days * MICROSECONDS_PER_DAY
        success, failure = rows & late & best[table.user], rows & ~best[table.user]
    what = f"learned.goal.success ({', '.join(config.success)})" if config.success else "learned.goal.best_share"
    if not success.any():
        raise InputError(
            f"{what}: none of {int(rows.sum())} states is a success, so nothing says what one looks like; loosen it."
        )
    if not failure.any():
        raise InputError(
            f"{what}: all of {int(rows.sum())} states are successes, and a classifier without failures calls "
            "everything one; tighten it."
        )
    return Sets(success, failure, best)


def _check(table: Transitions, config: GoalConfig) -> None:
    if (config.success_from == RULE) != bool(config.success):
        said = "is empty" if config.success_from == RULE else f"and success_from = {BEST!r} are both given"
        raise InputError(
            f"learned.goal.success {said}; say what success is by conditions, as 'visits_7d >= 3', or by "
            f"success_from = {BEST!r}."
        )
    if config.success_from == BEST and not any(config.best_by.values()):
        raise InputError("learned.goal.best_by weighs nothing; say by which reward users are best: { clicks = 1.0 }.")
    for key, names, known in (
        ("success", [feature for feature, _, _ in config.conditions], table.contract.features),
        ("features", config.features, table.contract.features),
        ("best_by", config.best_by, table.contract.rewards),
    ):
        for name in names:
            if name not in known:
                what = "reward component" if key == "best_by" else "state feature"
                raise InputError(f"learned.goal.{key}: {name!r} is no {what} of the log (it has {', '.join(known)}).")


def _best_users(table: Transitions, config: GoalConfig) -> Booleans:
    """[U] the best share of each split, by weighted reward a day, of users with `best_days` and an open account."""
    users = len(table.user_id)

    def total(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.bincount(table.user, weights=values, minlength=users).astype(np.float64)

    w = np.array([config.best_by.get(name, 0.0) for name in table.contract.rewards])
    days = total(table.elapsed_days)
    worth = total(table.reward @ w) / np.maximum(days, 1e-12)
    eligible = (days >= config.best_days) & (total(table.terminal.astype(np.float64)) == 0)
    split = np.zeros(users, dtype=np.int64)
    split[table.user] = table.split
    best = np.zeros(users, dtype=np.bool_)
    for part in range(len(SPLITS)):
        those = np.flatnonzero(eligible & (split == part))
        number = round(config.best_share * len(those))
        # Among equals the first: the same log has the same best users.
        best[those[np.argsort(-worth[those], kind="stable")[:number]]] = True
    return best


def seeded(table: Transitions, best: Booleans, copies: int) -> Transitions:
    """`table` with the trajectories of the users marked in `best` [U] `copies` more times, each copy a user of its own.

    What a policy learns from then holds success more often, as the demonstrations in the replay buffer of MEDAL++
    (Sharma et al. 2023). It is no sample of the log any more: for learning, not for evaluation.
    """
    mine = table.where(best[table.user])
    return joined([table, *[mine] * copies]) if len(mine.user) else table


def joined(tables: Sequence[Transitions]) -> Transitions:
    """The rows of all, the users of each told apart by its number; the version is that of the first, the
    fingerprint a hash of all."""
    starts = np.cumsum([0, *(len(each.user_id) for each in tables)])
    parts = [
        replace(each, user=each.user + start, user_id=np.array([f"{name}#{n}" for name in each.user_id], dtype=object))
        for n, (each, start) in enumerate(zip(tables, starts, strict=False))
    ]
    columns: dict[str, Any] = {
        each.name: column_of(parts, each.name) for each in fields(tables[0]) if each.name not in {"contract", *SOURCE}
    }
    fingerprint = hashlib.sha256("".join(each.fingerprint for each in tables).encode()).hexdigest()[:16]
    return replace(tables[0], fingerprint=fingerprint, **columns)
