"""What says whether an off-policy estimate deserves belief: weights, support, calibration of propensities."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from models.table import Transitions
from policies.base import Booleans, Floats
from policies.ope.merging import Sums
from policies.ope.sample import DAYS_PER_WEEK, MICROSECONDS_PER_DAY, Sample
from policies.ope.summaries import UNFOLLOWED

SUPPORT_FLOOR = 1e-3
"""An action counts as taken by a policy, and as shown by the log, where its probability is above this."""
EDGES = (0.0, 0.001, 0.01, 0.1, 0.3, 0.5, 0.8, 1.25, 2.0, 3.0, 10.0, 100.0, 1000.0)
"""Bins of the histogram of weights; one more ends at the largest weight found."""
EXPLORATION = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0)
"""Shares of uniform draws whose effect on the effective sample size is told."""
DOMINANT = 0.5
"""Share of all weight at which one user is the estimate."""
FEW_CLUSTERS = 30
"""Below so many users or rows a bootstrap over them promises no coverage: with five to thirty clusters usual inference
rejects too often. Source: Cameron, Gelbach and Miller 2008."""
BINS = 10
"""Bins of predicted probability in the calibration of propensities."""


@dataclass(frozen=True)
class Steps(Sums):
    """The weights of trajectories step by step; G steps, none per decision."""

    number: Floats
    """[G] users observed."""
    weight: Floats
    """[G] sum w_uk."""
    squared: Floats
    """[G] sum w_uk^2."""

    @classmethod
    def of(cls, sample: Sample, after: Floats) -> "Steps":
        """From `after` [n] w_k."""
        if not sample.sequential:
            return cls(np.zeros(0), np.zeros(0), np.zeros(0))
        columns = (np.ones_like(after), after, after**2)
        return cls(*(np.bincount(sample.group, column).astype(np.float64) for column in columns))

    def __add__(self, other: "Steps", /) -> "Steps":
        length = max(len(self.number), len(other.number))
        mine, theirs = (
            [np.pad(each, (0, length - len(each))) for each in (part.number, part.weight, part.squared)]
            for part in (self, other)
        )
        return Steps(*(a + b for a, b in zip(mine, theirs, strict=True)))

    def ess(self, users: float) -> float:
        """users sum_k n_k / sum_k (n_k^2 / ess_k), ess_k = (sum_u w_uk)^2 / sum_u w_uk^2; 0 where some step has none.

        How much a total over steps, each the n_k users' weighted mean, is less certain than the log's own: it is what
        is left where many users have few decisions and few have many, whose weights are dead. The last steps that
        together hold no more than UNFOLLOWED of the rows are left out, as in `Normalised`.
        """
        if not len(self.number):
            return float(users)
        tail = np.cumsum(self.number[::-1])[::-1]
        live = tail > UNFOLLOWED * tail[0]
        number, weight, squared = self.number[live], self.weight[live], self.squared[live]
        if (weight <= 0).any():
            return 0.0
        return float(users * number.sum() / (number**2 * squared / weight**2).sum())


@dataclass(frozen=True)
class Weights(Sums):
    """What a policy's weights say of its estimates, summed over users.

    A user's weight w_u is, per week, that of the whole trajectory (prod rho); per decision, the mean rho of its rows.
    """

    MOST: ClassVar[tuple[str, ...]] = ("largest", "largest_total", "largest_one_step", "largest_shown")

    weight: float
    """sum w_u."""
    squared: float
    """sum w_u^2."""
    total: float
    """sum t_u of the weights that stand for a user: w_u, or the rho of its rows."""
    number: float
    """sum n_u, how many those are."""
    off: Floats
    """[3] sums of (t_u - n_u)^2, (t_u - n_u) n_u and n_u^2: about 1, where weights lie, no digits are lost."""
    one_step: float
    """sum of rho over all rows."""
    counts: Floats
    """[B] users (per week) or rows (per decision) by their weight, in the bins that begin at EDGES."""
    users: float
    steps: Steps
    largest: float
    """max w_u."""
    largest_total: float
    """max t_u."""
    largest_one_step: float
    """The largest sum of a user's rho."""
    largest_shown: float
    """The largest weight in `counts`."""

    @classmethod
    def of(cls, sample: Sample, ratio: Floats) -> "Weights":
        """From `ratio` [n] rho_k."""
        total, number = _user_weights(sample, ratio)
        weight, one_step = total / number, sample.per_user(np.where(sample.closed, 0.0, ratio))
        shown = total if sample.sequential else ratio
        return cls(
            weight=float(weight.sum()),
            squared=float((weight**2).sum()),
            total=float(total.sum()),
            number=float(number.sum()),
            off=_off(total, number),
            one_step=float(one_step.sum()),
            counts=np.histogram(shown, [*EDGES, np.inf])[0].astype(np.float64),
            users=float(sample.users),
            steps=Steps.of(sample, sample.weights(ratio)[1]),
            largest=float(weight.max()),
            largest_total=float(total.max()),
            largest_one_step=float(one_step.max()),
            largest_shown=float(shown.max()),
        )

    def diagnostics(self) -> dict[str, float]:
        """Effective sample size in users, largest weight's share, mean weight and its standard error.

        ess = (sum w_u)^2 / sum w_u^2 of the whole trajectories, or what their steps leave (`Steps.ess`) where that is
        less: U where all are 1. largest_weight = max w_u / sum w_u. mean_weight, which is 1 on average where
        propensities are right, is the mean over trajectories or over rows; its error is clustered by user. Source:
        Kish 1965.
        """
        whole = self.weight**2 / self.squared if self.squared > 0 else 0.0
        return {
            "ess": min(whole, self.steps.ess(self.users)),
            "largest_weight": float(self.largest / self.weight) if self.squared > 0 else 1.0,
            "mean_weight": self.total / self.number,
            "mean_weight_se": _error(self.off, self.total, self.number),
        }

    def too_few_carry(self, users: int, one_step: bool = False) -> str | None:
        """Why the weights can carry no estimate: nobody has weight, or one of `users` DOMINANT of it; else None.

        A user's weight is, per week, that of the whole trajectory (with `one_step` the sum of its rows'); per decision,
        the sum of its rows'.
        """
        total, largest = (self.one_step, self.largest_one_step) if one_step else (self.total, self.largest_total)
        if total == 0:
            return "no user of the log acts as the policy would"
        share = float(largest) / total
        return f"one of {users} users holds {share:.0%} of the weight" if share >= DOMINANT else None

    def histogram(self) -> dict[str, list[float]]:
        """Counts of users (per week, by the weight of the trajectory) or rows (per decision, by rho) by weight."""
        edges = [*EDGES, max(float(self.largest_shown), EDGES[-1] * 10)]
        return {"edges": edges, "counts": [int(count) for count in self.counts]}


