"""Why a deployed policy chooses as it does at one decision: what each action is worth, what tips it, what moved it.

Worth is the artifact's `values`, an unpenalised fitted Q in raw units. What the policy chooses by (q, or the logits of
a policy that imitates the log) is for choosing, not for reading: of it only the order of the actions is told, and
shares of a movement. Legend: N states, A actions, S state features, K reward components.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from models.contract import Contract
from policies.base import Booleans, Floats
from policies.q_policy import QArtifact, deployed_probabilities, softmax_over_legal

FEWEST, MOST = 32, 256
"""Points on the path of integrated gradients: doubled until the residual is small."""
TOLERANCE = 0.01
"""Residual, as a share of the difference, above which more points are taken."""
STEP = 0.01
"""Half the width of a central difference, in training standard deviations: far above what float32 rounds away."""
SHOWN = 5
"""Features told in words."""
RARELY = 0.1
"""Probability below which the log did something rarely."""
REGULAR = 0.3
"""Length of a mean sine and cosine below which no time of the cycle is the average."""
ONLY_LEGAL_ACTION = "only_legal_action"
FLAGS = ("notifications_on", "candidate_missing")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
CYCLES = {"hour": "hour of day", "weekday": "day of week"}
RULES = {
    "consent": "notifications are off",
    "quiet_hours": "these are quiet hours",
    "max_sends_24h": "the limit of sends in 24 hours is reached",
    "max_sends_7d": "the limit of sends in 7 days is reached",
    "min_gap": "the last send is too recent",
}
"""What each rule of policies/constraints.py means to a person."""


class Explainable(QArtifact, Protocol):
    """What an explanation needs of an artifact; `models.artifact.load` returns one."""

    @property
    def weights(self) -> Mapping[str, float]: ...
    @property
    def scales(self) -> Mapping[str, Any]: ...


@dataclass(frozen=True)
class Attribution:
    """What each of S features adds to a function between a baseline and a state."""

    parts: Floats
    """[S] 0 where a feature is at its baseline or unknown."""
    difference: float
    """F(state) - F(baseline)."""
    points: int

    @property
    def residual(self) -> float:
        """What of the difference the parts do not add up to."""
        return self.difference - float(self.parts.sum())


@dataclass(frozen=True)
class Movement:
    """A feature, or columns that say one thing together, and how it moved the choice away from the average user's."""

    feature: str
    columns: tuple[str, ...]
    here: str
    average: str
    """Over the training rows; empty where a cycle has none."""
    towards: str
    """An action."""
    share: float
    """Of all movement, in [0, 1]."""


@dataclass(frozen=True)
class Explanation:
    """One decision explained."""

    contract: Contract
    legal: Booleans
    """[A]."""
    probabilities: Floats
    """[A] as deployed."""
    logging: Floats
    """[A] of the cloned logging policy."""
    values: Floats
    """[A, K] raw units: the action now, then the policy as deployed, discounted."""
    weights: Floats
    """[K] per raw unit."""
    share: float
    """Of decisions that are the learned policy's own; 0 where the policy imitates the log."""
    exploration: float
    preferred: int
    """The action of the largest preference; the policy's own part acts by it."""
    rival: int | None
    """The action it is held against: that of the largest weighted value or, where that is the preferred one, the next
    by preference. None where one action is legal."""
    average: int
    """What would be preferred of the same legal actions for the average user: the training mean of every feature."""
    budget: bool
    """Whether the price of a send decides: without it another action would be preferred."""
    cautious: bool
    """Whether the preference was learned to stay near the log."""
    rule: str
    """Why one action alone is legal: consent, quiet_hours, ..., or only_legal_action; else empty."""
    movements: tuple[Movement, ...]
    """The largest first."""
    unattributed: float
    """Share of the movement that no feature accounts for."""

    @property
    def pair(self) -> tuple[int, int] | None:
        """(action, the one it is compared with): the preferred action and its rival, the later one first."""
        if self.rival is None:
            return None
        return max(self.preferred, self.rival), min(self.preferred, self.rival)

    @property
    def difference(self) -> Floats:
        """[K] values of the first of `pair` minus those of the second, raw units; 0 without a pair."""
        if self.pair is None:
            return np.zeros(len(self.weights))
        of, against = self.pair
        found: Floats = self.values[of] - self.values[against]
        return found

    @property
    def weighted(self) -> Floats:
        """[K] `difference` times `weights`; its sum is the difference in all."""
        return self.difference * self.weights

    @property
    def agrees(self) -> bool:
        """Whether no legal action has a larger weighted value than the preferred one."""
        worth = np.where(self.legal, self.values @ self.weights, -np.inf)
        return bool(worth[self.preferred] >= worth.max())

    @property
    def tips(self) -> str | None:
        """The component that speaks most for the worthier action of `pair`; None where nothing does."""
        total = float(self.weighted.sum())
        if total == 0:
            return None
        return self.contract.rewards[int(np.argmax(math.copysign(1, total) * self.weighted))]


