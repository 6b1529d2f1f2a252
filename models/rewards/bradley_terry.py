"""The likelihood of comparisons: Bradley-Terry, Davidson's ties, Plackett-Luce, and raters who differ.

Rater r chooses alternative a of a choice with probability proportional to exp(s_a),

    s_a = beta_r x_a.w + b_r z_a + tau t_a,

x its features, z its side (+1/2 left, -1/2 right), t whether it is the tie. For a pair of difference d this is
P(left) = sigma(beta_r w.d + b_r) among two (Bradley and Terry 1952), and with ties (Davidson 1970; sides as
Davidson and Beaver 1977)

    P(left) : P(tie) : P(right) = exp(eta / 2) : nu : exp(-eta / 2),   eta = beta_r w.d + b_r,   nu = exp(tau).

A decided answer then still has the odds exp(eta): weights mean the same whether or not ties were allowed. Under Rao and
Kupper (1967) they would not, as there a tie is a threshold on the difference. Rankings are Plackett (1975) and Luce's.

What is maximised is

    l(theta) + 1/2 log det I_(w, tau)(theta) - 1/2 sum_r b_r^2 / s_b^2 - 1/2 sum_r log(beta_r)^2 / s_beta^2

under sum_r n_r log(beta_r) = 0, n_r the choices of rater r, 0 where one key was pressed: the geometric mean over
choices is 1 (a plain mean would tie the scale of w to raters of three answers). The second term is the Jeffreys prior
of Firth (1993): it removes the first-order bias of w and keeps it finite where the answers are perfectly consistent
(Heinze and Schemper 2002). The others shrink what is asked of each rater.
"""

import functools
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from models.rewards.choices import LEFT, RIGHT, Choices, one_sided

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]

STEPS, HALVINGS, PATIENCE = 100, 40, 15
LARGEST = 5.0
"""Longest Newton step, in standardised units: further away the quadratic says nothing."""
CLOSE = 1e-12
"""Newton decrement at which the maximum is reached: theta is then within a millionth of its standard error."""
APART = 1e-5
"""Of the thetas whose gradients are differenced: rounding and the next order are both below 1e-9 of the curvature."""
NEAR = 1e-6
"""The same where rounding hides which way is up, or no more steps are left: within a thousandth."""


@dataclass(frozen=True)
class Point:
    """The objective and its derivatives at one theta of P parameters."""

    value: float
    gradient: Vector
    """[P] of all terms."""
    curvature: Matrix
    """[P, P] minus the second derivatives, but for those of the Jeffreys prior by reliabilities."""


