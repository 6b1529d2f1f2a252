"""State-marginalised importance sampling: one weight for each state and step, not one for each history."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.errors import InputError
from models.table import Transitions
from policies.base import Booleans, Floats, Integers
from policies.ope.sample import Sample

DEFAULT = {"notifications_on": 2, "sends_7d": 3, "visits_7d": 2}
"""Features that sends move, and into how many parts of equal size each is cut, where a configuration names none."""
LONG_GAP = 2.0
"""A decision comes late where the time since the one before is this many times the median: what sends did has faded."""
MOST_BINS = 64
"""Beyond, a bin is as rare as a history, and nothing is gained by marginalising."""


@dataclass(frozen=True)
class Marginal:
    """What is read of each row, and what its weights are carried by."""

    user: Integers
    """[n]."""
    group: Integers
    """[n] step k."""
    bin: Integers
    """[n] z_k."""
    ratio: Floats
    """[n] rho_k."""
    reward: Floats
    """[n, K]."""
    bins: int
    """Z."""

    def over(self, counts: Floats) -> "MarginalSums":
        """The sums of each resample, user u counted `counts` [R, U] times."""
        groups, bins, components = int(self.group.max(initial=0)) + 1, self.bins, self.reward.shape[1]
        sums = np.zeros((len(counts), groups, bins, components + 2 + bins))
        own = np.column_stack([self.ratio[:, None] * self.reward, self.ratio, np.ones_like(self.ratio)])
        on = np.flatnonzero(np.diff(self.user, append=-1) == 0)
        arrives = np.full(len(self.user), -1)
        arrives[on] = self.bin[on + 1]
        by_user = np.ascontiguousarray(counts.T)
        # One user has one row a step: rows of a step and bin are a part of the users, and few matrix products do.
        order = np.lexsort((self.bin, self.group))
        cell = self.group[order] * bins + self.bin[order]
        for rows in np.split(order, np.flatnonzero(np.diff(cell)) + 1) if len(order) else []:
            goes = (arrives[rows, None] == np.arange(bins)) * self.ratio[rows, None]
            found = by_user[self.user[rows]].T @ np.column_stack([own[rows], goes])
            sums[:, self.group[rows[0]], self.bin[rows[0]]] = found
        weighted, weight, observed = sums[..., :components], sums[..., components], sums[..., components + 1]
        moved = sums[..., components + 2 :]
        return MarginalSums(moved, weighted, weight, observed)


@dataclass(frozen=True)
class MarginalSums:
    """Sums over users by step and bin, one row for each resample."""

    moved: Floats
    """[R, G, Z, Z] sum of rho_k over the users who go from z_k = z to z_{k+1} = z'."""
    weighted: Floats
    """[R, G, Z, K] sum of rho_k r_k."""
    weight: Floats
    """[R, G, Z] sum of rho_k."""
    observed: Floats
    """[R, G, Z] users."""

    def __add__(self, other: "MarginalSums", /) -> "MarginalSums":
        groups = max(self.weight.shape[1], other.weight.shape[1])
        mine, theirs = (
            [
                np.pad(each, [(0, 0), (0, groups - each.shape[1])] + [(0, 0)] * (each.ndim - 2))
                for each in (part.moved, part.weighted, part.weight, part.observed)
            ]
            for part in (self, other)
        )
        return MarginalSums(*(a + b for a, b in zip(mine, theirs, strict=True)))

    def total(self) -> Floats:
        """[R, K] sum_k n_k (sum_z w_k(z) (rho r)_kz) / (sum_z w_k(z) rho_kz), n_k users observed at k.

        w_0 = 1, w_{k+1}(z') = sum_z w_k(z) moved_k(z, z') / observed_{k+1}(z'). NaN where nobody who is observed at a
        step has any weight there.
        """
        w = np.ones_like(self.weight[:, 0])
        total = np.zeros((len(w), self.weighted.shape[3]))
        for group in range(self.weight.shape[1]):
            number = self.observed[:, group].sum(axis=1)
            below = (w * self.weight[:, group]).sum(axis=1)
            with np.errstate(invalid="ignore", divide="ignore"):
                mean = np.einsum("rz,rzk->rk", w, self.weighted[:, group]) / below[:, None]
            total += np.where(number[:, None] > 0, number[:, None] * mean, 0.0)
            if group + 1 < self.weight.shape[1]:
                arriving = np.einsum("rz,rzy->ry", w, self.moved[:, group])
                ahead = self.observed[:, group + 1]
                w = np.divide(arriving, ahead, out=np.zeros_like(arriving), where=ahead > 0)
        return total