def integrated_gradients(
    function: Callable[[NDArray[np.float32]], Floats], state: Floats, baseline: Floats, unit: Floats
) -> Attribution:
    """(x_i - b_i) times the mean of dF/dx_i at m midpoints of the line from b to x, by central differences.

    `function` [N, S] -> [N]; `state` x (NaN unknown, taken as b_i), `baseline` b and `unit` [S], raw units: each
    difference is 2 STEP units wide. By completeness the parts sum to F(x) - F(b); m doubles from FEWEST to MOST while
    they miss it by more than TOLERANCE. Source: Sundararajan, Taly and Yan 2017, equation 1 and proposition 1.
    """
    x = np.where(np.isnan(state), baseline, state)
    ends = function(np.stack([x, baseline]).astype(np.float32))
    points = FEWEST
    while True:
        middle = (np.arange(points) + 0.5) / points
        path = baseline + middle[:, None] * (x - baseline)
        parts = np.zeros(len(x))
        for i in np.flatnonzero(x != baseline):
            both = np.stack([path, path])
            both[0, :, i] += STEP * unit[i]
            both[1, :, i] -= STEP * unit[i]
            rounded = both.astype(np.float32)
            # As wide as float32 made it.
            width = rounded[0, :, i].astype(np.float64) - rounded[1, :, i]
            above, below = function(rounded.reshape(-1, len(x))).reshape(2, points)
            slope = np.divide(above - below, width, out=np.zeros(points), where=width > 0)
            parts[i] = (x[i] - baseline[i]) * slope.mean()
        found = Attribution(parts, float(ends[0] - ends[1]), points)
        if points >= MOST or abs(found.residual) <= TOLERANCE * abs(found.difference):
            return found
        points *= 2


def explain(artifact: Explainable, state: NDArray[np.float32], legal: Booleans, rule: str = "") -> Explanation:
    """Why `artifact` chooses as it does at `state` [S] (raw units, NaN unknown) among the `legal` [A] actions.

    Values and differences are the artifact's `values`; movements are integrated gradients of the preference of the
    preferred action over its rival, from the training means, the columns of one feature added up. `rule` says why one
    action alone is legal, where that is known.

    Raises InputError as `Artifact.predict` and `deployed_probabilities` do.
    """
    contract, decision, lineage = artifact.contract, artifact.decision, artifact.lineage
    q, logits, values = artifact.predict(state[None])
    probabilities = deployed_probabilities(q, logits, legal[None], decision, contract.is_send)[0]
    imitates = decision["rollout_share"] == 0
    price = decision["lambda"] * np.asarray(contract.is_send, dtype=np.float64)

    def preference(states: NDArray[np.float32]) -> Floats:
        """[N, A] what the policy chooses by, -inf where illegal."""
        q, logits, _ = artifact.predict(states)
        return np.where(legal, logits if imitates else q - price, -np.inf)

    order = np.argsort(-preference(state[None])[0], kind="stable")
    preferred = int(order[0])
    weights = np.array([artifact.weights[name] for name in contract.rewards])
    worth = np.where(legal, values[0] @ weights, -np.inf)
    rival = None if legal.sum() == 1 else int(order[1] if worth[preferred] >= worth.max() else worth.argmax())
    mean, unit = (np.asarray(artifact.scales[key], dtype=np.float64) for key in ("mean", "std"))
    moved = _movements(preference, contract, state.astype(np.float64), mean, unit, preferred, rival)
    kind = str(lineage.get("kind", ""))
    return Explanation(
        contract=contract,
        legal=legal,
        probabilities=probabilities,
        logging=softmax_over_legal(logits, legal[None])[0],
        values=values[0],
        weights=weights,
        share=float(decision["rollout_share"]),
        exploration=float(decision["exploration"]),
        preferred=preferred,
        rival=rival,
        average=int(preference(mean[None].astype(np.float32))[0].argmax()),
        budget=not imitates and int(np.where(legal, q[0], -np.inf).argmax()) != preferred,
        cautious=bool(lineage.get("alpha")) or kind.startswith("iql") or "ensemble" in kind,
        rule=(rule or ONLY_LEGAL_ACTION) if rival is None else "",
        movements=moved[0],
        unattributed=moved[1],
    )