@dataclass(frozen=True)
class Model:
    """P = K + 1 + 2 R parameters: w [K], tau, b [R], log beta [R]; those a log cannot tell stay where they start."""

    choices: Choices
    """Sorted by rater."""
    raters: int
    side_sd: float
    reliability_sd: float
    identified: Matrix
    """[K + 1, q] orthonormal directions of (w, tau) that the choices can tell: what the Jeffreys prior is of."""

    @property
    def weights(self) -> int:
        return int(self.choices.features.shape[2])

    @property
    def size(self) -> int:
        return self.weights + 1 + 2 * self.raters

    @property
    def sides(self) -> slice:
        return slice(self.weights + 1, self.weights + 1 + self.raters)

    @property
    def reliabilities(self) -> slice:
        return slice(self.weights + 1 + self.raters, self.size)

    @property
    def counts(self) -> Vector:
        """[R] choices of each rater, 0 for those who pressed one key, unless all did: their noise is nobody's unit."""
        each, paired = self.choices, (self.choices.side != 0).any(axis=1)
        sides = [
            np.bincount(each.rater[paired & (each.chosen == side)], minlength=self.raters) for side in (LEFT, RIGHT)
        ]
        found = np.bincount(each.rater, minlength=self.raters).astype(np.float64)
        pressed = np.array([one_sided(int(left), int(right)) for left, right in zip(*sides, strict=True)])
        return found if pressed.all() else np.where(pressed, 0.0, found)

    @functools.cached_property
    def free(self) -> Matrix:
        """[P, F] orthonormal basis of what is fitted: identified w and tau, sides of those who compared two, and
        log reliabilities whose mean over the answers is 0."""
        first = np.zeros((self.size, self.identified.shape[1]))
        first[: self.weights + 1] = self.identified
        paired = np.unique(self.choices.rater[(self.choices.side != 0).any(axis=1)])
        second = np.eye(self.size)[:, self.weights + 1 + paired]
        # Orthogonal to the counts are all left singular vectors of their column but the first.
        contrasts = np.linalg.svd(self.counts[:, None])[0][:, 1:]
        third = np.zeros((self.size, self.raters - 1))
        third[self.reliabilities] = contrasts
        return np.hstack([first, second, third])

    @property
    def ties(self) -> bool:
        """Whether anybody tied: else tau is -infinity, and no alternative is a tie."""
        return bool(self.identified[-1].any())

    def covariance(self, theta: Vector) -> Matrix:
        """[P, P] inverse of Fisher's information and the shrinkage over what is fitted, 0 elsewhere."""
        basis = self.free
        known = self.information(theta) + np.diag(self._precision)
        found: Matrix = basis @ np.linalg.inv(basis.T @ known @ basis) @ basis.T
        return found

    def log_probabilities(self, theta: Vector) -> Matrix:
        """[n, m] of every alternative of every choice, -inf where there is none."""
        each, rater = self.choices, self.choices.rater
        beta = np.exp(theta[self.reliabilities])[rater, None]
        side = theta[self.sides][rater, None]
        score = beta * (each.features @ theta[: self.weights]) + side * each.side + theta[self.weights] * each.tie
        score = np.where(each.there, score, -np.inf)
        score -= score.max(axis=1, keepdims=True)
        found: Matrix = score - np.log(np.exp(score).sum(axis=1, keepdims=True))
        return found

    @functools.cached_property
    def _places(self) -> NDArray[np.int64]:
        """[R, K + 3] where w, tau, b_r and log beta_r of each rater are in theta: all that a choice depends on."""
        shared = np.tile(np.arange(self.weights + 1), (self.raters, 1))
        own = np.arange(self.raters)[:, None] + [self.sides.start, self.reliabilities.start]
        return np.hstack([shared, own])

    @functools.cached_property
    def _precision(self) -> Vector:
        found = np.zeros(self.size)
        found[self.sides], found[self.reliabilities] = self.side_sd**-2, self.reliability_sd**-2
        return found

    def _centred(self, theta: Vector, weight: Matrix) -> NDArray[np.float64]:
        """[n, m, K + 3] derivatives of every score by what it depends on, less their mean under `weight` [n, m]."""
        each, k = self.choices, self.weights
        beta = np.exp(theta[self.reliabilities])[each.rater, None]
        slopes = np.empty((*each.there.shape, k + 3))
        slopes[..., :k] = beta[..., None] * each.features
        slopes[..., k], slopes[..., k + 1] = each.tie, each.side
        slopes[..., k + 2] = beta * (each.features @ theta[:k])
        return slopes - (weight[:, None] @ slopes)

    @functools.cached_property
    def _runs(self) -> list[slice]:
        """[R] the choices of each rater."""
        bounds = np.searchsorted(self.choices.rater, np.arange(self.raters + 1))
        return [slice(*each) for each in pairwise(bounds.tolist())]

    def _products(self, left: NDArray[np.float64], right: NDArray[np.float64]) -> NDArray[np.float64]:
        """[R, A, B] sum over each rater's choices and alternatives of outer products of `left` [n, x, A] and `right`
        [n, x, B]."""
        parts = ((left[mine], right[mine]) for mine in self._runs)
        return np.stack([np.tensordot(one, other, axes=((0, 1), (0, 1))) for one, other in parts])

    def _gathered(self, by_rater: NDArray[np.float64]) -> NDArray[np.float64]:
        """[P, ...] what each rater gives to the parameters of their own [R, K + 3, ...], added up."""
        found = np.zeros((self.size, *by_rater.shape[2:]))
        for places, each in zip(self._places, by_rater, strict=True):
            found[places] += each
        return found

    def _squared(self, by_rater: NDArray[np.float64]) -> Matrix:
        """[P, P] the same of pairs of parameters [R, K + 3, K + 3]."""
        found = np.zeros((self.size, self.size))
        for places, each in zip(self._places, by_rater, strict=True):
            found[np.ix_(places, places)] += each
        return found

    def information(self, theta: Vector) -> Matrix:
        """[P, P] Fisher's information of the answers at theta, without priors."""
        weight = np.exp(self.log_probabilities(theta))
        centred = self._centred(theta, weight)
        return self._squared(self._products(weight[..., None] * centred, centred))

    def log_likelihood(self, theta: Vector) -> float:
        rows = np.arange(len(self.choices.rater))
        return float(self.log_probabilities(theta)[rows, self.choices.chosen].sum())

    def at(self, theta: Vector) -> Point:
        """The objective and its derivatives; its value is -inf where theta is so far out that the information vanishes.

        With c_a the derivatives of the score of alternative a less their mean under p, V = sum_a p_a c_a c_a' of one
        choice, I = sum V over choices, and h_a = c_a' I^-1 c_a, the Jeffreys prior's derivatives by what the scores are
        linear in (all but the reliabilities) are

            1/2 sum p_a h_a c_a,
            1/2 sum p_a h_a (c_a c_a' - V) - sum V I^-1 V - 1/2 [tr(I^-1 I_q I^-1 I_l)]_ql,

        I_q = sum p_a c_a c_a' c_aq; a reliability scales the derivatives of w as well, so that its first gains
        sum p_a (I^-1 c_a)_w . (c_a)_w.
        """
        each, rows, k, precision = self.choices, np.arange(len(self.choices.rater)), self.weights, self._precision
        log_weight = self.log_probabilities(theta)
        weight = np.exp(log_weight)
        centred = self._centred(theta, weight)
        by_rater = self._products(weight[..., None] * centred, centred)
        residual = np.stack([centred[rows, each.chosen][mine].sum(axis=0) for mine in self._runs])
        gradient = self._gathered(residual) - precision * theta
        # The score is a product of beta_r and w: its own second derivatives.
        own = np.zeros_like(by_rater)
        own[:, :k, k + 2] = own[:, k + 2, :k] = residual[:, :k]
        own[:, k + 2, k + 2] = residual[:, k + 2]
        curvature = self._squared(by_rater - own) + np.diag(precision)
        top = self.identified.T @ by_rater[:, : k + 1, : k + 1].sum(axis=0) @ self.identified
        try:
            lower = np.linalg.cholesky(top)
        except np.linalg.LinAlgError:
            return Point(-np.inf, gradient, curvature)
        # I = L L', I^-1 = R R'.
        root = self.identified @ np.linalg.inv(lower).T
        slope, bend = self._jeffreys(weight, centred, by_rater, root)
        value = float(log_weight[rows, each.chosen].sum()) + float(np.log(np.diag(lower)).sum())
        value -= 0.5 * float(theta @ (precision * theta))
        return Point(value, gradient + slope, curvature - bend)

    def _jeffreys(
        self, weight: Matrix, centred: NDArray[np.float64], by_rater: NDArray[np.float64], root: Matrix
    ) -> tuple[Vector, Matrix]:
        """First and second derivatives of 1/2 log det I, see `at`; the second without those by reliabilities."""
        k = self.weights
        turned = centred[..., : k + 1] @ root
        mass = weight * (turned**2).sum(axis=2)
        slope = 0.5 * self._products(mass[..., None], centred)[:, 0]
        own = np.einsum("ij,rji->ri", root @ root.T, by_rater[:, : k + 1, : k + 1])
        slope[:, k + 2] += own[:, :k].sum(axis=1)
        left = 0.5 * (mass - mass.sum(axis=1, keepdims=True) * weight)
        bend = self._products(left[..., None] * centred, centred)
        heavy = weight[..., None] * turned
        half = heavy.transpose(0, 2, 1) @ centred
        bend -= self._products(half, half)
        bend[:, k + 2], bend[:, :, k + 2] = 0.0, 0.0
        # R' I_q R of every parameter q, flat: their inner products are the traces.
        outer = (turned[..., :, None] * heavy[..., None, :]).reshape(*weight.shape, root.shape[1] ** 2)
        cubes = self._products(centred, outer)
        cubes[:, k + 2] = 0.0
        flat = self._gathered(cubes)
        return self._gathered(slope), self._squared(bend) - 0.5 * flat @ flat.T


