"""Looking more than once: what |z| must exceed at each look so that all looks together err with at most alpha.

Two ways. `AlwaysValid` holds at any number of looks, whenever they are; its clock is users. `Looks` spends alpha over
looks fixed beforehand; one look is the ordinary fixed horizon. Legend: K looks; I_k statistical information at look k,
1 / variance of the estimate, in any unit.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Protocol

import numpy as np
from scipy.optimize import brentq
from scipy.special import lambertw, ndtr, ndtri

from policies.base import Floats

EDGE = 8.0
"""|z| that no look reaches by chance: two-sided probability 1e-15."""
SPACING = 0.35
"""Standard deviations of the next increment between points of the grid; the quadrature is exact to 1e-9 there."""
GROWTH = 1.01
"""Least growth of information between looks: looks closer than that are one look, and the recursion would need a grid
without end."""


def spent(kind: str, alpha: float, fraction: Sequence[float]) -> Floats:
    """[K] two-sided alpha spent by each `fraction` of the planned length, half of it on each side.

    obrien_fleming: per side, with a = alpha / 2, 2 (1 - Phi(z_{1-a/2} / sqrt t)); pocock: a ln(1 + (e - 1) t).
    Source: Lan & DeMets 1983.
    """
    time = np.minimum(np.asarray(fraction, np.float64), 1.0)
    side = alpha / 2
    if kind == "obrien_fleming":
        found: Floats = 4 * ndtr(ndtri(side / 2) / np.sqrt(time))
    else:
        found = 2 * side * np.log1p((np.e - 1) * time)
    return found


@lru_cache(maxsize=16)
def _legendre(count: int) -> tuple[Floats, Floats]:
    nodes, weights = np.polynomial.legendre.leggauss(count)
    return nodes, weights


class _Walk:
    """The score process S = z sqrt(I), Brownian with drift, held within the bounds of the looks so far.

    Source: Armitage, McPherson & Rowe 1969; Jennison & Turnbull 2000, chapter 19.
    """

    def __init__(self, drift: float) -> None:
        self.drift = drift
        self.information = 0.0
        self.at = np.zeros(1)
        self.mass = np.ones(1)
        """Probability of not having left, spread over the points `at`."""

    def leaves(self, information: float, bound: float) -> tuple[float, float]:
        """Probability of leaving at the next look above and below, at |z| > `bound`."""
        mean, spread, edge = self._next(information, bound)
        return float(self.mass @ ndtr((mean - edge) / spread)), float(self.mass @ ndtr((-edge - mean) / spread))

    def go_on(self, information: float, bound: float, following: float | None) -> None:
        """Stay within `bound` at this look; the grid is as fine as the increment to the `following` one needs."""
        mean, spread, edge = self._next(information, bound)
        if following is not None:
            far = min(edge, EDGE * np.sqrt(information) + abs(self.drift) * information)
            needed = 2 * far / (SPACING * np.sqrt(following - information))
            # Few different sizes, so that the nodes are computed once.
            nodes, weights = _legendre(max(64, 2 ** int(np.ceil(np.log2(needed)))))
            at = far * nodes
            density = np.exp(-0.5 * ((at[:, None] - mean) / spread) ** 2) @ self.mass
            self.at, self.mass = at, far * weights * density / (spread * np.sqrt(2 * np.pi))
        self.information = information

    def _next(self, information: float, bound: float) -> tuple[Floats, float, float]:
        step = information - self.information
        return self.at + self.drift * step, float(np.sqrt(step)), bound * float(np.sqrt(information))


def crossing(bounds: Sequence[float], information: Sequence[float], drift: float = 0.0) -> tuple[Floats, Floats]:
    """[K] and [K] probability that z first leaves above, and below, +-`bounds` at each look.

    z at information I is normal with mean drift sqrt(I / I_K) and variance 1, with independent increments of z sqrt(I).
    """
    scale = np.asarray(information, np.float64) / information[-1]
    walk, found = _Walk(drift), []
    for look, (bound, now) in enumerate(zip(bounds, scale, strict=True)):
        found.append(walk.leaves(now, bound))
        walk.go_on(now, bound, scale[look + 1] if look + 1 < len(scale) else None)
    above, below = np.array(found).T
    return above, below


def boundaries(information: Sequence[float], spend: Sequence[float]) -> Floats:
    """[K] bounds on |z| whose chance of being left by look k, without effect, is `spend[k]`, two-sided.

    `information` grows by GROWTH at least. A look that spends less than can be told apart from nothing has the bound
    EDGE.
    """
    scale = np.asarray(information, np.float64) / information[-1]
    walk, found, before = _Walk(0.0), [], 0.0
    for look, (now, total) in enumerate(zip(scale, spend, strict=True)):
        bound = _bound(walk, now, total - before)
        found.append(bound)
        walk.go_on(now, bound, scale[look + 1] if look + 1 < len(scale) else None)
        before = total
    return np.array(found)


def _bound(walk: _Walk, information: float, increment: float) -> float:
    def excess(bound: float) -> float:
        return sum(walk.leaves(information, bound)) - increment

    if excess(EDGE) >= 0:
        return EDGE
    return float(brentq(excess, 0.0, EDGE, xtol=1e-10)) if excess(0.0) > 0 else 0.0


def drift_for(bounds: Sequence[float], information: Sequence[float], power: float) -> float:
    """The mean of z at the last look with which it leaves above +-`bounds` at some look with probability `power`."""

    def short(drift: float) -> float:
        return float(crossing(bounds, information, drift)[0].sum()) - power

    return float(brentq(short, 0.0, max(bounds[-1], 0.0) + EDGE, xtol=1e-8))


class Monitor(Protocol):
    """What a z statistic must exceed now, given how often and when it may be looked at."""

    def bound(self, alpha: float) -> float:
        """|z| above which an effect is shown at two-sided level `alpha` over all looks."""

    def p_value(self, z: float) -> float:
        """The smallest alpha whose bound |z| exceeds."""


@dataclass(frozen=True)
class AlwaysValid:
    """An asymptotic confidence sequence: any number of looks, at any time.

    bound = sqrt((x + 1) / x (ln(x + 1) - 2 ln alpha)), x = n rho^2, for n users of whom each counts once. It is the
    width in Waudby-Smith, Arbour, Sinha, Kennedy & Ramdas 2021 (arXiv 2103.06476, Theorem 2.2), and the normal
    mixture of Robbins 1970 and of the mixture SPRT (Johari, Pekelis & Walsh 2015); p = 1 / the mixture's likelihood
    ratio. It holds from some number of users on that the central limit theorem asks for.
    """

    fraction: float
    """n / n*, users so far by planned users."""
    tuned: float
    """The alpha at which the bound at n* is the lowest that any rho gives."""

    @property
    def x(self) -> float:
        return self.fraction * mixture(self.tuned)

    def bound(self, alpha: float) -> float:
        """As `Monitor.bound`."""
        return float(np.sqrt((self.x + 1) / self.x * (np.log(self.x + 1) - 2 * np.log(alpha))))

    def p_value(self, z: float) -> float:
        """As `Monitor.p_value`."""
        return float(min(1.0, np.sqrt(self.x + 1) * np.exp(-0.5 * z**2 * self.x / (self.x + 1))))


def mixture(alpha: float) -> float:
    """n* rho^2 with which the bound at n* users is lowest: -W_{-1}(-alpha^2 / e) - 1, W_{-1} Lambert's lower branch.

    Source: Waudby-Smith et al. 2021, appendix on the choice of rho.
    """
    return float(-lambertw(-(alpha**2) / np.e, -1).real - 1)


@dataclass(frozen=True)
class Looks:
    """Alpha spent over planned looks; the estimate at look k, +- bound standard errors, is a repeated confidence
    interval: all of them hold together.

    Source: Lan & DeMets 1983; Jennison & Turnbull 1989.
    """

    fraction: tuple[float, ...]
    """[k] of the planned length at each look so far; the planned end is 1."""
    information: tuple[float, ...]
    """[k] 1 / variance of the estimate at each look so far."""
    kind: str

    @cached_property
    def grown(self) -> Floats:
        """[k] information that never shrinks: where an estimated variance rose, as if it had not."""
        # Too little information between looks takes them for less alike than they are, which widens the bound.
        found = np.array(self.information, np.float64)
        for look in range(1, len(found)):
            found[look] = max(found[look], GROWTH * found[look - 1])
        return found

    def bound(self, alpha: float) -> float:
        """As `Monitor.bound`, at the latest look."""
        return float(self.bounds(alpha)[-1])

    def bounds(self, alpha: float) -> Floats:
        """[k] the bound at each look so far."""
        return boundaries(list(self.grown), list(spent(self.kind, alpha, self.fraction)))

    def p_value(self, z: float) -> float:
        """As `Monitor.p_value`, of the latest look: a repeated p-value."""
        if self.fraction[-1] >= 1 and len(self.fraction) == 1:
            return float(2 * ndtr(-abs(z)))
        return _inverse(self.bound, abs(z))


def _inverse(bound: Callable[[float], float], size: float) -> float:
    """The alpha at which `bound` is `size`, searched on a log scale."""
    low, high = 1e-12, 1 - 1e-9
    if bound(high) >= size:
        return 1.0
    if bound(low) <= size:
        return low
    found = brentq(lambda log: bound(float(np.exp(log))) - size, np.log(low), np.log(high), xtol=1e-4)
    return float(np.exp(found))
