"""The volume budget: expected sends as a function of the price per send, and the price that meets a target.

A learned policy sends where the best legal send is worth more than the best legal `hold` by more than the price
lambda. Over rows i, in sends, by `q_policy.deployed_probabilities`:

    E(lambda, theta) = sum_i [(1 - k) mu_i(send) + k e |legal sends_i| / |legal_i|]
                     + k (1 - e) [#{gap_i > lambda} + theta #{gap_i = lambda}]
    gap_i = max over legal sends of q - max over legal others of q

Only rows where both are legal have a gap; elsewhere the greedy part does not depend on the price, and the row is part
of the constant. E falls as lambda rises, in steps. What says it is the sorted gaps, which a `Volume` holds exactly
while at most BINS of them differ; of more it holds bins of neighbouring values, each with its ends and its count, and a
second pass over the rows inside one bin (`Solved.window`) tells them apart.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.errors import InputError
from policies.base import Booleans, Floats, Integers
from policies.ope.merging import from_bytes, to_bytes
from policies.q_policy import checked_decision, send_gaps, softmax_over_legal

BINS = 2**16
"""Most bins of gaps that a summary holds, 32 bytes each: 2 MiB."""
UNIT = 2**30
"""Constants are summed as whole numbers of 1/UNIT sends, so that no order of adding changes the sum; to 5e-10 a row."""
TOLERANCE = 0.005
"""Relative distance from the target within which it is met; one send is always near enough."""
APART = 1e-6
"""How far beyond the last gap a price lies that all, or none, of the gaps exceed; relative to 1 or to the gap."""
ROUNDING = 1e-6
"""A wanted number of rows so near to a whole one is that: constants are rounded, and no tie need be split for it."""
SMALLEST, LARGEST = np.iinfo(np.int64).min, np.iinfo(np.int64).max


@dataclass(frozen=True)
class Volume:
    """What some rows add to E(lambda); B bins of gaps. Summaries of different rows add up, in any order the same."""

    rows: int
    fixed: int
    """Sends that no price moves, in 1/UNIT."""
    weight: float
    """k (1 - e): what a row sends more where its gap exceeds the price."""
    low: Floats
    """[B] smallest gap of each bin, rising."""
    high: Floats
    """[B] largest gap of each bin; where it is `low`, the bin is one value and known exactly."""
    count: Integers
    """[B] rows."""
    shift: int = 0
    """Low bits of a gap that bins do not tell apart; 0 while every value has its own."""
    window_low: float = -np.inf
    window_high: float = np.inf
    """Gaps outside of it are told apart no further than below and above."""

    @property
    def movable(self) -> int:
        """Rows whose decision depends on the price."""
        return int(self.count.sum()) if self.weight > 0 else 0

    @property
    def constant(self) -> float:
        return self.fixed / UNIT

    def __add__(self, other: "Volume") -> "Volume":
        """The summary of both's rows. Raises InputError where their decisions or windows differ."""
        for what in ("weight", "window_low", "window_high"):
            mine, theirs = getattr(self, what), getattr(other, what)
            if mine != theirs:
                raise InputError(f"volume: {what} is {mine} in one part and {theirs} in another; summarise by one.")
        joined = [np.concatenate(pair) for pair in ((self.low, other.low), (self.high, other.high))]
        count = np.concatenate([self.count, other.count])
        shift = max(self.shift, other.shift)
        both = replace(self, rows=self.rows + other.rows, fixed=self.fixed + other.fixed, shift=shift)
        return _binned(both, joined[0], joined[1], count)

    def bounds(self, price: float) -> tuple[float, float]:
        """E(price, 0) at least and at most; equal unless the price lies inside a bin of several values."""
        sure, possible = int(self.count[self.low > price].sum()), int(self.count[self.high > price].sum())
        return self.constant + self.weight * sure, self.constant + self.weight * possible

    def packed(self) -> bytes:
        return to_bytes(self)


def unpacked(content: bytes) -> Volume:
    """What `Volume.packed` wrote."""
    found: Volume = from_bytes(content, {Volume.__name__: Volume})
    return found


