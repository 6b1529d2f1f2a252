"""Weights from a judge's answers, corrected for wrong answers and for a liking of what is shown first.

eta = w.d + b,   d = totals of the week shown as A - totals of the week shown as B
P(says A)   = (1 - e) sigma(eta - t) + e sigma(-eta - t)
P(says B)   = e sigma(eta - t) + (1 - e) sigma(-eta - t)
P(says tie) = 1 - sigma(eta - t) - sigma(-eta - t)

With t = 0, where nobody says tie, P(says A) = e + (1 - 2e) sigma(w.d + b): Bradley and Terry's preference, an answer
turned round with probability e, and a bias b that adds to whatever is shown first. t >= 0 is Rao and Kupper's (1967)
threshold, within which weeks are tied.

Where a component seldom differs, the few answers about it may all name the same side, and its most likely weight is
without bound. So every weight has the log-F(1, 1) prior of Greenland and Mansournia (2015), which counts as one more
answer about a typical difference of that component, half of it for each side.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit, log_expit
from threadpoolctl import threadpool_limits

from models.errors import InputError

Floats = NDArray[np.float64]
Codes = NDArray[np.int8]
SAYS_A, SAYS_B, SAYS_TIE, NOTHING = 0, 1, 2, -1

MOST_WRONG = 0.45
"""A judge that is wrong more often says next to nothing; above 1/2 it would be one of the opposite taste."""
WIDEST = 20.0
"""Bound of the bias and of the threshold."""
LEAST = 1e-12


@dataclass(frozen=True)
class Judged:
    """What the answers of a judge say; K components, intervals [.., 2] at the level that was asked for."""

    weights: Floats
    """[K] per raw unit, on the scale of the judge's own noise."""
    intervals: Floats
    """[K, 2]"""
    covariance: Floats
    """[K, K] of the weights, over resamples."""
    scale: Floats
    """[K] root mean square of the differences that were shown."""
    bias: float
    """b: above 0 the week shown first is favoured; e^b are its odds where the weeks are equal."""
    bias_interval: tuple[float, float]
    wrong: float
    """e, in [0, MOST_WRONG]."""
    wrong_interval: tuple[float, float]
    threshold: float
    """t, 0 where nobody says tie."""
    log_likelihood: float
    pairs: int
    answers: int


def fit_judged(
    differences: Floats,
    first: Codes,
    second: Codes,
    *,
    corrected: bool = True,
    resamples: int = 200,
    confidence: float = 0.95,
    seed: int = 0,
) -> Judged:
    """The most likely w, b, e and t of P pairs, each asked in both orders, by what the top of the file says.

    `differences` [P, K]: totals of the left week minus those of the right one, raw units. `first` and `second` [P]:
    what was said with the left week shown as A, and with the right one shown as A; NOTHING where there was no answer.
    Without `corrected`, b = e = 0.

    The two answers about a pair are not independent, as both rest on the same weeks. The likelihood is the product of
    their own probabilities all the same (a composite likelihood; Varin, Reid and Firth 2011), which needs no statement
    of how they depend on each other, and the intervals are percentiles over resamples of whole pairs.

    Identified: the direction of w, from any answers; b, from the two orders, as w.d changes its sign between them and b
    does not; t, from ties; e against the length of w, only as P levels off at e and 1 - e, so from pairs that nobody
    with open eyes could get wrong. Where such pairs are rare, e, b and the length of w are uncertain together, and
    their intervals are wide; ratios of weights are not touched by it. e and 1 - e with -w and -b say the same: e is
    taken below 1/2.

    Raises InputError where fewer pairs than weights were answered, a component never differs or is a sum of others, or
    only one kind of answer was given.
    """
    d, said, pair = _answers(differences, first, second)
    scale = _checked(d, said, pair)
    d = d / scale
    free = _Free(_typical(d), corrected, bool((said == SAYS_TIE).any()))
    # On a busy machine, products this small wait for their threads many times as long as they take.
    with threadpool_limits(limits=1):
        found = _fitted(d, said, np.ones(len(said)), free, free.start(d, said))
        drawn = _resampled(d, said, pair, free, found, resamples, seed)
    tail, k = (1 - confidence) / 2, d.shape[1]
    low, high = np.quantile(drawn, [tail, 1 - tail], axis=0)
    return Judged(
        weights=found[:k] / scale,
        intervals=np.column_stack([low[:k], high[:k]]) / scale[:, None],
        covariance=np.cov(drawn[:, :k] / scale, rowvar=False).reshape(k, k),
        scale=scale,
        bias=float(found[k]),
        bias_interval=(float(low[k]), float(high[k])),
        wrong=float(found[k + 1]),
        wrong_interval=(float(low[k + 1]), float(high[k + 1])),
        threshold=float(found[k + 2]),
        log_likelihood=-len(said) * _loss(found, d, said, np.ones(len(said)))[0],
        pairs=len(np.unique(pair)),
        answers=len(said),
    )


def _answers(differences: Floats, first: Codes, second: Codes) -> tuple[Floats, Codes, NDArray[np.int64]]:
    """[M, K] differences as they were shown, [M] what was said and [M] of which pair, of all that was answered."""
    if not np.isfinite(differences).all():
        raise InputError("answers: a total of a user-week is not finite; look at the reward components of the log.")
    shown = np.concatenate([differences, -differences])
    said = np.concatenate([first, second])
    pair = np.tile(np.arange(len(differences)), 2)
    there = said != NOTHING
    return shown[there], said[there], pair[there]


