"""XXH64 of texts, many at once: what puts a user into a bucket and a split, the same in NumPy as in Spark's xxhash64.

Source: Y. Collet, xxHash specification 0.1.1, "XXH64 algorithm description"; Spark hashes with seed 42.
"""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]

SEED = 42
_P1, _P2, _P3, _P4, _P5 = (
    np.uint64(prime)
    for prime in (
        11400714785074694791,
        14029467366897019727,
        1609587929392839161,
        9650029242287828579,
        2870177450012600261,
    )
)
_STRIPE = 32


def xxhash64(texts: Any, seed: int | Hashes = SEED) -> Hashes:
    """[N] XXH64 of the UTF-8 bytes of an Arrow string array; a null text gives the seed, a number or [N]."""
    texts = pc.cast(texts, pa.large_string())
    texts = texts.combine_chunks() if isinstance(texts, pa.ChunkedArray) else texts
    texts = pa.concat_arrays(texts.chunks) if isinstance(texts, pa.ChunkedArray) else texts
    rows = len(texts)
    seeds = np.broadcast_to(np.asarray(seed, np.uint64), (rows,))
    _, offsets, data = texts.buffers()
    if data is None or not data.size:
        # No text has a byte: seven more than any reads keep every view below lawful.
        data = pa.py_buffer(b"\0" * 8)
    padded = np.concatenate([np.frombuffer(data, np.uint8), np.zeros(8, np.uint8)])
    bounds = np.frombuffer(offsets, np.int64)[texts.offset : texts.offset + rows + 1]
    found = _digest(padded, bounds[:-1], np.diff(bounds), seeds)
    missing = np.asarray(texts.is_null().to_numpy(zero_copy_only=False), dtype=bool)
    return np.where(missing, seeds, found)


def _digest(data: NDArray[np.uint8], start: NDArray[np.int64], length: NDArray[np.int64], seed: Hashes) -> Hashes:
    words = np.ndarray(len(data) - 7, "<u8", data.data, strides=(1,))
    halves = np.ndarray(len(data) - 3, "<u4", data.data, strides=(1,))
    at, left = start.copy(), length.copy()
    state = seed + _P5
    long = np.flatnonzero(length >= _STRIPE)
    if len(long):
        state[long] = _stripes(words, at[long], left[long] // _STRIPE, seed[long])
        at[long] += left[long] // _STRIPE * _STRIPE
        left[long] %= _STRIPE
    state += length.astype(np.uint64)
    while len(rows := np.flatnonzero(left >= 8)):
        lane = _rotated(words[at[rows]] * _P2, 31) * _P1
        state[rows] = _rotated(state[rows] ^ lane, 27) * _P1 + _P4
        at[rows] += 8
        left[rows] -= 8
    if len(rows := np.flatnonzero(left >= 4)):
        state[rows] = _rotated(state[rows] ^ (halves[at[rows]].astype(np.uint64) * _P1), 23) * _P2 + _P3
        at[rows] += 4
        left[rows] -= 4
    while len(rows := np.flatnonzero(left >= 1)):
        state[rows] = _rotated(state[rows] ^ (data[at[rows]].astype(np.uint64) * _P5), 11) * _P1
        at[rows] += 1
        left[rows] -= 1
    state = (state ^ (state >> np.uint64(33))) * _P2
    state = (state ^ (state >> np.uint64(29))) * _P3
    return state ^ (state >> np.uint64(32))


def _stripes(words: Hashes, at: NDArray[np.int64], stripes: NDArray[np.int64], seed: Hashes) -> Hashes:
    """The four accumulators over every whole stripe of 32 bytes, folded into one."""
    sums = [seed + _P1 + _P2, seed + _P2, seed.copy(), seed - _P1]
    for stripe in range(int(stripes.max())):
        rows = np.flatnonzero(stripes > stripe)
        for lane, total in enumerate(sums):
            total[rows] = _round(total[rows], words[at[rows] + stripe * _STRIPE + 8 * lane])
    folded = _rotated(sums[0], 1) + _rotated(sums[1], 7) + _rotated(sums[2], 12) + _rotated(sums[3], 18)
    for total in sums:
        folded = (folded ^ _round(np.zeros_like(total), total)) * _P1 + _P4
    return folded


def _round(total: Hashes, lane: Hashes) -> Hashes:
    return _rotated(total + lane * _P2, 31) * _P1


def _rotated(value: Hashes, bits: int) -> Hashes:
    return (value << np.uint64(bits)) | (value >> np.uint64(64 - bits))


def bucket_of(hashes: Hashes, buckets: int) -> NDArray[np.int32]:
    """[N] xxhash64(user_id) mod B of the signed hash, as Spark's pmod gives it."""
    return (hashes.view(np.int64) % buckets).astype(np.int32)