def volume_of(
    q: NDArray[Any],
    behaviour_logits: NDArray[Any],
    legal: Booleans,
    decision: Mapping[str, float],
    is_send: Sequence[bool],
    window: tuple[float, float] = (-np.inf, np.inf),
) -> Volume:
    """The summary of rows that the policy decides; arguments as `deployed_probabilities` has them, lambda not read.

    `window` (from `Solved.window`): tell gaps inside it apart, others only below from above. Raises InputError as
    `deployed_probabilities` does.
    """
    share, exploration, _ = checked_decision(decision)
    sends = np.asarray(is_send, dtype=bool)
    mu = softmax_over_legal(behaviour_logits, legal)
    gap, choice = send_gaps(q, legal, sends)
    forced = legal[:, sends].any(axis=1) & ~choice
    constant = (1 - share) * mu[:, sends].sum(axis=1)
    constant += share * exploration * legal[:, sends].sum(axis=1) / legal.sum(axis=1)
    constant += share * (1 - exploration) * forced
    empty = fixed_volume(constant, decision, window)
    gap = gap[choice] + 0.0
    return _binned(empty, gap, gap, np.ones(len(gap), dtype=np.int64))


def fixed_volume(
    sends: Floats, decision: Mapping[str, float], window: tuple[float, float] = (-np.inf, np.inf)
) -> Volume:
    """The summary of rows that a rule decides: `sends` [N] probabilities of a send, whatever the price.

    Raises InputError where one lies outside [0, 1].
    """
    share, exploration, _ = checked_decision(decision)
    wrong = ~((sends >= 0) & (sends <= 1 + 1e-9))
    if wrong.any():
        row = int(wrong.argmax())
        raise InputError(f"sends: {int(wrong.sum())} are no probability, first row {row}: {sends[row]}; give [0, 1].")
    if not window[0] <= window[1]:
        raise InputError(f"window is {window}; two gaps are needed, the lower first.")
    nothing = np.zeros(0)
    fixed = int(np.rint(np.asarray(sends, dtype=np.float64) * UNIT).astype(np.int64).sum())
    weight = share * (1 - exploration)
    return Volume(len(sends), fixed, weight, nothing, nothing, nothing.astype(np.int64), 0, *map(float, window))


@dataclass(frozen=True)
class Solved:
    """A price that meets a target, or the one that comes nearest and why it does not."""

    lambda_: float
    theta: float
    """Probability of sending where the gap equals lambda_."""
    expected: float
    """E(lambda_, theta) in sends, to within `error`."""
    error: float
    """0 unless lambda_ is the end of the range and lies inside a bin of several values."""
    met: bool
    """Within TOLERANCE of the target, or one send."""
    reason: str = ""
    """Empty where met."""
    window: tuple[float, float] | None = None
    """Where to look closer: summarise all rows again with it and solve again."""


def solve(volume: Volume, target: float, low: float = -np.inf, high: float = np.inf, split_ties: bool = True) -> Solved:
    """The price within [low, high] whose expected sends come nearest to `target` (sends over the rows of `volume`).

    Equal gaps are met by theta, unless `split_ties` is false. At `low` itself theta is 0: more would send what no
    price in the range does. `window` is set where bins are too coarse to come within the tolerance.

    Raises InputError where `target` is negative or no number, or the range is empty.
    """
    if not (np.isfinite(target) and target >= 0):
        raise InputError(f"target is {target} sends; a number of 0 or more is needed.")
    if not low <= high:
        raise InputError(f"the range of lambda is [{low}, {high}]; its lower end comes first.")
    near = max(TOLERANCE * target, 1.0)
    if not volume.movable:
        return _unmoved(volume, target, near, low, high)
    price, theta, window = _unbounded(volume, target, near, split_ties)
    if low < price <= high or (price == low and theta == 0):
        at = volume.bounds(price)[0]
        tied = int(volume.count[(volume.low == price) & (volume.high == price)].sum())
        expected, error = at + theta * volume.weight * tied, 0.0
    else:
        price, theta = (low, 0.0) if price <= low else (high, 0.0)
        least, most = volume.bounds(price)
        expected, error = (least + most) / 2, (most - least) / 2
        window = _around(volume, price) if error > near / 2 else None
    met = abs(expected - target) + error <= near
    reason = "" if met else _why(volume, target, expected, low, high, window)
    return Solved(float(price), float(theta), expected, error, met, reason, None if met else window)


