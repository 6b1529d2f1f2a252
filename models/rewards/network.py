"""A learned reward as an ensemble of networks over (state, action, outcome), from compared and ranked user-weeks.

Row k of a log has the input x_k = (state, one-hot action, reward components, Delta_k), standardised over the log's
rows. Member p of P gives r_p(x_k), and R_p(week) = sum of r_p over the week's rows; what raters said of weeks enters by
the losses of models/rewards/questions.py. Members differ by their first parameters and by a bootstrap of the answers.

A member begins as weights over the outcome, all 0: two units of every layer carry the positive and the negative part of
each reward component and of Delta, and the last layer is 0. What raters say of a component is then learned as fast as
by weights; the other units, random, carry the state and the action.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.contract import SPLITS
from models.errors import InputError
from models.network import Population, initial, predicted, restored
from models.optimise import Descent
from models.rewards.answers import Answers
from models.rewards.choices import Compared as Pairs
from models.rewards.choices import groups_of
from models.rewards.questions import Compared, Questions, inputs_of, questions_of
from models.rewards.settings import NetworkConfig
from models.rewards.store import Stored
from models.rewards.support import Support, seen_rows
from models.rewards.weeks import Weeks
from models.table import Transitions

KIND = "network"
FEWEST = 20
"""Answers below which a network is not tried."""
SLOPES = 4096
"""Rows at which the network's slopes are looked at."""
BINS = 5
"""Of the calibration table."""
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Fitted:
    """What a fit gives: facts and tensors for `models.rewards.store.add` with kind "network"."""

    facts: dict[str, Any]
    tensors: dict[str, Tensor]


def fit(logs: Sequence[Compared], answers: Answers, config: NetworkConfig, seed: int) -> Fitted:
    """An ensemble of reward networks from `answers` about the weeks of `logs`, which share a contract.

    Every member is standardised to mean 0 and standard deviation 1 over the rows of the logs (past the warm-up, no test
    users), as in Christiano et al. 2017, section 2.2.1; their average, which is the reward, is scaled to a standard
    deviation of 1 again. What the standardisation takes away, a constant per decision, changes no choice where policies
    do not move the number of decisions: decision times are exogenous here. A policy that moves account closings moves
    it.

    Raises InputError where the answers are too few, one-sided or about unknown weeks, or where the reward that is found
    is the same on every row.
    """
    check_answers(answers, config)
    inputs = [inputs_of(table, table.contract.rewards) for table, _ in logs]
    # Test users are for judging what comes of it: they move no unit either.
    usable = [~table.warm_up & (table.split != SPLITS.index("test")) for table, _ in logs]
    rows = np.concatenate([x[kept] for x, kept in zip(inputs, usable, strict=True)])
    if not len(rows):
        raise InputError("learned.network: every row past the warm-up is of the test split; change etl.split.")
    mean, std = _moments(rows)
    std[: len(logs[0][0].contract.features)] *= config.state_scale
    questions = questions_of(logs, inputs, answers, config.raters, (mean, std))
    rng = np.random.default_rng(seed)
    out = _apart(answers, config.held_out, rng)
    held, learned = questions.only(np.flatnonzero(out)), questions.only(np.flatnonzero(~out))
    outcomes = len(logs[0][0].contract.rewards) + 1
    _check_units(config, outcomes)
    network, steps = _descend(learned, held, config, mean, std, rng, seed, outcomes)
    standardised, level, sigma = _standardise(network, (rows - mean) / std)
    with torch.no_grad():
        returns = questions.returns(network).mean(dim=0)
    table = logs[0][0]
    facts = {
        "rewards": list(table.contract.rewards),
        "features": list(table.contract.features),
        "actions": list(table.contract.actions),
        "units": {name: table.contract.units.get(name, "") for name in table.contract.rewards},
        "sigma": sigma,
        "level": level,
        "fingerprint": table.fingerprint,
        "answers": answers_hash(answers),
        "number": {"pairs": len(answers.pairs), "rankings": len(answers.rankings), "raters": len(answers.raters)},
        "steps": steps,
        "settings": asdict(config),
        "support": Support.of([(each, seen_rows(each, weeks, answers.weeks)) for each, weeks in logs]).plain(),
        **held_out(held, returns),
    }
    return Fitted(facts, dict(standardised.state_dict()))