def weight_diagnostics(sample: Sample, ratio: Floats) -> dict[str, float]:
    """`Weights.diagnostics` of one sample, from `ratio` [n] rho_k."""
    return Weights.of(sample, ratio).diagnostics()


def _off(total: Floats, number: Floats) -> Floats:
    """[3] sums over users of (t - n)^2, (t - n) n and n^2."""
    off = total - number
    return np.array([off @ off, off @ number, number @ number])


def _error(off: Floats, total: float, number: float) -> float:
    """sqrt(sum_u (t_u - m n_u)^2) / sum n, m = sum t / sum n: the error of m, clustered by user."""
    beyond = (total - number) / number
    squared = off[0] - 2 * beyond * off[1] + beyond**2 * off[2]
    return float(np.sqrt(max(squared, 0.0)) / number)


def _user_weights(sample: Sample, ratio: Floats) -> tuple[Floats, Floats]:
    """[U] sums of the weights that stand for a user and [U] how many they are."""
    weight = _last_weights(sample, ratio)
    if not sample.sequential:
        return sample.per_user(weight), sample.per_user(np.ones_like(weight))
    return weight, np.ones(sample.users)


def _last_weights(sample: Sample, ratio: Floats) -> Floats:
    """[U] weights of whole trajectories; per decision [n] those of the rows."""
    _, after = sample.weights(ratio)
    return after[np.append(sample.start[1:], len(after)) - 1] if sample.sequential else after


