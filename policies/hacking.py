"""Reward hacking watch: does a policy go where its learned reward was not learned, and do learned and written part?

A learned reward is a guess that holds near the rows raters saw. A policy that is trained on it may find where it is
wrong (Amodei et al. 2016, "Concrete problems in AI safety", section 4; Gao, Schulman and Hilton 2023, "Scaling laws for
reward model overoptimization", measure the distance by KL). Two things are looked at, and warned of, never refused:

- distance: with rho = pi(a|s) / mu(a|s) at the choices of the log, chi2 = mean(rho^2) / mean(rho)^2 - 1, so that the
  effective sample size is n / (1 + chi2); kl = mean(rho log rho) / mean(rho) - log mean(rho), both of one decision, the
  states being the log's; and the share of the policy's actions, over those states, that lie outside the box of the rows
  that the reward was learned from (models/rewards/support.py);
- side by side: what the policy gains over logging in the learned reward and in what was written by hand, each by the
  gate's estimator, with the gate's bounds.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from models.rewards.support import Support
from models.table import Transitions
from policies.base import Booleans, Policy, checked_probabilities
from policies.checks import Check
from policies.rules import GateConfig

WRITTEN = "written"
"""Name of the hand-written weighted return."""
KEYS = ("estimate", "gate_low", "gate_high")


def distance(table: Transitions, policy: Policy, rows: Booleans, support: Support | None) -> dict[str, Any]:
    """How far `policy` lies from the log, over those of `rows` [N] with a choice; `outside` is null without a support.

    {decisions, ess, chi2, kl, outside, learned_rows}; null where there is no choice with a known propensity. Where the
    policy takes none of the logged actions the effective sample size is 0, and chi2 and kl, without bounds, are null.
    """
    logged = np.arange(len(table.action)), table.action
    choice = rows & (table.legal.sum(axis=1) > 1) & table.legal[logged] & (table.propensity > 0)
    part = table.where(choice)
    number = len(part.user)
    found: dict[str, Any] = {"decisions": number, "ess": None, "chi2": None, "kl": None, "outside": None}
    found["learned_rows"] = None if support is None else support.rows
    if not number:
        return found
    chosen = checked_probabilities(policy, part.state, part.legal)
    ratio = chosen[np.arange(number), part.action] / part.propensity
    found["ess"] = 0.0
    if ratio.any():
        mean = float(ratio.mean())
        chi2 = float((ratio**2).mean()) / mean**2 - 1
        told = ratio[ratio > 0]
        kl = float((told * np.log(told)).sum()) / number / mean - float(np.log(mean))
        found |= {"ess": number / (1 + chi2), "chi2": chi2, "kl": kl}
    if support is not None:
        found["outside"] = float((chosen * support.outside(part)).sum() / number)
    return found


def side_by_side(
    name: str, policy: Mapping[str, Any], config: GateConfig, learned: Mapping[str, Any]
) -> dict[str, Any]:
    """Gains over logging, more being better: {learned, hand_written: {metric: ...}}, each {estimate, low, high}.

    Per user-week or decision, in raw units, with the gate's one-sided bounds. Of what is written by hand those metrics
    that [gate.metrics] gives a direction and, where it was evaluated, the weighted return; `learned` names all learned
    rewards, which are not written by hand.
    """
    estimates, returns = policy["estimates"][config.estimator], policy.get("returns", {})
    mine = returns[name] if name in returns else estimates.get(name, {}).get("difference", {})
    written = {
        metric: _gain(estimates[metric]["difference"], guarded.direction == "up")
        for metric, guarded in config.metrics.items()
        if metric not in learned
    }
    if WRITTEN in returns:
        written[WRITTEN] = _gain(returns[WRITTEN], True)
    return {"learned": _gain(mine, True), "hand_written": written}


def _gain(difference: Mapping[str, Any], up: bool) -> dict[str, float | None]:
    """A difference from logging, turned where less is better."""
    estimate, low, high = (difference.get(key) for key in KEYS)
    if not up:
        estimate, low, high = (None if value is None else -value for value in (estimate, high, low))
    return {"estimate": estimate, "low": low, "high": high}


def watched(evaluation: Mapping[str, Any], config: GateConfig) -> dict[str, Any]:
    """Of each learned reward in `evaluation["learned_rewards"]`: what was evaluated, and the two sides of the gain."""
    learned = evaluation.get("learned_rewards", {})
    policy = evaluation["policies"][config.candidate]
    return {name: {**told, **side_by_side(name, policy, config, learned)} for name, told in learned.items()}


def warnings(name: str, told: Mapping[str, Any], config: GateConfig) -> list[Check]:
    """Whether the sides part, and whether the policy is far from where the reward was learned; from `watched`."""
    return [*_parted(name, told), *_far(name, told["distance"], config)]


def _parted(name: str, told: Mapping[str, Any]) -> list[Check]:
    low = told["learned"]["low"]
    lost = {key: gain["high"] for key, gain in told["hand_written"].items() if gain["high"] is not None}
    lost = {key: high for key, high in lost.items() if high < 0}
    if low is None or low <= 0 or not lost:
        return []
    losses = ", ".join(f"{_called(key)} loses {-high:.4g} or more" for key, high in lost.items())
    reason = (
        f"learned:{name}: the candidate gains {low:.4g} or more of this learned reward while {losses}. It may "
        "have found where the reward is wrong: ask raters about weeks of its own (`tactful rewards ask`) before it is "
        "rolled out."
    )
    return [Check(f"learned:{name}", False, {"learned": low, **lost}, "both gain, or neither is shown to lose", reason)]


def _far(name: str, distance: Mapping[str, Any], config: GateConfig) -> list[Check]:
    outside, decisions = distance["outside"], distance["decisions"]
    share = distance["ess"] / decisions if distance["ess"] is not None else None
    words = []
    if outside is not None and outside > config.max_outside:
        words.append(
            f"{outside:.1%} of its choices lie outside the range of the {distance['learned_rows']:,} rows that the "
            f"reward was learned from (more than {config.max_outside:.1%})"
        )
    if share is not None and share < config.min_overlap:
        words.append(
            f"the log's {decisions:,} choices are worth {share:.1%} of their number to it (less than "
            f"{config.min_overlap:.1%}; {_measured(distance)})"
        )
    if not words:
        return []
    reason = (
        f"learned:{name}: the candidate is far from what this reward was learned on: {', and '.join(words)}. Ask "
        "raters about weeks of its own, or let it stay nearer to the log (a smaller policy.rollout_share or a larger "
        "alpha)."
    )
    needed = f"at most {config.max_outside:.1%} outside and an overlap of {config.min_overlap:.1%}"
    return [Check(f"learned:{name}:distance", False, {"outside": outside, "overlap": share}, needed, reason)]


def _measured(distance: Mapping[str, Any]) -> str:
    if distance["chi2"] is None:
        return "it takes none of the actions that were logged"
    return f"chi-square {distance['chi2']:.3g}, KL {distance['kl']:.3g} a decision"


def _called(key: str) -> str:
    return "the hand-written return" if key == WRITTEN else key