def _movements(
    preference: Callable[[NDArray[np.float32]], Floats],
    contract: Contract,
    state: Floats,
    mean: Floats,
    unit: Floats,
    preferred: int,
    rival: int | None,
) -> tuple[tuple[Movement, ...], float]:
    """Every feature that moved the preference over the rival, and the share of the movement that none accounts for."""
    if rival is None:
        return (), 0.0

    def margin(states: NDArray[np.float32]) -> Floats:
        of = preference(states)
        found: Floats = of[:, preferred] - of[:, rival]
        return found

    found = integrated_gradients(margin, state, mean, unit)
    groups: dict[str, list[int]] = {}
    for place, name in enumerate(contract.features):
        groups.setdefault(_group(name, contract.features), []).append(place)
    parts = {name: float(found.parts[places].sum()) for name, places in groups.items()}
    whole = sum(abs(part) for part in parts.values()) + abs(found.residual)
    movements = []
    for name in sorted(parts, key=lambda name: -abs(parts[name])):
        if parts[name] == 0:
            continue
        columns = tuple(contract.features[place] for place in groups[name])
        here = dict(zip(columns, state[groups[name]].tolist(), strict=True))
        usual = dict(zip(columns, mean[groups[name]].tolist(), strict=True))
        feature, said, average = _described(name, here, usual)
        towards = contract.actions[preferred if parts[name] > 0 else rival]
        movements.append(Movement(feature, columns, said, average, towards, abs(parts[name]) / whole))
    return tuple(movements), abs(found.residual) / whole if whole else 0.0


# Columns that say one thing together, and how a person would say it.


def _group(name: str, names: Sequence[str]) -> str:
    """What a column is a part of: `topic=` of topic=news, `hour` of hour_sin, hours_since_visit of visit_never."""
    if "=" in name:
        return name.partition("=")[0] + "="
    stem, _, last = name.rpartition("_")
    if last in ("sin", "cos") and {f"{stem}_sin", f"{stem}_cos"} <= set(names):
        return stem
    if last == "never" and f"hours_since_{stem}" in names:
        return f"hours_since_{stem}"
    return name


def _described(name: str, here: Mapping[str, float], usual: Mapping[str, float]) -> tuple[str, str, str]:
    """(feature, value here, average) in words; `here` and `usual` hold the columns of group `name`."""
    if name not in here and name.endswith("="):
        most = max(usual, key=lambda column: usual[column])
        known = [column.removeprefix(name) for column, value in here.items() if value == 1]
        said = "unknown" if any(map(math.isnan, here.values())) else known[0] if known else "another"
        return _label(name[:-1]), said, f"{most.removeprefix(name)}, {percent(usual[most])}"
    if name not in here:
        (sine, cosine), (usual_sine, usual_cosine) = (
            (columns[f"{name}_sin"], columns[f"{name}_cos"]) for columns in (here, usual)
        )
        regular = math.hypot(usual_sine, usual_cosine) >= REGULAR
        return (
            CYCLES.get(name, _label(name)),
            _moment(name, sine, cosine),
            _moment(name, usual_sine, usual_cosine) if regular else "",
        )
    if name in FLAGS or name.endswith("_never"):
        said = "unknown" if math.isnan(here[name]) else "yes" if here[name] else "no"
        return _label(name), said, f"{percent(usual[name])} yes"
    unit = " h" if name.startswith("hours_") else ""
    said = "unknown" if math.isnan(here[name]) else number(here[name]) + unit
    if any(column.endswith("_never") and value == 1 for column, value in here.items()):
        said = "never"
    return _label(name), said, number(usual[name]) + unit


def _label(name: str) -> str:
    return re.sub(r"_(\d+)([hd])$", r" in \1 \2", name).replace("_", " ")


def _moment(name: str, sine: float, cosine: float) -> str:
    if math.isnan(sine) or math.isnan(cosine):
        return "unknown"
    turn = math.atan2(sine, cosine) / (2 * math.pi) % 1
    if name == "hour":
        hours, minutes = divmod(round(turn * 1440) % 1440, 60)
        return f"{hours:02d}:{minutes:02d}"
    return DAYS[round(turn * 7) % 7] if name == "weekday" else f"{percent(turn)} of its cycle"


def number(value: float, sign: bool = False) -> str:
    """Three significant digits, four decimals at most, no trailing zeros; a zero carries no sign."""
    size = abs(value)
    decimals = 4 if size < 0.01 else max(2 - math.floor(math.log10(size)), 0)
    rounded = round(value, decimals) + 0.0
    text = f"{rounded:{'+' if sign and rounded else ''},.{decimals}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def percent(share: float) -> str:
    """A share as whole per cent, with a decimal near 0 and near 1, so that neither reads as never or always."""
    if 0 < share < 0.001:
        return "under 0.1%"
    if 0.999 < share < 1:
        return "over 99.9%"
    return f"{100 * share:.{int(0 < share < 0.0095 or 0.9905 < share < 1)}f}%"


