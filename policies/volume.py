"""The price per send that a volume needs, fixed on the validation split before the gate, and the range around it.

A volume is the expected sends of the policy as deployed, relative to what the logging policy sent on the same rows. It
is a one-step expectation: the policy decides once at every state that the log was in, whereas its own sends would lead
to other states (more or fewer sends in the last 24 hours, a fuller badge). What the policy will send when it decides
throughout is what the gate's estimate of `sends` says.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from models.contract import SPLITS
from models.errors import InputError
from models.table import Transitions
from policies.base import Booleans, Floats
from policies.budget import solve, volume_of
from policies.ope.sample import take
from policies.q_policy import deployed_probabilities

PRICES = ("lambda", "lambda_low", "lambda_high")
"""What a volume fixes of a decision: the price, and between which prices it may move."""


@dataclass(frozen=True)
class Deployed:
    """How one learned policy acts, its price fixed."""

    decision: Mapping[str, float]
    is_send: Sequence[bool]
    facts: Mapping[str, Any] = field(default_factory=dict)
    """How the price came about: rows and logging_sends of the validation split; least and most the volumes that any
    price has there; by PRICES the volume asked, the expected one, lambda, and the reason where they differ, else "".
    Empty without a volume."""

    def __call__(self, q: Floats, behaviour_logits: Floats, legal: Booleans) -> Floats:
        """[N, A] `deployed_probabilities`."""
        return deployed_probabilities(q, behaviour_logits, legal, self.decision, self.is_send)


@dataclass(frozen=True)
class Budget:
    """What a policy is to send on the validation rows, as a share of what the logging policy sent there."""

    decision: Mapping[str, float]
    """rollout_share and exploration."""
    is_send: Sequence[bool]
    volume: float
    bounds: tuple[float, float]
    """Smallest and largest volume that the price may be moved to; they hold `volume` between them."""
    rows: int
    sends: int
    """Of the logging policy on those rows."""

    @classmethod
    def of(
        cls,
        table: Transitions,
        per: Literal["week", "decision"],
        decision: Mapping[str, float],
        volume: float,
        bounds: tuple[float, float] | None = None,
    ) -> "Budget":
        """Of the rows of `table` that select a policy (`selection.Slope`); without `bounds` a range of one volume.

        Raises InputError where the logging policy sent nothing there, and as `policies.ope.sample.take` does.
        """
        is_send = table.contract.is_send
        sample = take(table, table.split == SPLITS.index("validation"), per)
        sends = int(np.asarray(is_send)[sample.action].sum())
        if not sends:
            raise InputError(
                f"policy.volume: the log sent nothing at the {sample.decisions} decisions of the validation split, so "
                "that nothing is a share of it; raise its share in etl.split, or give policy.lambda."
            )
        return cls(decision, is_send, volume, bounds or (volume, volume), len(sample.rows), sends)

    def deployed(self, q: Floats, behaviour_logits: Floats, legal: Booleans) -> Deployed:
        """How a policy acts whose `q` [n, A] at the validation rows this is: at the price that meets the volume.

        More sends need a lower price, so that `lambda_low` is of the largest volume. Ties are not split: what is
        deployed sends where the gap exceeds the price, and not where it equals it. Where no price meets a volume it is
        the one that comes nearest, and `facts` say so.
        """
        priced = {**self.decision, "lambda": 0.0}
        assert len(q) == self.rows, "a price is fixed on the rows that a policy is selected on"
        summary = volume_of(q, behaviour_logits, legal, priced, self.is_send)
        low, high = self.bounds
        found: dict[str, dict[str, Any]] = {}
        for name, volume in zip(PRICES, (self.volume, high, low), strict=True):
            solved = solve(summary, volume * self.sends, split_ties=False)
            found[name] = {
                "asked": volume,
                "expected": solved.expected / self.sends,
                "lambda": solved.lambda_,
                "reason": solved.reason,
            }
        facts = {
            "rows": self.rows,
            "logging_sends": self.sends,
            "least": summary.bounds(np.inf)[0] / self.sends,
            "most": summary.bounds(-np.inf)[0] / self.sends,
            **found,
        }
        prices = {name: float(each["lambda"]) for name, each in found.items()}
        return Deployed({**self.decision, **prices}, self.is_send, facts)

    def check(self, name: str, facts: Mapping[str, Any]) -> None:
        """Raise InputError where a price of the policy `name` misses its volume, by the `facts` of `deployed`."""
        for price in PRICES:
            found = facts[price]
            if found["reason"]:
                raise InputError(
                    f"policy.volume: {name} cannot be brought to {found['asked']:g} times the logging policy's sends "
                    f"on the validation split ({price}; nearest {found['expected']:.4g}; the prices that there are "
                    f"give {facts['least']:.4g} to {facts['most']:.4g}): {found['reason']}. Give policy.volume and "
                    "policy.volume_range between these, or another policy.rollout_share."
                )