@dataclass(frozen=True)
class Explored(Sums):
    """What another share of exploration would have done to the weights, summed over users of m weights each.

    Per week m = 1, the weight of the trajectory; per decision m is the number of a user's rows.
    """

    users: float
    single: float
    """sum 1 / m."""
    weight: float
    """sum over weights of w / m^2."""
    both: Floats
    """[E] sum over weights of w w' / m^2 for each share of EXPLORATION."""

    @classmethod
    def of(cls, sample: Sample, ratio: Floats) -> "Explored":
        w = _last_weights(sample, ratio)
        rows = np.bincount(sample.user)
        each = np.ones(sample.users) if sample.sequential else 1.0 / rows[sample.user]
        both = np.zeros(len(EXPLORATION))
        for place, share in enumerate(EXPLORATION):
            explored = (1 - share) * sample.propensity + share / sample.legal.sum(axis=1)
            both[place] = (w * each**2) @ _last_weights(sample, ratio * sample.propensity / explored)
        return cls(float(sample.users), float((each**2).sum()), float((w * each**2).sum()), both)

    def ess(self) -> dict[str, float]:
        """Effective sample size in users, had the log drawn a share e of its decisions uniformly: by e of EXPLORATION.

        Under mu_e = (1 - e) mu + e / |legal| the weights are w' = pi / mu_e, multiplied along a trajectory, and that of
        a user is the mean of m of them: U / E_u[(sum_i E_mu_e[w'_i^2] + m^2 - m) / m^2], the decisions of a user taken
        to be drawn apart. E_mu_e[w'^2] = E_pi[w'] = E_mu[w w'] is estimated from this log's own weights w, normalised:
        as uncertain as they are where they are few.
        """
        if self.weight <= 0:
            return {f"{share:g}": 0.0 for share in EXPLORATION}
        squared = self.both / self.weight * self.single + self.users - self.single
        return {f"{share:g}": float(self.users**2 / each) for share, each in zip(EXPLORATION, squared, strict=True)}


def supported(sample: Sample, probability: Floats) -> Booleans:
    """[n] whether the log could have shown what the policy does: every action with pi > 1e-3 has mu > 1e-3.

    mu is known by propensities alone: of the logged action it is p, and of the other of two actions 1 - p. With three
    actions or more the others share 1 - p in a way the log does not say: they count as shown where 1 - p > 1e-3, which
    is necessary and not sufficient. A row whose logged action the configured constraints forbid is not supported.
    """
    row = np.arange(len(sample.action))
    other = probability > SUPPORT_FLOOR
    other[row, sample.action] = False
    taken = probability[row, sample.action] > SUPPORT_FLOOR
    found: Booleans = (
        sample.legal[row, sample.action]
        & (~taken | (sample.propensity > SUPPORT_FLOOR))
        & (~other.any(axis=1) | (1 - sample.propensity > SUPPORT_FLOOR))
    )
    return found