def maximise(model: Model, start: Vector, basis: Matrix) -> Vector:
    """The theta of largest value within start + span(basis [P, F]), by Newton's method.

    Second derivatives are those of `Point.curvature`; where steps without the Jeffreys prior's by reliabilities creep,
    as under nearly perfect consistency, differences of gradients. Where they are not positive definite their absolute
    values are taken, and steps are halved until the value rises. Raises ArithmeticError where that comes to no end.
    """
    theta, here, decrement = start, model.at(start), np.inf
    for number in range(STEPS):
        gradient = basis.T @ here.gradient
        creeps = number >= PATIENCE and model.raters > 1
        curvature = _differences(model, theta, basis) if creeps else basis.T @ here.curvature @ basis
        values, vectors = np.linalg.eigh(curvature)
        values = np.maximum(np.abs(values), 1e-9 * max(float(np.abs(values).max(initial=0.0)), 1e-300))
        step = vectors @ ((vectors.T @ gradient) / values)
        decrement = float(gradient @ step)
        if decrement < CLOSE:
            return theta
        step *= min(1.0, LARGEST / float(np.linalg.norm(step)))
        for _ in range(HALVINGS):
            there = model.at(theta + basis @ step)
            if there.value >= here.value:
                break
            step /= 2
        else:
            break
        theta, here = theta + basis @ step, there
    if decrement < NEAR:
        return theta
    raise ArithmeticError(f"preferences: no maximum after {STEPS} steps, decrement {decrement:.2g}.")


def _differences(model: Model, theta: Vector, basis: Matrix) -> Matrix:
    """[F, F] minus the second derivatives along `basis`, by central differences of the gradient."""
    around = [[model.at(theta + sign * APART * each).gradient for sign in (-1, 1)] for each in basis.T]
    found = np.stack([(before - after) @ basis for before, after in around]) / (2 * APART)
    symmetric: Matrix = (found + found.T) / 2
    return symmetric
