"""The goal classifier that is not hacked: what the current policy visits is added to the failures, in turn.

A policy that is paid by a classifier finds states that look like success and are none: the classifier never saw them.
So, round after round, as in VICE-RAQ without its queries (Singh et al. 2019, after Fu et al. 2018) and in MEDAL++
(Sharma et al. 2023):

    classifier_r of the successes against the failures and V_1 .. V_r; policy_r of its reward; V_{r+1} = what policy_r
    visits

At the optimum of a balanced batch p(s) = g(s) / (g(s) + f(s)), g the density of successes and f that of failures, half
of it visited states: where a policy goes and successes do not, p falls; where it goes as successes do, p is
g / (g + (g + f_0) / 2), f_0 the density of logged failures.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np

from models.rewards.goal import Classifier, Examples, States, fit, places
from models.rewards.success import GoalConfig, Sets
from models.table import Transitions

P = TypeVar("P")


@dataclass(frozen=True)
class Visited:
    """States that a policy visits, raw [., S], of the users a classifier learns from and of held-out ones."""

    train: States
    held_out: States


@dataclass(frozen=True)
class Round:
    """A classifier, and what is to be said of it."""

    classifier: Classifier
    facts: dict[str, Any]


def rounds_of(
    table: Transitions,
    sets: Sets,
    config: GoalConfig,
    seed: int,
    train: Callable[[Classifier], P],
    visited: Callable[[P], Visited],
) -> list[Round]:
    """config.rounds + 1 classifiers, the first naive; `train` makes a policy of a classifier's reward, `visited` says
    where that policy goes.

    Train users are learned from, validation users held out. Raises InputError as `Examples.of`.
    """
    features = config.features or table.contract.features
    columns = places(table, features)
    learned, held_out = (Examples.of(table, sets, split, features) for split in ("train", "validation"))
    found: list[Round] = []
    for number in range(config.rounds + 1):
        classifier, facts = fit(learned, held_out, features, config, seed)
        found.append(Round(classifier, {"round": number, **facts}))
        if number < config.rounds:
            seen = visited(train(classifier))
            learned = replace(learned, visited=np.concatenate([learned.visited, seen.train[:, columns]]))
            held_out = replace(held_out, visited=np.concatenate([held_out.visited, seen.held_out[:, columns]]))
    return found
