"""True values for the coverage study: sums over users that add, so that chunks of a large world merge.

V = 7 sum_u r_u / sum_u days_u and ctr = sum clicks / sum sends over the users of a world that a policy acts in. The
difference from the logging policy is taken on the same luck; the logging policy's own value from more users still,
since every V(pi) rests on it: V(pi) = V(mu) + (V(pi) - V(mu)).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.coverage_log import METRICS, Setting
from policies.simulator import simulate, user_totals

COLUMNS = ("days", *METRICS[:-1])
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Moments:
    """Sums over n users of x_u [C] and of its squares, C = policies x COLUMNS."""

    users: int
    first: Floats
    """[C]."""
    second: Floats
    """[C, C]."""

    @property
    def policies(self) -> int:
        return len(self.first) // len(COLUMNS)

    def __add__(self, other: "Moments", /) -> "Moments":
        return Moments(self.users + other.users, self.first + other.first, self.second + other.second)

    @classmethod
    def none(cls, policies: int) -> "Moments":
        """Of nobody."""
        columns = policies * len(COLUMNS)
        return cls(0, np.zeros(columns), np.zeros((columns, columns)))

    def variance(self, influence: Floats) -> float:
        """Of influence'x over users."""
        mean = float(influence @ self.first) / self.users
        return float(influence @ self.second @ influence) / self.users - mean**2

    def of(self, target: int | None = None) -> "Moments":
        """The logging policy's columns alone, or with those of one target after them."""
        width = len(COLUMNS)
        kept = np.arange(width)
        if target is not None:
            kept = np.append(kept, np.arange((target + 1) * width, (target + 2) * width))
        return Moments(self.users, self.first[kept], self.second[np.ix_(kept, kept)])


def moments(setting: Setting, seed: int, users: int, targets: int) -> Moments:
    """Of one world of `users`: the logging policy and the first `targets` on the same luck."""
    assert setting.config.simulate is not None
    deciders = [None, *(setting.decide(kappa) for kappa in setting.kappas[:targets])]
    totals = [user_totals(simulate(setting.config.simulate, seed, decide, users)) for decide in deciders]
    x = np.column_stack([each[name] for each in totals for name in COLUMNS])
    return Moments(users, x.sum(axis=0), x.T @ x)


@dataclass(frozen=True)
class Truth:
    """T targets, M metrics."""

    logging: Floats
    """[M, 2] V(mu) and its standard error."""
    targets: Floats
    """[T, 2, M, 2] V(pi) and V(pi) - V(mu), each with its standard error."""
    users: tuple[int, ...]
    """Of whom each target's difference is known."""
    logging_users: int


def truth_of(worlds: Mapping[int, Moments], targets: int) -> Truth:
    """True values from worlds by how many targets acted in them, on the logging policy's luck."""
    every = sum((each.of() for each in worlds.values()), Moments.none(1))
    logging = np.array([_known(every, _ratio(every, name)[1], _ratio(every, name)[0]) for name in METRICS])
    found, users = np.zeros((targets, 2, len(METRICS), 2)), []
    for target in range(targets):
        paired = sum((each.of(target) for number, each in worlds.items() if number > target), Moments.none(2))
        rest = sum((each.of() for number, each in worlds.items() if number <= target), Moments.none(1))
        users.append(paired.users)
        for metric, name in enumerate(METRICS):
            found[target, :, metric] = _compared(paired, rest, every, name)
    return Truth(logging, found, tuple(users), every.users)


def _compared(paired: Moments, rest: Moments, every: Moments, name: str) -> list[tuple[float, float]]:
    """V(pi) and V(pi) - V(mu) with their errors, from the paired worlds and the rest, in which mu alone is known."""
    width = len(COLUMNS)
    value, influence = _ratio(every, name)
    base, before = _ratio(paired.of(), name)
    target = Moments(paired.users, paired.first[width:], paired.second[width:, width:])
    mine, after = _ratio(target, name)
    change = np.append(-before, after)
    # V(pi) rests on V(mu) of all users, of whom the paired ones are a share.
    whole = change + np.append(paired.users / every.users * influence, np.zeros(width))
    error = paired.variance(whole) / paired.users
    if rest.users:
        error += (rest.users / every.users) ** 2 * rest.variance(influence) / rest.users
    return [(value + mine - base, float(np.sqrt(error))), _known(paired, change, mine - base)]


def _known(sums: Moments, influence: Floats, value: float) -> tuple[float, float]:
    return value, float(np.sqrt(sums.variance(influence) / sums.users))


def _ratio(sums: Moments, name: str) -> tuple[float, Floats]:
    """A metric's value and each column's influence on it: the delta method for a ratio of two totals."""
    top, bottom, scale = ("clicks", "sends", 1.0) if name == "ctr" else (name, "days", 7.0)
    above, below = sums.first[COLUMNS.index(top)], sums.first[COLUMNS.index(bottom)]
    influence = np.zeros(len(COLUMNS))
    influence[COLUMNS.index(top)] = scale * sums.users / below
    influence[COLUMNS.index(bottom)] = -scale * sums.users * above / below**2
    return float(scale * above / below), influence