# In words.


def in_words(found: Explanation) -> list[str]:
    """Sentences for a person: what is done and how often, what each action is worth, what tips it, what moved it."""
    return [*_acting(found), *_worth(found), *_moved(found)]


def movement_in_words(movement: Movement) -> str:
    """One feature: its value, the average, and where it moves the choice."""
    average = f" (average: {movement.average})" if movement.average else ""
    share = f"{percent(movement.share)} of the movement"
    return f"{movement.feature} is {movement.here}{average}: towards {movement.towards}, {share}"


def _acting(found: Explanation) -> list[str]:
    names = found.contract.actions
    preferred = names[found.preferred]
    if found.rival is None:
        why = RULES.get(found.rule, "the log or a configured limit allowed nothing else")
        return [f"Only {preferred} is legal here: {why}. There is nothing to choose."]
    by_chance = np.argsort(-found.probabilities, kind="stable")
    likely = int(by_chance[0])
    shares = [f"{names[a]} in {percent(found.probabilities[a])}" for a in by_chance if found.legal[a]]
    said = [f"The policy chooses {shares[0]} of such decisions, {', '.join(shares[1:])}."]
    if found.share == 0:
        said.append("It imitates the logging policy.")
    elif found.share < 1:
        logged = int(found.logging.argmax())
        said.append(
            f"{percent(found.share)} of decisions are the learned policy's own, which prefers {preferred} here; the "
            f"others follow the logging policy, which chooses {names[logged]} in {percent(found.logging[logged])}."
        )
        if likely != found.preferred:
            said.append(f"The logging policy's part decides: it makes {names[likely]} the likelier.")
    elif found.exploration:
        said.append(f"It prefers {preferred}; the rest is chance, so that the next log can tell what else would do.")
    if found.budget:
        said.append("The limit on volume decides: without it the policy would prefer another action.")
    return said


def _worth(found: Explanation) -> list[str]:
    if found.pair is None:
        return []
    contract, (of, against) = found.contract, found.pair
    parts = [
        f"{number(found.difference[k], sign=True)} {contract.units.get(name, name)} (× {number(found.weights[k])})"
        for k, name in enumerate(contract.rewards)
        if found.weights[k]
    ]
    total = float(found.weighted.sum())
    said = [
        f"Compared with {contract.actions[against]}, {contract.actions[of]} is worth {', '.join(parts)}: "
        f"{number(total, sign=True)} in all."
    ]
    if found.tips is None:
        return [*said, "By these values neither is better."]
    better = contract.actions[of if total > 0 else against]
    against_it = math.copysign(1, total) * found.weighted
    but = f", against {contract.rewards[int(against_it.argmin())]}" if against_it.min() < 0 else ""
    if found.agrees and found.share == 0:
        return [
            *said,
            f"That speaks for {better} too, most of all {found.tips}{but}, though the policy weighs nothing.",
        ]
    if found.agrees:
        return [*said, f"That speaks for {better}: what tips it is {found.tips}{but}."]
    return [
        *said,
        f"That speaks for {better}, most of all {found.tips}{but}; but the policy prefers "
        f"{contract.actions[found.preferred]}: {_why_not(found)}.",
    ]


def _why_not(found: Explanation) -> str:
    """Why the policy does not prefer what the values speak for, which is the rival."""
    assert found.rival is not None
    rival, preferred = (found.contract.actions[a] for a in (found.rival, found.preferred))
    logged = found.logging[found.rival]
    if found.share == 0:
        return "it does as the log did"
    if found.budget:
        return "the limit on volume makes a send dear"
    if not found.cautious or logged >= found.logging[found.preferred]:
        return "values and preference are two estimates of one log, and here they differ"
    often = f"rarely chose {rival}" if logged < RARELY else f"chose {rival} less often than {preferred}"
    return f"it is cautious here, since the log {often} ({percent(logged)} of such decisions)"


def _moved(found: Explanation) -> list[str]:
    if found.rival is None:
        return []
    average, preferred = (found.contract.actions[a] for a in (found.average, found.preferred))
    start = f"For the average user it would prefer {average}{' too' if average == preferred else ''}."
    if not found.movements:
        return [start, "Nothing that it reads of this user moves the choice from there."]
    told = [movement_in_words(each) + "." for each in found.movements[:SHOWN]]
    left = (
        [f"{percent(found.unattributed)} of the movement could not be attributed."]
        if found.unattributed > TOLERANCE
        else []
    )
    return [f"{start} What moves it from there, most first:", *told, *left]
