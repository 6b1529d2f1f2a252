"""A policy laid over a log: its probabilities and importance ratios at every row."""

from dataclasses import dataclass

import numpy as np

from models.errors import InputError
from models.table import Transitions
from policies.base import Floats, Policy, checked_probabilities


@dataclass(frozen=True)
class Target:
    """What a policy does at each row of a table."""

    probability: Floats
    """[N, A] pi(a | s)."""
    ratio: Floats
    """[N] rho = pi(a_logged | s) / mu(a_logged | s); 0 where configured constraints forbid the logged action."""

    @classmethod
    def of(cls, policy: Policy, table: Transitions) -> "Target":
        """`policy` on every row of `table`. Raises InputError where its probabilities are none (see
        `checked_probabilities`)."""
        probability = checked_probabilities(policy, table.state, table.legal)
        taken = probability[np.arange(len(table.action)), table.action]
        return cls(probability, taken / table.propensity)

    def mixture(self, table: Transitions, share: float) -> "Target":
        """(1 - share) mu + share pi: each decision goes to pi with probability `share`, else to the policy that wrote
        the log.

        rho = (1 - share) + share rho_pi, exactly. In `probability` mu is given as the action it took, whose mean over
        mu is mu: so nothing is needed of mu but its propensities, whatever the number of actions. Raises InputError for
        a share outside [0, 1].
        """
        if not 0 <= share <= 1:
            raise InputError(f"gate.shares: {share} is not a share; give values in (0, 1].")
        probability = share * self.probability
        probability[np.arange(len(table.action)), table.action] += 1 - share
        return Target(probability, (1 - share) + share * self.ratio)
