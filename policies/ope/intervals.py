"""Bootstrap over users with Poisson weights; every policy of a row set sees the same resamples, so differences are
paired."""

from collections.abc import Callable, Iterable
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.errors import InputError
from policies.base import Floats
from policies.ope.summaries import Summary, total

CHUNK_CELLS = 4_000_000
"""Counts held as float64 at a time (32 MB)."""
SUMS_CELLS = 32_000_000
"""Sums of an estimator held as float64 at a time (256 MB)."""
POISSON_CDF = np.cumsum(np.exp(-1.0) / np.cumprod(np.maximum(np.arange(20.0), 1.0)))
"""P(count <= j) = sum_{i<=j} e^-1 / i! for j = 0, 1, ...; what lies beyond happens once in 10^18 draws."""
Keys = NDArray[np.uint64]


def user_keys(user_id: Iterable[object]) -> Keys:
    """[U] a key for each user by the id alone, so that a user's resamples do not depend on who else is in the log, in
    which order, or on which machine."""
    digests = b"".join(blake2b(str(name).encode(), digest_size=8).digest() for name in user_id)
    return np.frombuffer(digests, dtype="<u8").astype(np.uint64)


def poisson_counts(keys: Keys, resamples: int, seed: int) -> NDArray[np.uint8]:
    """[R + 1, U] independent Poisson(1) counts: how often each resample holds each user; the first row is of ones (the
    log itself).

    Count r of a user is a hash of (seed, user, r), turned by the Poisson distribution's inverse. Source: Chamandy et
    al. 2012, the Poisson bootstrap; Steele, Lea and Flood 2014, SplitMix64.
    """
    counts = np.ones((resamples + 1, len(keys)), dtype=np.uint8)
    start = _mixed(keys ^ _mixed(np.array([seed], dtype=np.int64).astype(np.uint64)))
    step = max(1, CHUNK_CELLS // len(keys))
    for low in range(1, resamples + 1, step):
        number = np.arange(low, min(low + step, resamples + 1), dtype=np.uint64)
        draws = _mixed(start + number[:, None] * np.uint64(0x9E3779B97F4A7C15))
        uniform = (draws >> np.uint64(11)) * 2.0**-53
        counts[low : low + len(number)] = np.searchsorted(POISSON_CDF, uniform, side="right")
    return counts


def _mixed(x: Keys) -> Keys:
    """The finaliser of SplitMix64: every bit of `x` moves half of the bits of the result."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def at_a_time(users: int, cells: int) -> int:
    """Resamples that are summed at a time, of which each has a count of every one of `users` and `cells` sums."""
    return max(1, min(CHUNK_CELLS // users, SUMS_CELLS // cells))


def sums_of(steps: int, components: int, bins: int) -> int:
    """The most sums that an estimator has of one resample: by step, those of the normalised forms, or by step and bin
    those of state-marginalised IS."""
    return steps * max(bins, 1) * (components + 2 + bins)


def replicates(
    summary: Summary, exposure: Floats, counts: NDArray[np.uint8], read: Callable[[Any], Floats] = total, cells: int = 1
) -> Floats:
    """[R + 1, K] the estimate in each row of `counts`: totals over users / exposure over users, both of that resample.

    `exposure` [U]; `read` may take something else of each resample's sums, `cells` numbers, than their total,
    [R, ..., K]. Normalised forms are normalised anew in each resample. NaN where a resample cannot say.
    """
    step = at_a_time(len(exposure), cells)
    parts = []
    for low in range(0, len(counts), step):
        part = counts[low : low + step].astype(np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            values = read(summary.over(part))
            parts.append(values / (part @ exposure).reshape(-1, *[1] * (values.ndim - 1)))
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
