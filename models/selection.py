"""Which members of a learner are exported: the seed that did best on the validation split, or all together."""

import logging
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.errors import InputError
from models.members import Member
from models.network import Population, predicted, together
from models.run import Run
from models.watch import Kept, Point, Seen

LOG = logging.getLogger("tactful")


@dataclass(frozen=True)
class Chosen:
    """What of a learner's members is exported."""

    member: Member
    network: Population
    weights: NDArray[np.float64]
    curve: list[Point]
    agreement: float | None
    kept: dict[str, float | None] | None
    stopped: tuple[str, ...]
    gains: tuple[dict[str, float | None], ...]

    def q(self, run: Run) -> NDArray[np.float64]:
        """[N, A] at every row of the table."""
        return lower_bound(predicted(self.network, run.data.state) @ self.weights,
                           self.member.learner.pessimism)  # fmt: skip


def lower_bound(q: NDArray[np.float64], pessimism: float) -> NDArray[np.float64]:
    """[N, A] mean - c sd over the members of `q` [E, N, A], c = `pessimism`: taken on w~.Q, never per head.

    sd with denominator E; with one member it is that member's q.
    """
    found: NDArray[np.float64] = q.mean(axis=0) - pessimism * q.std(axis=0)
    return found


def chosen_of(run: Run, members: list[Member], seen: list[Seen]) -> list[Chosen]:
    """Of each learner the seed that did best on the validation split, or all of them where they act together.

    What diverged is not trusted at an earlier check either.
    """
    found, failed = [], []
    for name in run.config.learners:
        mine = [(member, each) for member, each in zip(members, seen, strict=True) if member.name == name]
        stopped = tuple(each.stopped for _, each in mine if each.stopped)
        alive = [(each.kept, each.curve) for _, each in mine if each.kept and not each.stopped]
        for reason in stopped:
            LOG.warning("%s", reason)
        if not alive:
            failed.append(stopped[0])
            continue
        networks = [kept.network for kept, _ in alive]
        place = max(range(len(alive)), key=lambda each: _gain(alive[each][0]))
        (kept, curve), member = alive[place], mine[0][0]
        ensemble = member.learner.pessimism > 0
        q = predicted(together(networks), run.data.state) @ kept.weights
        chosen = {"step": float(kept.step), "gain": kept.gain, "standard_error": kept.standard_error}
        found.append(
            Chosen(
                member=member,
                network=together(networks) if ensemble else kept.network,
                weights=kept.weights,
                curve=curve,
                agreement=_agreement(q, place, run),
                kept=None if ensemble else chosen,
                stopped=stopped,
                gains=tuple({"gain": each.gain, "standard_error": each.standard_error} for each, _ in alive),
            )
        )
    if not found:
        raise InputError(f"training {failed[0]}.")
    return found


def _gain(kept: Kept) -> float:
    return -float("inf") if kept.gain is None else kept.gain


def _agreement(q: NDArray[np.float64], first: int, run: Run) -> float | None:
    """Over the validation choices (training ones where there are none), how often the other members' greedy action is
    that of member `first`; `q` [members, N, A]."""
    if len(q) == 1:
        return None
    rows = run.validation.choice if run.validation.choice.any() else run.training.choice
    greedy = np.where(run.table.legal[rows], q[:, rows], -np.inf).argmax(axis=-1)
    same = greedy == greedy[first]
    return float(np.delete(same, first, axis=0).mean())
