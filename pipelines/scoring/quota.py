"""Tonight's quota: the one price per send, within the range that was gated, at which it is met in expectation."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from models.errors import InputError
from pipelines.scoring.rounds import Price
from policies.budget import TOLERANCE, Solved, Volume, solve

TRIES = 40
"""Prices that are played through at most, where what is drawn decides what follows."""
CLOSER = 8
"""Times that the gaps around the price are looked at more closely."""
EVERYWHERE = (float("-inf"), float("inf"))

Weigh = Callable[[Price, tuple[float, float]], tuple[float, Volume]]
"""(price, window) -> expected sends at the price, exact given what is drawn, and the volume of the rows there."""


@dataclass(frozen=True)
class Quota:
    """What was asked for, and what came of it."""

    sends: float
    """The quota."""
    low: float
    high: float
    """The range of lambda that was gated."""
    price: Price
    expected: float
    met: bool
    reason: str
    """Why fewer are sent, or more; empty where the quota is met."""

    def as_dict(self) -> dict[str, Any]:
        return {
            "quota": self.sends,
            "lambda_low": self.low,
            "lambda_high": self.high,
            "expected_sends": self.expected,
            "met": self.met,
            "reason": self.reason,
        }


def price_range(decision: Mapping[str, float]) -> tuple[float, float]:
    """(lowest, highest) lambda that was gated; where the artifact names none, only its own."""
    price = float(decision["lambda"])
    return float(decision.get("lambda_low", price)), float(decision.get("lambda_high", price))


def meet(
    quota: float, decision: Mapping[str, float], volume: Volume, weigh: Weigh, drawn: bool, nearest: bool
) -> Quota:
    """The price within the gated range whose expected sends come nearest to `quota`.

    `volume` is that of all rows at the price that was gated; with `drawn` it depends on the price. Fewer sends than the
    quota at the lowest price are none too many, and are told. With `nearest` the highest price is taken where even
    there more is sent.

    Raises InputError where more is sent at the highest price, or the artifact's own price lies outside its range.
    """
    low, high = price_range(decision)
    if not low <= float(decision["lambda"]) <= high:
        raise InputError(
            f"decision.lambda is {decision['lambda']}, outside the artifact's own range {low} to {high}; promote again."
        )
    price, expected = (_played if drawn else _solved)(quota, low, high, volume, weigh)
    near = max(TOLERANCE * quota, 1.0)
    if expected > quota + near:
        words = (
            f"the quota is {quota:,.1f} sends, and even at lambda {high:g}, the highest that was gated, "
            f"{expected:,.1f} are expected"
        )
        if not nearest:
            raise InputError(
                f"{words}; raise score.sends_at_most or score.share_at_most to what the "
                'range allows, gate a wider range, or set score.over_budget = "nearest".'
            )
        return Quota(quota, low, high, price, expected, False, words)
    reason = ""
    if expected < quota - near:
        reason = (
            f"fewer than the quota of {quota:,.1f} sends: at lambda {low:g}, the lowest that was gated, "
            f"{expected:,.1f} are expected"
        )
    return Quota(quota, low, high, price, expected, True, reason)


def _solved(quota: float, low: float, high: float, volume: Volume, weigh: Weigh) -> tuple[Price, float]:
    """(price, expected sends) where every row is judged once and for all."""
    found = solve(volume, quota, low, high)
    for _ in range(CLOSER):
        if found.window is None:
            break
        # The price does not matter: nothing here is drawn.
        volume = weigh(Price(found.lambda_), found.window)[1]
        found = solve(volume, quota, low, high)
    return _price(found), found.expected


def _price(found: Solved) -> Price:
    return Price(found.lambda_, found.theta)


def _played(quota: float, low: float, high: float, volume: Volume, weigh: Weigh) -> tuple[Price, float]:
    """(price, expected sends) where what is drawn for a candidate decides what is legal, and worth, for the next.

    Every price is played through, and a bracket closes on the quota: a price is named by the sends that it would have
    among the rows of one volume, which orders prices and splits those who have one gap, and the next name is where a
    line through the bracket's ends meets the quota, or its middle.
    """
    ends = {end: weigh(Price(end), EVERYWHERE) for end in {low, high}}
    if ends[high][0] >= quota or low == high:
        return Price(high), ends[high][0]
    if ends[low][0] <= quota:
        return Price(low), ends[low][0]
    near, best = max(TOLERANCE * quota, 1.0) / 2, (Price(high), ends[high][0])
    first, last, few, many = volume.bounds(high)[0], volume.bounds(low)[1], ends[high][0], ends[low][0]
    name = quota
    for attempt in range(TRIES):
        if not first < name < last:
            name = (first + last) / 2
        price = _price(solve(volume, name, low, high))
        expected, now = weigh(price, EVERYWHERE)
        if abs(expected - quota) < abs(best[1] - quota):
            best = price, expected
        if abs(expected - quota) <= near:
            break
        if expected < quota:
            first, few = name, expected
        else:
            last, many = name, expected
        if last - first < near / 16:
            # Here are gaps that this volume does not know of, and the one that was just played does.
            volume, first, last = now, now.bounds(high)[0], now.bounds(low)[1]
            few, many = ends[high][0], ends[low][0]
            name = quota
            continue
        middle = attempt % 3 == 2 or many <= few
        name = (first + last) / 2 if middle else first + (last - first) * (quota - few) / (many - few)
    return best