def mis(sample: Sample, ratio: Floats, place: Integers) -> Marginal:
    """Sums by step k and bin z_k of what the weights w_k(z) need, from `ratio` [n] rho_k and `place` [n] z_k.

    w_{k+1}(z') = E_mu[w_k(z_k) rho_k | z_{k+1} = z'] over the users observed at k + 1; the total is that of r weighed
    by w_k(z_k) rho_k, normalised in each step. Consistent where, given z, what is not in z does not depend on earlier
    actions; otherwise between one-step IPS (z says nothing) and the trajectory's weights (z says all), in bias and in
    variance. Source: Xie, Ma and Wang 2019, with z in place of the state.

    Raises InputError per decision, where nothing is carried from one decision to the next.
    """
    if not sample.sequential:
        raise InputError("mis: per decision no weight is carried on; use ips or wpdis.")
    return Marginal(sample.user, sample.group, place, ratio, sample.reward, int(place.max()) + 1)


def bins(table: Transitions, cuts: dict[str, int]) -> Integers:
    """[N] z of every row: for each feature of `cuts` which of so many parts of equal size (NaN: one of its own), and
    whether the decision came late after the one before.

    Parts are cut at quantiles of the table's own rows; a feature of fewer values has a part for each. Raises InputError
    for a feature that the state does not have, and for more than 64 bins.
    """
    codes: list[tuple[Integers, int]] = [_coded(_late(table).astype(np.float64), 2)]
    for name, parts in cuts.items():
        if name not in table.contract.features:
            raise InputError(
                f"evaluate.marginal: {name!r} is not a state feature (known: {', '.join(table.contract.features)})."
            )
        column = table.state[:, table.contract.features.index(name)].astype(np.float64)
        codes.append(_coded(column, parts))
    total = int(np.prod([size for _, size in codes]))
    if total > MOST_BINS:
        raise InputError(
            f"evaluate.marginal makes {total} bins, more than {MOST_BINS}; give fewer features or parts, as "
            f"{', '.join(f'{name} = 2' for name in cuts)}."
        )
    found = np.zeros(len(table.user), dtype=np.int64)
    for code, size in codes:
        found = found * size + code
    return found


def default_cuts(features: Sequence[str]) -> dict[str, int]:
    """DEFAULT, of the features that are there."""
    return {name: parts for name, parts in DEFAULT.items() if name in features}


def _coded(column: NDArray[np.float64], parts: int) -> tuple[Integers, int]:
    """(which part each value lies in, how many there are); NaN lies in the last."""
    known = np.isfinite(column)
    values = np.unique(column[known])
    edges = (
        values[1:]
        if len(values) <= parts
        else np.unique(np.quantile(column[known], np.arange(1, parts) / parts, method="higher"))
    )
    code = np.searchsorted(edges, column, side="right")
    code[~known] = len(edges) + 1
    return code.astype(np.int64), len(edges) + 1 + bool((~known).any())


def _late(table: Transitions) -> Booleans:
    """[N] whether the time since the same user's last decision is more than LONG_GAP times its median."""
    follows = np.diff(table.user, prepend=-1) == 0
    since = np.append(0.0, table.elapsed_days[:-1])
    median = float(np.median(since[follows])) if follows.any() else 0.0
    found: Booleans = follows & (since > LONG_GAP * median)
    return found
