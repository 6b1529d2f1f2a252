"""The likelihood of comparisons: Bradley-Terry, Davidson's ties, Plackett-Luce, and raters who differ.

Rater r chooses alternative a of a choice with probability proportional to exp(s_a),

    s_a = beta_r x_a.w + b_r z_a + tau t_a,

x its features, z its side (+1/2 left, -1/2 right), t whether it is the tie. For a pair of difference d this is
P(left) = sigma(beta_r w.d + b_r) among two (Bradley and Terry 1952), and with ties (Davidson 1970, eq. 2.6; sides as
Davidson and Beaver 1977)

    P(left) : P(tie) : P(right) = exp(eta / 2) : nu : exp(-eta / 2),   eta = beta_r w.d + b_r,   nu = exp(tau).

A decided answer then still has the odds exp(eta): weights mean the same whether or not ties were allowed. Under Rao and
Kupper (1967) they would not, as there a tie is a threshold on the difference. Rankings are Plackett (1975) and Luce's.

What is maximised is

    l(theta) + 1/2 log det I_(w, tau)(theta) - 1/2 sum_r b_r^2 / s_b^2 - 1/2 sum_r log(beta_r)^2 / s_beta^2

under sum_r n_r log(beta_r) = 0, n_r the choices of rater r (the geometric mean over choices is 1; a plain mean would
tie the scale of w to raters of three answers). The second term is the Jeffreys prior of Firth (1993): it removes the
first-order bias of w and keeps it finite where the answers are perfectly consistent (Heinze and Schemper 2002). The
others shrink what is asked of each rater.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from models.rewards.choices import Choices

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]

STEPS, HALVINGS = 200, 40
LARGEST = 5.0
"""Longest Newton step, in standardised units: further away the quadratic says nothing."""
CLOSE = 1e-12
"""Newton decrement at which the maximum is reached: theta is then within a millionth of its standard error."""
NEAR = 1e-6
"""The same where no shorter step leads up either."""


@dataclass(frozen=True)
class Point:
    """The objective and its derivatives at one theta of P parameters."""

    value: float
    gradient: Vector
    """[P] of all terms."""
    curvature: Matrix
    """[P, P] minus the second derivatives, of all terms but the Jeffreys prior's, which are of the order of 1 / n."""


