"""Bootstrap over users with Poisson weights; every policy of a row set sees the same resamples, so differences are
paired."""

import numpy as np
from numpy.typing import NDArray

from models.errors import InputError
from policies.base import Floats
from policies.ope.summaries import Summary

CHUNK_CELLS = 4_000_000
"""Counts held as float64 at a time (32 MB)."""


def poisson_counts(users: int, resamples: int, seed: int) -> NDArray[np.uint8]:
    """[R, U] independent Poisson(1) counts: how often each resample holds each user; R + 1 rows, the first of ones (the
    log itself).

    Source: Chamandy et al. 2012, the Poisson bootstrap.
    """
    generator = np.random.default_rng([seed, users])
    counts = np.ones((resamples + 1, users), dtype=np.uint8)
    step = max(1, CHUNK_CELLS // users)
    for low in range(1, resamples + 1, step):
        high = min(low + step, resamples + 1)
        counts[low:high] = generator.poisson(1.0, size=(high - low, users)).astype(np.uint8)
    return counts


def replicates(summary: Summary, exposure: Floats, counts: NDArray[np.uint8]) -> Floats:
    """[R + 1, K] the estimate in each row of `counts`: totals over users / exposure over users, both of that resample.

    `exposure` [U]. Normalised forms are normalised anew in each resample. NaN where a resample cannot say.
    """
    step = max(1, CHUNK_CELLS // len(exposure))
    parts = []
    for low in range(0, len(counts), step):
        part = counts[low : low + step].astype(np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            parts.append(summary.totals(part) / (part @ exposure)[:, None])
    found: Floats = np.concatenate(parts)
    return found


def lower(values: Floats, alpha: float) -> float:
    """The `alpha` quantile of the replicates `values` [R], rounded outward; -inf where resamples that cannot say reach
    it."""
    return float(np.quantile(np.where(np.isnan(values), -np.inf, values), alpha, method="lower"))


def upper(values: Floats, alpha: float) -> float:
    """The 1 - `alpha` quantile of the replicates `values` [R], rounded outward; inf where resamples that cannot say
    reach it."""
    return float(np.quantile(np.where(np.isnan(values), np.inf, values), 1 - alpha, method="higher"))


def one_sided(confidence: float, tried: int, resamples: int) -> float:
    """alpha = (1 - confidence) / tried: the error each of `tried` candidates may make for all of them to make 1 -
    confidence.

    Raises InputError for no candidate, or fewer resamples than such a tail can be read from (alpha R < 1).
    """
    if tried < 1:
        raise InputError(f"tried is {tried}; the candidate itself counts: 1 or more.")
    alpha = (1 - confidence) / tried
    if alpha * resamples < 1:
        raise InputError(
            f"evaluate.resamples is {resamples}; a one-sided confidence of {confidence} divided among {tried} "
            "candidates needs "
            f"{int(np.ceil(1 / alpha))} or more."
        )
    return alpha