def _apart(answers: Answers, share: float, rng: np.random.Generator) -> NDArray[np.bool_]:
    """[M] about `share` of the answers, whole groups of those about the same weeks: to hold out one and learn from
    another of the same two weeks would ask what was told."""
    place: dict[str, int] = {}
    named = [(each.left, each.right) for each in answers.pairs] + [each.order for each in answers.rankings]
    coded = [np.array([place.setdefault(name, len(place)) for name in names], dtype=np.int64) for names in named]
    pairs = np.array(coded[: len(answers.pairs)], dtype=np.int64).reshape(-1, 2)
    nothing = np.zeros(len(pairs), dtype=np.int64)
    group = groups_of(Pairs(pairs[:, 0], pairs[:, 1], nothing, nothing), coded[len(pairs) :])
    sizes = np.bincount(group)
    if len(sizes) < 2:
        raise InputError(
            "answers: all are about the same user-weeks, or linked by rankings, so that none can be held out; compare "
            "other weeks too."
        )
    order = rng.permutation(len(sizes))
    # The first group that reaches the share is in, and at least one stays to be learned from.
    count = min(int(np.searchsorted(np.cumsum(sizes[order]), share * len(group))) + 1, len(sizes) - 1)
    return np.isin(group, order[:count])


def component(stored: Stored, table: Transitions) -> Floats:
    """[N] the learned reward of every row of `table`, mean 0 and standard deviation 1 over the log it was learned on.

    Raises InputError where the table lacks a feature, an action or a component that it was learned from.
    """
    network = network_of(stored)
    rows: Floats = predicted(network, _input(stored, table, network)).mean(axis=0)[:, 0, 0]
    return rows * float(network.scale[0])


def member_returns(stored: Stored, table: Transitions, weeks: Weeks) -> Floats:
    """[P, W] R_p of every week, on the raters' scale: P(A > B) = sigma(R(A) - R(B)). Raises as `component` does."""
    network = network_of(stored)
    rows = predicted(network, _input(stored, table, network))[:, :, 0, 0]
    raw = np.array(stored.facts["level"])[:, None] + np.array(stored.facts["sigma"])[:, None] * rows
    return weeks.sums(raw.T).T


def disagreement(returns: Floats, pairs: NDArray[np.int64]) -> Floats:
    """[M] variance over the members of P(A > B) for `pairs` [M, 2] of weeks, from their `returns` [P, W].

    The pair of the largest is asked next (Christiano et al. 2017, section 2.2.4).
    """
    gap = returns[:, pairs[:, 0]] - returns[:, pairs[:, 1]]
    found: Floats = (1 / (1 + np.exp(-np.clip(gap, -500, 500)))).var(axis=0)
    return found


def network_of(stored: Stored) -> Population:
    """The members, standardised. Raises InputError where the stored reward is no network."""
    if stored.kind != KIND:
        raise InputError(f"learned:{stored.name}: kind is {stored.kind!r}; {KIND!r} is needed here.")
    return restored(stored.tensors, 1)


def slopes(stored: Stored, table: Transitions) -> dict[str, tuple[float, float, float]]:
    """By reward component what one raw unit more of it is worth, on the raters' scale: (mean, least, largest member).

    The derivative of level_p + sigma_p r_p at the rows of `table`, averaged over at most SLOPES of them, evenly taken;
    the mean over the members, and how far they are apart. Of a network that is linear in the outcome it is the weight.
    The spread is that of bootstraps with a held-out set in common, no interval. Raises as `component` does.
    """
    network = network_of(stored)
    x = _input(stored, table, network)
    x = x[torch.linspace(0, len(x) - 1, min(SLOPES, len(x))).round().long()]
    x = x.expand(network.members, *x.shape).clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(network.heads(x).sum(), x)
    sigma = torch.tensor(stored.facts["sigma"])
    first = x.shape[-1] - len(stored.facts["rewards"]) - 1
    found = {}
    for place, name in enumerate(stored.facts["rewards"], start=first):
        each = (gradient[..., place].mean(dim=1) * sigma / network.std[place]).tolist()
        found[name] = (float(np.mean(each)), min(each), max(each))
    return found