@dataclass(frozen=True)
class Support(Sums):
    """How many user-weeks, or decisions, are `supported`.

    A user-week is seven days from the user's first row; it is supported where each of its rows is.
    """

    shown: float
    units: float

    @classmethod
    def of(cls, sample: Sample, probability: Floats) -> "Support":
        """`probability` [n, A] pi."""
        shown = supported(sample, probability) | sample.closed
        if not sample.sequential:
            return cls(float(shown.sum()), float(len(shown)))
        since = sample.at - sample.at[sample.start][sample.user]
        week = since // int(DAYS_PER_WEEK * MICROSECONDS_PER_DAY)
        first = (np.diff(sample.user, prepend=-1) != 0) | (np.diff(week, prepend=-1) != 0)
        weeks = np.logical_and.reduceat(shown, np.flatnonzero(first))
        return cls(float(weeks.sum()), float(len(weeks)))

    def share(self) -> float:
        return self.shown / self.units


@dataclass(frozen=True)
class Calibration(Sums):
    """What the propensities of a log say of themselves, over decisions with a choice left to chance, by user."""

    number: Floats
    """[A] decisions at which each action is legal."""
    weight: Floats
    """[A] sum of 1{A = a} / p over them."""
    off: Floats
    """[A, 3] as `Weights.off`, t_u and n_u those of a user."""
    legal: float
    """Legal actions, summed over decisions."""
    inverse: float
    """sum of 1 / p where the action taken is legal."""
    bins: Floats
    """[B, 3] of the second of two actions: sum of its probability, how often it was taken, decisions."""

    @classmethod
    def of(cls, table: Transitions) -> "Calibration":
        actions = table.legal.shape[1]
        chance = (table.legal.sum(axis=1) > 1) & (table.propensity < 1 - 1e-9)
        inverse = 1.0 / table.propensity
        number, weight, off = np.zeros(actions), np.zeros(actions), np.zeros((actions, 3))
        for each in range(actions):
            rows = chance & table.legal[:, each]
            drawn = (table.action == each)[rows] * inverse[rows]
            number[each], weight[each] = len(drawn), drawn.sum()
            user = table.user[rows]
            by_user: list[Floats] = [
                np.asarray(np.bincount(user, column), dtype=np.float64) for column in (drawn, np.ones_like(drawn))
            ]
            off[each] = _off(*by_user)
        taken = table.legal[np.arange(len(table.action)), table.action]
        bins = np.zeros((BINS, 3))
        if actions == 2:
            sent = (table.action == 1)[chance]
            predicted = np.where(sent, table.propensity[chance], 1 - table.propensity[chance])
            # 1 - 0.8 falls short of 0.2 by a rounding and belongs beside it.
            place = np.minimum((predicted * BINS + 1e-9).astype(np.int64), BINS - 1)
            columns = (predicted, sent, np.ones_like(predicted))
            bins = np.stack([np.bincount(place, column, BINS) for column in columns], axis=1)
        drawn_inverse = float((inverse * taken)[chance].sum())
        return cls(number, weight, off, float(table.legal[chance].sum()), drawn_inverse, bins)

    def plain(self, actions: Sequence[str]) -> dict[str, Any]:
        """Whether the propensities are those that the log was drawn with, ready for JSON.

        `actions`: per action, the mean of 1{A = a} / p over the rows where it is legal, which should be 1, with its
        standard error clustered by user. `inverse_sum`: c = mean |legal| / mean(1 / p), about what the recorded
        propensities sum to over the legal actions (1 where they are right, above 1 where they are too large). `bins`
        (two actions only): predicted probability of the second action against how often it was taken. An action that
        the log never takes where it is legal makes its mean fall below 1 too: that is missing support, and it looks the
        same.
        """
        return {
            "actions": {
                name: {
                    "mean_weight": float(weight / number),
                    "se": _error(off, float(weight), float(number)),
                    "decisions": int(number),
                }
                for name, number, weight, off in zip(actions, self.number, self.weight, self.off, strict=True)
                if number > 0
            },
            "bins": [
                {"predicted": float(predicted / n), "observed": float(sent / n), "n": int(n)}
                for predicted, sent, n in self.bins
                if n > 0
            ],
            "inverse_sum": self.legal / self.inverse if self.inverse > 0 else None,
        }
