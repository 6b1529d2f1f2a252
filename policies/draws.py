"""Whether draws with known probabilities came out as they should: sums that add, and bounds that hold at any size."""

import math
from dataclasses import dataclass

from scipy.optimize import brentq
from scipy.special import ndtr


@dataclass(frozen=True)
class Draws:
    """Sums over n independent Bernoulli draws x with known probabilities p; those of parts of a night add."""

    n: int = 0
    taken: int = 0
    """sum x"""
    expected: float = 0.0
    """sum p"""
    variance: float = 0.0
    """sum p (1 - p)"""

    def __add__(self, other: "Draws") -> "Draws":
        return Draws(
            self.n + other.n,
            self.taken + other.taken,
            self.expected + other.expected,
            self.variance + other.variance,
        )

    @property
    def z(self) -> float | None:
        """sum (x - p) / sqrt(sum p (1 - p)); None where nothing was left to chance."""
        return (self.taken - self.expected) / math.sqrt(self.variance) if self.variance > 0 else None

    @property
    def p_value(self) -> float | None:
        """Two-sided, of z as a normal: for reading, since it is too small for few draws; `slack` is what alarms."""
        return None if self.z is None else float(2 * ndtr(-abs(self.z)))

    def slack(self, alpha: float) -> float:
        """t with P(|sum (x - p)| >= t) <= alpha, whatever the probabilities and however few the draws.

        Bennett's inequality, each side at alpha / 2: V h(t / V) = log(2 / alpha) with V = sum p (1 - p) and
        h(u) = (1 + u) log(1 + u) - u; 0 where nothing was left to chance. Of many draws it is sqrt(2 V log(2 / alpha)).
        Source: Boucheron, Lugosi & Massart 2013, theorem 2.9.
        """
        if self.variance <= 0:
            return 0.0
        wanted = math.log(2 / alpha) / self.variance

        def beyond(u: float) -> float:
            return (1 + u) * math.log1p(u) - u - wanted

        # h(u) >= u^2 / (2 (1 + u / 3)), which is `wanted` at the upper end of the search.
        most = wanted / 3 + math.sqrt((wanted / 3) ** 2 + 2 * wanted)
        return float(self.variance * brentq(beyond, 0.0, most * 1.001 + 1e-300, xtol=1e-15))

    def bounds(self, alpha: float, margin: float) -> tuple[float, float]:
        """Rates of draws taken that are no alarm: the expected rate, give or take the slack or `margin` of it.

        A night of millions sees differences that matter to nobody, hence the margin.
        """
        room = max(self.slack(alpha), margin * self.expected)
        # Sums of the same numbers in another order differ in their last digits.
        room += 1e-9 * max(self.n, 1)
        return (self.expected - room) / self.n, (self.expected + room) / self.n