@dataclass(frozen=True)
class Model:
    """P = K + 1 + 2 R parameters: w [K], tau, b [R], log beta [R]; those a log cannot tell stay where they start."""

    choices: Choices
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
    def free(self) -> Matrix:
        """[P, F] orthonormal basis of what is fitted: identified w and tau, sides of those who compared two, and
        log reliabilities whose mean over the answers is 0."""
        first = np.zeros((self.size, self.identified.shape[1]))
        first[: self.weights + 1] = self.identified
        paired = np.unique(self.choices.rater[(self.choices.side != 0).any(axis=1)])
        second = np.eye(self.size)[:, self.weights + 1 + paired]
        # Orthogonal to the counts are all left singular vectors of their column but the first.
        counts = np.bincount(self.choices.rater, minlength=self.raters)
        contrasts = np.linalg.svd(counts[:, None].astype(np.float64))[0][:, 1:]
        third = np.zeros((self.size, self.raters - 1))
        third[self.reliabilities] = contrasts
        return np.hstack([first, second, third])

    @property
    def ties(self) -> bool:
        """Whether anybody tied: else tau is -infinity, and no alternative is a tie."""
        return bool(self.identified[-1].any())

    def covariance(self, theta: Vector) -> Matrix:
        """[P, P] inverse curvature over what is fitted, 0 elsewhere."""
        basis = self.free
        found: Matrix = basis @ np.linalg.pinv(basis.T @ self.at(theta).curvature @ basis) @ basis.T
        return found

    def log_probabilities(self, theta: Vector) -> Matrix:
        """[n, m] of every alternative of every choice, -inf where there is none."""
        each, rater = self.choices, self.choices.rater
        beta = np.exp(theta[self.reliabilities])[rater, None]
        side = theta[self.sides][rater, None]
        score = beta * (each.features @ theta[: self.weights]) + side * each.side + theta[self.weights] * each.tie
        score = np.where(each.there, score, -np.inf)
        found: Matrix = score - logsumexp(score, axis=1, keepdims=True)
        return found

    def _slopes(self, theta: Vector) -> NDArray[np.float64]:
        """[n, m, P] derivatives of every score."""
        each, rows = self.choices, np.arange(len(self.choices.rater))
        beta = np.exp(theta[self.reliabilities])[each.rater, None]
        found = np.zeros((*each.there.shape, self.size))
        found[..., : self.weights] = beta[..., None] * each.features
        found[..., self.weights] = each.tie
        found[rows, :, self.weights + 1 + each.rater] = each.side
        found[rows, :, self.reliabilities.start + each.rater] = beta * (each.features @ theta[: self.weights])
        return found

    def information(self, theta: Vector) -> Matrix:
        """[P, P] Fisher's information of the answers at theta, without priors."""
        weight = np.exp(self.log_probabilities(theta))
        slopes = self._slopes(theta)
        centred = slopes - np.einsum("nm,nmp->np", weight, slopes)[:, None]
        flat = (np.sqrt(weight)[..., None] * centred).reshape(-1, self.size)
        found: Matrix = flat.T @ flat
        return found

    def log_likelihood(self, theta: Vector) -> float:
        rows = np.arange(len(self.choices.rater))
        return float(self.log_probabilities(theta)[rows, self.choices.chosen].sum())

    def value(self, theta: Vector) -> float:
        """The objective alone; -inf where theta is so far out that the information vanishes."""
        top = self.identified.T @ self.information(theta)[: self.weights + 1, : self.weights + 1] @ self.identified
        sign, log_det = np.linalg.slogdet(top)
        if sign <= 0:
            return -np.inf
        return self.log_likelihood(theta) + 0.5 * float(log_det) - 0.5 * float(theta @ (self._precision * theta))

    @property
    def _precision(self) -> Vector:
        found = np.zeros(self.size)
        found[self.sides], found[self.reliabilities] = self.side_sd**-2, self.reliability_sd**-2
        return found

    def at(self, theta: Vector) -> Point:
        """The objective and its derivatives.

        With c_a the slopes of alternative a less their mean under p, the gradient of 1/2 log det I is
        1/2 sum p_a (c_a.I^-1 c_a) c_a, the third cumulant against I^-1, and where a reliability scales the slopes of w
        as well, sum p_a (I^-1 c_a)_w . (c_a)_w over its rater's choices.
        """
        each, rows, k = self.choices, np.arange(len(self.choices.rater)), self.weights
        log_weight = self.log_probabilities(theta)
        weight, slopes = np.exp(log_weight), self._slopes(theta)
        centred = slopes - np.einsum("nm,nmp->np", weight, slopes)[:, None]
        flat = (np.sqrt(weight)[..., None] * centred).reshape(-1, self.size)
        information = flat.T @ flat
        residual = centred[rows, each.chosen]
        gradient = residual.sum(axis=0)
        curvature = information.copy()
        for rater in range(self.raters):
            mine, place = each.rater == rater, self.reliabilities.start + rater
            curvature[:k, place] -= residual[mine, :k].sum(axis=0)
            curvature[place, :k] = curvature[:k, place]
            curvature[place, place] -= residual[mine, place].sum()
        top = self.identified.T @ information[: k + 1, : k + 1] @ self.identified
        sign, log_det = np.linalg.slogdet(top)
        if sign <= 0:
            return Point(-np.inf, gradient, curvature)
        inverse = self.identified @ np.linalg.inv(top) @ self.identified.T
        turned = centred[..., : k + 1] @ inverse
        spread = np.einsum("nmp,nmp->nm", turned, centred[..., : k + 1])
        gradient = gradient + 0.5 * np.einsum("nm,nmp->p", weight * spread, centred)
        scaled = (weight * np.einsum("nmp,nmp->nm", turned[..., :k], centred[..., :k])).sum(axis=1)
        gradient[self.reliabilities] += np.bincount(each.rater, scaled, minlength=self.raters)
        precision = self._precision
        value = float(log_weight[rows, each.chosen].sum()) + 0.5 * float(log_det)
        value -= 0.5 * float(theta @ (precision * theta))
        return Point(value, gradient - precision * theta, curvature + np.diag(precision))


def maximise(model: Model, start: Vector, basis: Matrix) -> Vector:
    """The theta of largest value within start + span(basis [P, F]), by Newton's method.

    Steps use the exact second derivatives of all but the Jeffreys prior, made positive definite, and are halved until
    the value rises. Raises ArithmeticError where that comes to no end.
    """
    theta, here = start, model.at(start)
    for _ in range(STEPS):
        gradient = basis.T @ here.gradient
        values, vectors = np.linalg.eigh(basis.T @ here.curvature @ basis)
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
            # So near that rounding hides which way is up.
            if decrement < NEAR:
                return theta
            break
        theta, here = theta + basis @ step, there
    raise ArithmeticError(f"preferences: no maximum after {STEPS} steps, decrement {decrement:.2g}.")
