"""Whether values still lie as they did: bins fixed on a reference, the population stability index, and its noise."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.errors import InputError
from policies.base import Floats, Integers

PARTS = 10
"""Deciles."""
SMOOTH = 0.5
"""Added to the rows of every bin, so that an empty one is rare and not impossible."""


@dataclass(frozen=True)
class Bins:
    """B bins: those between the cuts, each with its upper one, and the last for what is missing."""

    cuts: Floats
    """[B - 2] ascending."""

    @classmethod
    def of(cls, reference: NDArray[np.floating], parts: int = PARTS) -> "Bins":
        """Cuts at the quantiles of `reference` [n], or between its values where it has no more than `parts`.

        A value that many rows share is one bin. Raises InputError where the reference has no rows.
        """
        if not len(reference):
            raise InputError("drift: the reference has no rows; name transitions that training read.")
        there = np.asarray(reference, np.float64)
        there = there[~np.isnan(there)]
        values = np.unique(there)
        if len(values) <= parts:
            return cls((values[1:] + values[:-1]) / 2)
        cuts = np.unique(np.quantile(there, np.arange(1, parts) / parts, method="inverted_cdf"))
        # Above the largest value there would be no row to compare with.
        return cls(cuts[cuts < values[-1]])

    @property
    def count(self) -> int:
        """B."""
        return len(self.cuts) + 2

    def counts(self, values: NDArray[np.floating]) -> Integers:
        """[B] rows of `values` [n] in each bin; NaN is missing."""
        found = np.asarray(values, np.float64)
        place = np.searchsorted(self.cuts, found, side="left")
        place[np.isnan(found)] = self.count - 1
        return np.bincount(place, minlength=self.count).astype(np.int64)


@dataclass(frozen=True)
class Drift:
    """How far `counts` [B] lie from `reference` [B]."""

    reference: Integers
    counts: Integers

    @property
    def _both(self) -> tuple[Floats, Floats]:
        """[B'] smoothed shares, of the bins that either has rows in."""
        kept = (self.reference + self.counts) > 0
        shares = [(each[kept] + SMOOTH) / (each[kept] + SMOOTH).sum() for each in (self.reference, self.counts)]
        return shares[0], shares[1]

    @property
    def psi(self) -> float:
        """sum_b (q_b - p_b) log(q_b / p_b), p of the reference and q of the other: 0 where they are the same."""
        p, q = self._both
        return float(((q - p) * np.log(q / p)).sum())

    @property
    def ks(self) -> float:
        """Largest |F(x) - G(x)| at the cuts, over the values that are not missing: a Kolmogorov-Smirnov distance."""
        shares = [each[:-1].cumsum() / max(each[:-1].sum(), 1) for each in (self.reference, self.counts)]
        return float(np.abs(shares[0] - shares[1]).max())

    def noise(self, alpha: float, clusters: tuple[int, int]) -> float:
        """What the index exceeds in one of 1 / alpha samples of the same distribution.

        Near 0 it is a chi-squared statistic: psi / (1/m + 1/n) has B - 1 degrees of freedom, so that its mean is
        (B - 1)(1/m + 1/n). `clusters` (m, n) are the independent units of both: users, who may have many rows each.
        Source: Yurdakul & Naranjo 2020.
        """
        # Executors count with this file too, and have no SciPy.
        from scipy.stats import chi2

        m, n = (max(each, 1) for each in clusters)
        degrees = max(len(self._both[0]) - 1, 1)
        return float(chi2.isf(alpha, degrees) * (1 / m + 1 / n))
