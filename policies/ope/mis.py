"""State-marginalised importance sampling: one weight for each state and step, not one for each history."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

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
        by_user, own, arrives = np.ascontiguousarray(counts.T), self._own, self._arrives
        for rows in self._cells:
            goes = (arrives[rows, None] == np.arange(bins)) * self.ratio[rows, None]
            found = by_user[self.user[rows]].T @ np.column_stack([own[rows], goes])
            sums[:, self.group[rows[0]], self.bin[rows[0]]] = found
        weighted, weight, observed = sums[..., :components], sums[..., components], sums[..., components + 1]
        moved = sums[..., components + 2 :]
        return MarginalSums(moved, weighted, weight, observed)

    @cached_property
    def _own(self) -> Floats:
        """[n, K + 2] rho r, rho and 1."""
        return np.column_stack([self.ratio[:, None] * self.reward, self.ratio, np.ones_like(self.ratio)])

    @cached_property
    def _arrives(self) -> Integers:
        """[n] the bin of the user's next row; -1 after the last."""
        on = np.flatnonzero(np.diff(self.user, append=-1) == 0)
        found = np.full(len(self.user), -1)
        found[on] = self.bin[on + 1]
        return found

    @cached_property
    def _cells(self) -> list[Integers]:
        """Rows of each step and bin. One user has one row a step: so they are a part of the users, and few matrix
        products do."""
        order = np.lexsort((self.bin, self.group))
        cell = self.group[order] * self.bins + self.bin[order]
        return np.split(order, np.flatnonzero(np.diff(cell)) + 1) if len(order) else []


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


def mis(sample: Sample, ratio: Floats, place: Integers, number: int | None = None) -> Marginal:
    """Sums by step k and bin z_k of what the weights w_k(z) need, from `ratio` [n] rho_k and `place` [n] z_k, one of
    `number` bins: by default as many as the sample shows.

    w_{k+1}(z') = E_mu[w_k(z_k) rho_k | z_{k+1} = z'] over the users observed at k + 1; the total is that of r weighed
    by w_k(z_k) rho_k, normalised in each step. Consistent where, given z, what is not in z does not depend on earlier
    actions; otherwise between one-step IPS (z says nothing) and the trajectory's weights (z says all), in bias and in
    variance. Source: Xie, Ma and Wang 2019, with z in place of the state.

    Raises InputError per decision, where nothing is carried from one decision to the next.
    """
    if not sample.sequential:
        raise InputError("mis: per decision no weight is carried on; use ips or wpdis.")
    return Marginal(sample.user, sample.group, place, ratio, sample.reward, number or int(place.max()) + 1)


@dataclass(frozen=True)
class Bins:
    """Where the bins of a log's states are cut, so that every part of it has the same."""

    late: float
    """Days between two decisions beyond which the later one is late; inf where none is, and lateness parts nothing."""
    edges: dict[str, Floats]
    """By feature, the least value of every part but the first."""
    unknown: frozenset[str]
    """Features that have a part of their own for NaN; elsewhere NaN lies in the last part."""

    @classmethod
    def of(cls, table: Transitions, cuts: dict[str, int]) -> "Bins":
        """Each feature of `cuts` in so many parts of equal size, at quantiles of the table's own rows; a feature of
        fewer values has a part for each.

        Raises InputError for a feature that the state does not have, and for more than 64 bins.
        """
        edges, unknown = {}, set()
        for name, parts in cuts.items():
            if name not in table.contract.features:
                raise InputError(
                    f"evaluate.marginal: {name!r} is not a state feature (known: {', '.join(table.contract.features)})."
                )
            column = _column(table, name)
            edges[name] = _edges(column[np.isfinite(column)], parts)
            if not np.isfinite(column).all():
                unknown.add(name)
        follows, since = _since(table)
        late = LONG_GAP * float(np.median(since[follows])) if follows.any() else np.inf
        found = cls(late if (since[follows] > late).any() else np.inf, edges, frozenset(unknown))
        if found.number > MOST_BINS:
            raise InputError(
                f"evaluate.marginal makes {found.number} bins, more than {MOST_BINS}; give fewer features or parts, as "
                f"{', '.join(f'{name} = 2' for name in cuts)}."
            )
        return found

    @property
    def number(self) -> int:
        """Z."""
        return int(np.prod([1 + np.isfinite(self.late), *(self._parts(name) for name in self.edges)]))

    def place(self, table: Transitions) -> Integers:
        """[N] z of every row: for each feature which part, and whether the decision came late after the one before."""
        follows, since = _since(table)
        found: Integers = (follows & (since > self.late)).astype(np.int64)
        for name, edges in self.edges.items():
            column = _column(table, name)
            code = np.searchsorted(edges, column, side="right")
            code[~np.isfinite(column)] = self._parts(name) - 1
            found = found * self._parts(name) + code
        return found

    def _parts(self, name: str) -> int:
        return len(self.edges[name]) + 1 + (name in self.unknown)


def bins(table: Transitions, cuts: dict[str, int]) -> Integers:
    """[N] z of every row, by bins of the table's own. Raises InputError as `Bins.of` does."""
    return Bins.of(table, cuts).place(table)


def default_cuts(features: Sequence[str]) -> dict[str, int]:
    """DEFAULT, of the features that are there."""
    return {name: parts for name, parts in DEFAULT.items() if name in features}


def _column(table: Transitions, name: str) -> Floats:
    column: Floats = table.state[:, table.contract.features.index(name)].astype(np.float64)
    return column


def _edges(known: Floats, parts: int) -> Floats:
    """The least value of every part but the first, of values that are all `known`."""
    values = np.unique(known)
    if len(values) <= parts:
        return values[1:]
    found: Floats = np.unique(np.quantile(known, np.arange(1, parts) / parts, method="higher"))
    return found


def _since(table: Transitions) -> tuple[Booleans, Floats]:
    """[N] whether a row follows another of its user, and [N] days since the row before it."""
    return np.diff(table.user, prepend=-1) == 0, np.append(0.0, table.elapsed_days[:-1])