def answers_hash(answers: Answers) -> str:
    """SHA-256 of everything that was said, in order."""
    said = json.dumps([[vars(each) for each in answers.pairs], [vars(each) for each in answers.rankings]])
    return hashlib.sha256(said.encode()).hexdigest()


def check_answers(answers: Answers, config: NetworkConfig) -> None:
    """Raise InputError where no network can be learned from them."""
    given = len(answers.pairs) + len(answers.rankings)
    if given < FEWEST:
        raise InputError(
            f"answers: {given} of them; a network needs {FEWEST} or more. Ask further pairs, or learn "
            "weights, which need fewer."
        )
    if not answers.rankings and all(each.answer == "tie" for each in answers.pairs):
        raise InputError("answers: every one is a tie, which says nothing of what is better; compare other weeks.")
    for rater in config.raters:
        if rater not in answers.raters:
            raise InputError(
                f"learned.network.raters: {rater!r} gave no answer (found: {', '.join(answers.raters)}); remove it."
            )
    if all(config.raters.get(rater, 1.0) == 0 for rater in answers.raters):
        raise InputError("learned.network.raters: every rater weighs 0; give one a weight.")


def held_out(held: Questions, returns: Tensor) -> dict[str, Any]:
    """How well the average of the members tells held-out answers: accuracy, log loss, calibration.

    The members were stopped where they told these answers best, so that all three are a little better than on others.

    Accuracy is over comparisons that are no ties; null where there is none. Calibration has for bins of P(left) that
    are equally wide {low, high, answers, predicted, observed}, a tie counting as half.
    """
    loss = float((held.weight * held.losses(returns[None])[0]).sum() / held.weight.sum().clamp(min=1e-12))
    two = (held.order >= 0).sum(dim=1) == 2
    gap = (returns[held.order[:, 0]] - returns[held.order[:, 1]])[two].numpy()
    said = held.target[two].numpy()
    clear = said != 0.5
    accuracy = float(((gap > 0) == (said > 0.5))[clear].mean()) if clear.any() else None
    p = 1 / (1 + np.exp(-gap))
    place = np.minimum((p * BINS).astype(int), BINS - 1)
    table = [
        {"low": b / BINS, "high": (b + 1) / BINS, "answers": int((place == b).sum()),
         "predicted": float(p[place == b].mean()), "observed": float(said[place == b].mean())}
        for b in range(BINS) if (place == b).any()
    ]  # fmt: skip
    return {"held_out": len(held.order), "accuracy": accuracy, "log_loss": loss, "calibration": table}


def _descend(
    learned: Questions,
    held: Questions,
    config: NetworkConfig,
    mean: NDArray[np.float32],
    std: NDArray[np.float32],
    rng: np.random.Generator,
    seed: int,
    outcomes: int,
) -> tuple[Population, list[int]]:
    """Each member where its loss on the held-out answers was least, and the update that was."""
    streams = np.random.SeedSequence(seed).generate_state(config.members)
    one = torch.ones(1)
    state = torch.from_numpy(mean), torch.from_numpy(std)
    network = from_weights(initial([int(each) for each in streams], config.hidden, *state, 0 * one, one, 1), outcomes)
    answers = len(learned.order)
    drawn = rng.multinomial(answers, np.full(answers, 1 / answers), size=config.members)
    counts = torch.from_numpy(drawn).float() * learned.weight
    descent = Descent([network], [config.learning_rate] * config.members, config.steps)
    best = torch.full((config.members,), torch.inf)
    kept = [each.detach().clone() for each in network.parameters()]
    at, last = [0] * config.members, 0
    for step in range(config.steps + 1):
        if step % 10 == 0:
            with torch.no_grad():
                loss = (held.losses(held.returns(network)) * held.weight).mean(dim=1)
            better = loss < best
            best = torch.where(better, loss, best)
            for mine, now in zip(kept, network.parameters(), strict=True):
                mine[better] = now.detach()[better]
            at = [step if improved else before for improved, before in zip(better.tolist(), at, strict=True)]
            last = step if better.any() else last
            if step - last >= 10 * config.patience:
                break
        total = (learned.losses(learned.returns(network)) * counts).sum(dim=1) / counts.sum(dim=1).clamp(min=1)
        descent.begin(step)
        descent.step(total)
        with torch.no_grad():
            for each in network.parameters():
                each.mul_(1 - config.learning_rate * config.weight_decay)
    with torch.no_grad():
        for now, mine in zip(network.parameters(), kept, strict=True):
            now.copy_(mine)
    return network.requires_grad_(False), at