def _unbounded(
    volume: Volume, target: float, near: float, split_ties: bool
) -> tuple[float, float, tuple[float, float] | None]:
    """(price, theta, where to look closer) of the nearest expectation over all prices."""
    # [B + 1] rows above the price that lies just below bin j; the last above all bins.
    above = np.append(np.cumsum(volume.count[::-1])[::-1], 0)
    wanted = (target - volume.constant) / volume.weight
    if abs(wanted - round(wanted)) < ROUNDING:
        wanted = round(wanted)
    if wanted >= above[0]:
        return _between(volume, 0), 0.0, None
    if wanted <= 0:
        return _between(volume, len(volume.count)), 0.0, None
    j = int((above > wanted).sum()) - 1
    if split_ties and volume.low[j] == volume.high[j] and wanted > above[j + 1]:
        return float(volume.low[j]), float((wanted - above[j + 1]) / volume.count[j]), None
    nearest = j if above[j] - wanted < wanted - above[j + 1] else j + 1
    off = volume.weight * abs(float(above[nearest]) - wanted)
    window = (float(volume.low[j]), float(volume.high[j])) if volume.low[j] < volume.high[j] and off > near else None
    return _between(volume, nearest), 0.0, window


def _between(volume: Volume, j: int) -> float:
    """A price that the gaps of bin j and later exceed, and earlier ones do not; midway where both are there."""
    if j == 0:
        return float(volume.low[0] - APART * max(1.0, abs(volume.low[0])))
    below = float(volume.high[j - 1])
    if j == len(volume.low):
        return below + APART * max(1.0, abs(below))
    above = float(volume.low[j])
    return min(below + (above - below) / 2, float(np.nextafter(above, -np.inf)))


def _around(volume: Volume, price: float) -> tuple[float, float]:
    j = int(((volume.low <= price) & (volume.high > price)).argmax())
    return float(volume.low[j]), float(volume.high[j])


def _unmoved(volume: Volume, target: float, near: float, low: float, high: float) -> Solved:
    """Where no price matters: the one nearest to 0."""
    met = abs(volume.constant - target) <= near
    reason = (
        f"the target is {target:,.1f} sends and {volume.constant:,.1f} are expected at any price: no row's decision "
        "depends on it (no row has both a legal send and a legal hold, or rollout_share x (1 - exploration) is 0)"
    )
    price = float(np.clip(0.0, low, high))
    return Solved(price, 0.0, volume.constant, 0.0, met, "" if met else reason)


def _why(
    volume: Volume, target: float, expected: float, low: float, high: float, window: tuple[float, float] | None
) -> str:
    least, most = volume.bounds(high)[0], volume.bounds(low)[1]
    if window is not None:
        return (
            f"the target is {target:,.1f} sends and {expected:,.1f} are expected at the nearest end of a bin of gaps "
            f"from {window[0]:g} to {window[1]:g}; summarise the rows again with this window"
        )
    if least <= target <= most:
        return (
            f"the target is {target:,.1f} sends and {expected:,.1f} are the nearest that a price alone gives: more "
            "rows have the same gap than the target may be missed by, and ties are not split"
        )
    side, end, price = ("most", most, low) if target > most else ("least", least, high)
    where = f"at the range's {'lowest' if side == 'most' else 'highest'} price {price:g}"
    return (
        f"the target is {target:,.1f} sends; the {side} that the policy sends in expectation "
        f"{where if np.isfinite(price) else 'at any price'} is {end:,.1f}"
    )


def _binned(empty: Volume, low: Floats, high: Floats, count: Integers) -> Volume:
    """`empty` with these bins, sorted, those that its shift or its window do not tell apart made one.

    The shift is the smallest from `empty.shift` on that leaves at most BINS: a function of all the values alone, since
    no part of them has more bins than the whole.
    """
    order = np.argsort(low, kind="stable")
    low, high, count = low[order], high[order], count[order]
    key = _key(low)
    below, above = low < empty.window_low, low > empty.window_high
    inside = key[~(below | above)]
    shift = empty.shift
    if _different(inside >> shift) > BINS:
        most = 63
        while shift < most:
            middle = (shift + most) // 2
            shift, most = (middle + 1, most) if _different(inside >> middle) > BINS else (shift, middle)
    group = np.where(below, SMALLEST, np.where(above, LARGEST, key >> shift))
    start = np.flatnonzero(np.append(True, group[1:] != group[:-1])[: len(group)])
    if not len(start):
        return replace(empty, shift=shift)
    return replace(
        empty,
        low=low[start],
        high=np.maximum.reduceat(high, start),
        count=np.add.reduceat(count, start),
        shift=shift,
    )


def _different(ordered: Integers) -> int:
    """Different values of a sorted array."""
    return int((ordered[1:] != ordered[:-1]).sum()) + (len(ordered) > 0)


def _key(gap: Floats) -> Integers:
    """[N] whole numbers in the order of the finite `gap` [N]: their bits, those below 0 turned round."""
    bits = np.ascontiguousarray(gap, dtype=np.float64).view(np.int64)
    found: Integers = np.where(bits < 0, bits ^ LARGEST, bits)
    return found
