"""Intervals of weights and of their ratios by the profile of the penalised likelihood.

Of a weight: all values c at which D(c) = 2 (l* - max_{theta: w_k = c} l) stays below the quantile of chi-squared of one
degree of freedom (Venzon and Moolgavkar 1988; with the Jeffreys prior Heinze and Schemper 2002). Unlike estimate and
standard error it follows the skewness of few answers, and it does not depend on how a weight is written.

Of a ratio w_k / w_j: all values at which the same holds under w_k = c w_j, the likelihood's form of Fieller (1954). As
his, it is unbounded where the denominator is not told from 0.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.stats import chi2

from models.rewards.bradley_terry import Matrix, Model, Vector, maximise

ROUNDS = 60
EXACT = 1e-6
"""Of the root of D at an end: the end is then good to about as many standard errors."""


@dataclass(frozen=True)
class Ratio:
    """w_k / w_j; an end that is None lies nowhere."""

    value: float
    low: float | None
    high: float | None

    def times(self, factor: float) -> "Ratio":
        """In other units; `factor` is above 0."""
        low, high = (None if end is None else end * factor for end in (self.low, self.high))
        return Ratio(self.value * factor, low, high)


def constrained(basis: Matrix, normal: Vector) -> Matrix:
    """[P, F - 1] orthonormal basis of the theta in span(basis) that are orthogonal to `normal` [P]."""
    inside = basis.T @ normal
    # The first right singular vector is along `normal`, the others are all that is orthogonal to it.
    found: Matrix = basis @ np.linalg.svd(inside[None])[2][1:].T
    return found


def profile(model: Model, best: Vector, place: int, confidence: float) -> tuple[float, float]:
    """Both ends of the interval of parameter `place` around the maximum `best` [P], in the model's own units.

    Each end is found by Newton's method on the signed root of D, which is nearly a line: its slope is known, as the
    derivative of the maximum along the constraint is that of the objective. A step that leaves the bracket halves it,
    none goes out by more than as far again, and every maximum is looked for from the last one inside: where answers
    are perfectly consistent, others lie further out.
    """
    top, basis = model.at(best).value, model.free
    normal = np.zeros(model.size)
    normal[place] = 1.0
    along = constrained(basis, normal)
    cover = model.covariance(best)
    target, error = math.sqrt(chi2.ppf(confidence, 1)), math.sqrt(cover[place, place])
    # Where the others go as this one is moved, for a start.
    tilt = cover[:, place] / cover[place, place]
    ends = []
    for sign in (-1.0, 1.0):
        inside, outer, ahead = best, math.inf * sign, tilt
        wanted = best[place] + sign * target * error
        for _ in range(ROUNDS):
            theta = maximise(model, inside + (wanted - inside[place]) * ahead, along)
            here = model.at(theta)
            root = math.sqrt(max(2 * (top - here.value), 0.0))
            if abs(root - target) < EXACT:
                break
            # Along the tilt the other derivatives are 0, but for the constraint's own.
            slope = -float(here.gradient @ tilt) * sign / root if root else 0.0
            if root < target:
                inside, ahead = theta, (theta - best) / (wanted - best[place])
            else:
                outer = wanted
            inner, reach = inside[place], abs(inside[place] - best[place]) or target * error
            if abs(outer - inner) < EXACT * reach:
                # The maximum jumped: from inside, further out, there is a higher one.
                outer = math.inf * sign
            far = outer if math.isfinite(outer) else inner + 2 * sign * reach
            found = wanted + sign * (target - root) / slope if slope > 0 else far
            wanted = found if sign * inner < sign * found < sign * far else (inner + far) / 2
        else:
            raise ArithmeticError(f"preferences: no end of the interval of parameter {place} within {ROUNDS} rounds.")
        ends.append(float(wanted))
    return ends[0], ends[1]


def ratio(model: Model, best: Vector, over: int, under: int, confidence: float) -> Ratio:
    """theta[over] / theta[under] and its interval, in the model's own units; None at both ends where it is unbounded.

    Directions (w_under, w_over) = L (cos, sin)(psi), L L' their covariance, make D nearly proportional to
    sin^2(psi - psi_hat): it rises up to a right angle from the estimate, where the search ends.
    """
    top, basis = model.at(best).value, model.free
    limit = float(chi2.ppf(confidence, 1))
    pair = [under, over]
    shape = np.linalg.cholesky(model.covariance(best)[np.ix_(pair, pair)])
    at = np.linalg.solve(shape, best[pair])
    centre = math.atan2(at[1], at[0])

    def direction(psi: float) -> NDArray[np.float64]:
        found: NDArray[np.float64] = shape @ np.array([math.cos(psi), math.sin(psi)])
        return found

    def excess(psi: float) -> float:
        """D - limit under the constraint that (w_under, w_over) lies along `direction`."""
        normal = np.zeros(model.size)
        normal[pair] = np.array([-1.0, 1.0]) * direction(psi)[::-1]
        along = constrained(basis, normal)
        theta = maximise(model, along @ (along.T @ best), along)
        return 2 * (top - model.at(theta).value) - limit

    value = float(best[over] / best[under]) if best[under] else math.nan
    ends = []
    for sign in (-1.0, 1.0):
        furthest = centre + sign * math.pi / 2
        if excess(furthest) <= 0:
            return Ratio(value, None, None)
        psi = brentq(excess, centre, furthest, xtol=1e-9)
        ends.append(direction(psi))
    if min(end[0] * best[under] for end in ends) <= 0:
        # The denominator may be 0: what is left over is no interval.
        return Ratio(value, None, None)
    found = sorted(float(end[1] / end[0]) for end in ends)
    return Ratio(value, found[0], found[1])