@torch.no_grad()
def from_weights(network: Population, outcomes: int) -> Population:
    """`network`, in place, with output 0 and the parts max(x, 0), max(-x, 0) of its last `outcomes` inputs in the first
    units of every hidden layer."""
    inputs, parts = network.weights[0].shape[1], 2 * outcomes
    for weight, bias in zip(list(network.weights)[:-1], list(network.biases)[:-1], strict=True):
        weight[:, :, :parts] = 0
        bias[:, :, :parts] = 0
        for unit in range(parts):
            first = weight is network.weights[0]
            source = inputs - outcomes + unit // 2 if first else unit
            weight[:, source, unit] = -1 if first and unit % 2 else 1
    network.weights[-1].zero_()
    network.biases[-1].zero_()
    return network


def _check_units(config: NetworkConfig, outcomes: int) -> None:
    if min(config.hidden) < 2 * outcomes:
        raise InputError(
            f"learned.network.hidden is {list(config.hidden)}; for {outcomes - 1} reward components and the elapsed "
            f"time {2 * outcomes} units or more are needed in every layer."
        )


def _standardise(network: Population, rows: NDArray[np.float32]) -> tuple[Population, list[float], list[float]]:
    """The members with mean 0 and standard deviation 1 over `rows`, `scale` making that of their average 1; and the
    means and standard deviations that they had. A member that learned nothing, as it would only have told held-out
    answers worse, is left out."""
    found = predicted(network, torch.from_numpy(np.nan_to_num(rows)))[:, :, 0, 0]
    taught = np.flatnonzero(found.std(axis=1) > 1e-8)
    if not len(taught):
        raise InputError(
            "answers: the reward is the same on every row, as no member tells held-out answers better than a coin; "
            "ask pairs that differ more, or more of them."
        )
    found = found[taught]
    level, sigma = found.mean(axis=1), found.std(axis=1)
    average = ((found - level[:, None]) / sigma[:, None]).mean(axis=0).std()
    down, shift = (torch.from_numpy(each).float()[:, None, None] for each in (sigma, level))
    weights = [each.detach()[taught].clone() for each in network.weights]
    biases = [each.detach()[taught].clone() for each in network.biases]
    weights[-1] = weights[-1] / down
    biases[-1] = (biases[-1] - shift) / down
    scale = torch.tensor([1 / average], dtype=torch.float32)
    whole = Population(weights, biases, network.mean, network.std, torch.zeros(1), scale, 1)
    return whole.requires_grad_(False), level.tolist(), sigma.tolist()


def _moments(rows: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean and standard deviation of each input where it is known; 0 and 1 where it never is or never varies."""
    known = ~np.isnan(rows)
    number = np.maximum(known.sum(axis=0), 1)
    mean = np.where(known, rows, 0).sum(axis=0, dtype=np.float64) / number
    std = np.sqrt((np.where(known, rows - mean, 0) ** 2).sum(axis=0, dtype=np.float64) / number)
    return mean.astype(np.float32), np.where(std > 1e-8, std, 1).astype(np.float32)


def _input(stored: Stored, table: Transitions, network: Population) -> Tensor:
    facts: Mapping[str, Any] = stored.facts
    contract = table.contract
    for what, there in (("features", contract.features), ("rewards", contract.rewards)):
        missing = [name for name in facts[what] if name not in there]
        if missing:
            raise InputError(
                f"learned:{stored.name}: it was learned from {what} that this log lacks: {', '.join(missing)}; "
                "configure them, or learn the reward again."
            )
    if list(contract.actions) != list(facts["actions"]):
        raise InputError(
            f"learned:{stored.name}: it was learned with the actions {', '.join(facts['actions'])}, this log has "
            f"{', '.join(contract.actions)}; learn it again."
        )
    return network.normalise(torch.from_numpy(inputs_of(table, facts["rewards"], facts["features"])))