def _checked(d: Floats, said: Codes, pair: NDArray[np.int64]) -> Floats:
    """[K] root mean square of each component."""
    pairs, k = len(np.unique(pair)), d.shape[1]
    if pairs <= k:
        raise InputError(f"answers: {pairs} pairs were answered, of {k} weights; ask for many more pairs than weights.")
    scale: Floats = np.sqrt((d**2).mean(axis=0))
    if not scale.all():
        raise InputError(
            f"answers: component {int(np.argmin(scale))} differs in no pair, and nothing is said of it; leave it out."
        )
    if np.linalg.matrix_rank(d / scale, tol=1e-8 * np.sqrt(len(d))) < k:
        raise InputError(
            "answers: in these pairs one component is a sum of others, and their weights cannot be told apart; leave "
            "one out."
        )
    if len(np.unique(said)) == 1:
        name = {SAYS_A: "A", SAYS_B: "B", SAYS_TIE: "tie"}[int(said[0])]
        raise InputError(f"answers: every one is {name}, whatever was shown; such a judge says nothing of the weeks.")
    return scale


class _Free:
    """Which parameters move, and within what: w [K], b, e, t."""

    def __init__(self, typical: Floats, corrected: bool, ties: bool) -> None:
        self.typical, self.k = typical, len(typical)
        """[K] what a component differs by where it does: the unit of its weight's prior."""
        self.bounds = [
            *[(None, None)] * self.k,
            (-WIDEST, WIDEST) if corrected else (0.0, 0.0),
            (0.0, MOST_WRONG) if corrected else (0.0, 0.0),
            (0.0, WIDEST) if ties else (0.0, 0.0),
        ]
        self.corrected, self.ties = corrected, ties

    def start(self, d: Floats, said: Codes) -> Floats:
        """The fit without correction, which has no other optimum."""
        plain = _Free(self.typical, False, self.ties)
        zero = np.zeros(self.k + 3)
        zero[-1] = 0.5 if self.ties else 0.0
        if not self.corrected:
            return zero
        found = _fitted(d, said, np.ones(len(said)), plain, zero)
        found[self.k + 1] = 0.1
        return found


def _typical(d: Floats) -> Floats:
    """[K] root mean square of each component over the answers in which it differs."""
    found: Floats = np.sqrt((d**2).sum(axis=0) / (d != 0).sum(axis=0))
    return found


def _fitted(d: Floats, said: Codes, weight: Floats, free: _Free, start: Floats) -> Floats:
    """The most likely parameters of answers that count `weight` [M] times, the prior once."""
    found: Any = minimize(
        _penalised,
        start,
        args=(d, said, weight, free.typical),
        jac=True,
        method="L-BFGS-B",
        bounds=free.bounds,
        options={"maxiter": 500},
    )
    return np.asarray(found.x, dtype=np.float64)


def _penalised(theta: Floats, d: Floats, said: Codes, weight: Floats, typical: Floats) -> tuple[float, Floats]:
    """The loss with -log of the prior: -(log sigma(u) + log sigma(-u)) / 2 of each weight, u = w x typical."""
    loss, gradient = _loss(theta, d, said, weight)
    u, share = theta[: len(typical)] * typical, 1 / weight.sum()
    gradient[: len(typical)] += share * typical * (expit(u) - 0.5)
    return loss - share * float((log_expit(u) + log_expit(-u)).sum()) / 2, gradient


def _loss(theta: Floats, d: Floats, said: Codes, weight: Floats) -> tuple[float, Floats]:
    """Mean negative log likelihood of what was said, and its gradient."""
    k = d.shape[1]
    bias, wrong, threshold = theta[k:]
    eta = d @ theta[:k] + bias
    up, down = expit(eta - threshold), expit(-eta - threshold)
    # Slopes of sigma.
    of_up, of_down = up * (1 - up), down * (1 - down)
    a, b, tie = said == SAYS_A, said == SAYS_B, said == SAYS_TIE
    right, other = np.where(a, 1 - wrong, wrong), np.where(a, wrong, 1 - wrong)
    p = np.where(tie, 1 - up - down, right * up + other * down)
    by_eta = np.where(tie, of_down - of_up, right * of_up - other * of_down)
    by_wrong = np.where(tie, 0.0, np.where(b, up - down, down - up))
    by_threshold = np.where(tie, of_up + of_down, -right * of_up - other * of_down)
    share = weight / weight.sum()
    p = np.maximum(p, LEAST)
    g = -share / p
    gradient = np.concatenate(
        [d.T @ (g * by_eta), [(g * by_eta).sum(), (g * by_wrong).sum(), (g * by_threshold).sum()]]
    )
    return float(-(share * np.log(p)).sum()), gradient


def _resampled(
    d: Floats, said: Codes, pair: NDArray[np.int64], free: _Free, start: Floats, resamples: int, seed: int
) -> Floats:
    """[resamples, K + 3] fits of pairs drawn with replacement."""
    rng, pairs = np.random.default_rng(seed), np.unique(pair)
    place = np.searchsorted(pairs, pair)
    drawn = np.empty((resamples, len(start)))
    for row in range(resamples):
        times = np.bincount(rng.integers(len(pairs), size=len(pairs)), minlength=len(pairs))[place]
        drawn[row] = _fitted(d, said, times.astype(np.float64), free, start)
    return drawn
