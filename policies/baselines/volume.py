"""How much is sent: the logging policy's volume on its own log, random sends that meet it, and a cut of scores."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.contract import HOLD, SPLITS, Contract
from models.errors import InputError
from models.table import Transitions
from policies.base import Booleans, Floats
from policies.baselines.design import LEAST_ROWS

DIGITS = 12
"""Scores are rounded to so many decimals, so that two that are equal stay so whatever else is computed beside them."""
UNTRIED = float(np.finfo(np.float64).min)
"""Score of an action that the log hardly took."""


def choice(legal: Booleans) -> Booleans:
    """[N] whether both `hold` and a send are legal: where alone the volume is a policy's to choose."""
    found: Booleans = legal[:, 0] & legal[:, 1:].any(axis=1)
    return found


def check_hold(name: str, contract: Contract) -> None:
    """Raise InputError where every action is a send."""
    if contract.actions[0] != HOLD:
        raise InputError(
            f"{name}: the log has no action `{HOLD}` (its first is {contract.actions[0]!r}), so that nobody chooses "
            "how much is sent; leave it out of evaluate.baselines."
        )


def rows_of(table: Transitions, split: str) -> Booleans:
    """[N] the rows of a split outside the warm-up."""
    found: Booleans = (table.split == SPLITS.index(split)) & ~table.warm_up
    return found


def send_rate_of(table: Transitions, split: str, name: str, given: float | None) -> float:
    """Share of a split's decisions with a choice that must be sends to send as often as the log did, or `given`.

    (logged sends - rows without a legal hold) / rows with a choice. Raises InputError naming the baseline `name` where
    a given rate lies outside [0, 1], no row has a choice, or no rate in [0, 1] sends as often as the log.
    """
    rows = rows_of(table, split)
    choices = int((rows & choice(table.legal)).sum())
    if not choices:
        raise InputError(
            f"{name}: no decision of the {split} split leaves a choice between `{HOLD}` and a send; use a longer log, "
            "or raise the split's share in etl.split."
        )
    if given is not None:
        if not 0 <= given <= 1:
            raise InputError(f"{name}: the send rate is {given}; give a share of the decisions in [0, 1].")
        return given
    sends = int((rows & (table.action > 0)).sum())
    forced = int((rows & ~table.legal[:, 0]).sum())
    rate = (sends - forced) / choices
    if not 0 <= rate <= 1:
        raise InputError(
            f"{name}: the log sends {sends} times in the {split} split, where sends are legal {choices + forced} times "
            f"and unavoidable {forced} times: no legal policy has its volume; give evaluate.baseline_send_rate, or "
            "loosen [constraints]."
        )
    return rate


def with_sends(send: Floats, among: Floats, legal: Booleans) -> Floats:
    """[N, A] probability `send` [N] of a send where there is a choice, else what is legal, sends shared as `among`.

    `among` [N, A] is non-negative, its first column (`hold`) unread; where it is 0 on every legal send these share
    alike.
    """
    weight = np.where(legal, among, 0.0)
    weight[:, 0] = 0.0
    even = legal.astype(np.float64)
    even[:, 0] = 0.0
    weight = np.where(weight.sum(axis=1, keepdims=True) > 0, weight, even)
    total = weight.sum(axis=1, keepdims=True)
    share = np.divide(weight, total, out=np.zeros_like(weight), where=total > 0)
    sends = np.where(choice(legal), send, ~legal[:, 0])
    found: Floats = share * sends[:, None]
    found[:, 0] = 1.0 - sends
    return found


@dataclass(frozen=True)
class Cut:
    """Sends where the score is above `threshold`, with probability `at` where it is equal, and not below."""

    threshold: float
    at: float

    @classmethod
    def of(cls, score: Floats, rate: float) -> "Cut":
        """The cut that sends at the share `rate` of the rows of `score` [n]: sum of its probabilities = rate n."""
        wanted = rate * len(score)
        threshold = float(np.sort(score)[::-1][min(int(wanted), len(score) - 1)])
        above, equal = int((score > threshold).sum()), int((score == threshold).sum())
        return cls(threshold, (wanted - above) / equal)

    def probabilities(self, score: Floats, legal: Booleans) -> Floats:
        """[N, A] the legal send of the highest `score` [N, A] (ties: the first), by the cut; else `hold`."""
        masked = np.where(legal, score, -np.inf)
        masked[:, 0] = -np.inf
        row, best = np.arange(len(masked)), masked.argmax(axis=1)
        top = masked[row, best]
        among: Floats = np.zeros_like(masked)
        among[row, best] = 1.0
        return with_sends((top > self.threshold) + self.at * (top == self.threshold), among, legal)


def best_send(score: Floats, legal: Booleans) -> Floats:
    """[N] the highest of the scores [N, A] of the legal sends."""
    found: Floats = np.where(legal, score, -np.inf)[:, 1:].max(axis=1)
    return found


def cut_on_validation(
    table: Transitions, score_of: Callable[[NDArray[np.float32]], Floats], name: str, given: float | None
) -> tuple[Cut, float]:
    """The cut of `score_of(state)` [N, A] that meets the log's volume, or `given`, on the validation split; that rate.

    Raises InputError as `send_rate_of`, and where only actions that the log hardly took could meet it.
    """
    rate = send_rate_of(table, "validation", name, given)
    rows = rows_of(table, "validation") & choice(table.legal)
    found = Cut.of(best_send(score_of(table.state[rows]), table.legal[rows]), rate)
    if found.threshold == UNTRIED and found.at > 0:
        raise InputError(
            f"{name}: to send at {rate:.3f} of the validation decisions it would need actions that training took fewer "
            f"than {LEAST_ROWS} times; give a lower evaluate.baseline_send_rate, or leave those actions out."
        )
    return found, rate


@dataclass(frozen=True)
class Random:
    """Sends with one probability whatever the state: what a volume is worth by itself."""

    send: float
    """Probability of a send where there is a choice."""
    share: Floats
    """[A] of the log's sends; 0 for `hold`."""
    facts: dict[str, Any]
    name: str = "random"
    learned: bool = True

    def action_probabilities(self, state: NDArray[np.float32], legal: Booleans) -> Floats:
        """[N, A] `send` times each legal send's share of `legal` [N, A]; `state` is not read."""
        n = len(legal)
        return with_sends(np.full(n, self.send), np.broadcast_to(self.share, (n, len(self.share))), legal)


def fit_random(table: Transitions, seed: int = 0, send_rate: float | None = None) -> Random:
    """Random sends whose expected number on the training rows is the logging policy's (by default), or at `send_rate`.

    p = (logged sends - unavoidable sends) / decisions with a choice; among several send actions by the log's own split.
    `seed` is not read: nothing is drawn.

    Raises InputError where the log has no `hold`, sends nothing, or as `send_rate_of`.
    """
    check_hold(Random.name, table.contract)
    rate = send_rate_of(table, "train", Random.name, send_rate)
    rows = rows_of(table, "train") & table.legal[np.arange(len(table.action)), table.action]
    taken = np.bincount(table.action[rows], minlength=len(table.contract.actions)).astype(np.float64)
    taken[0] = 0.0
    if not taken.any():
        raise InputError(f"{Random.name}: the training split has no send; there is no volume to match.")
    return Random(rate, taken / taken.sum(), {"send_rate": rate})
