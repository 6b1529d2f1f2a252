"""How many users and days an experiment needs, from the log's own variance."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import ndtri

from models.errors import InputError
from policies.abtest.config import AbtestConfig
from policies.abtest.effects import NO_BEFORE, ROUNDING, ratio
from policies.abtest.sequential import AlwaysValid, boundaries, drift_for, spent
from policies.abtest.users import Users
from policies.base import Floats, Integers

DAILY = 20
"""Looks that always-valid monitoring is planned for; its power hardly changes with more."""


@dataclass(frozen=True)
class Spread:
    """What the log says of one metric: its value, and the variance of one user's influence on it."""

    value: float
    variance: float
    explained: float
    """rho^2: the share of the variance that the pre-period takes away."""
    information: tuple[float, ...]
    """[L] 1 / variance left at each cut-off."""

    @property
    def left(self) -> float:
        """Variance that is left: (1 - rho^2) times all."""
        return self.variance * (1 - self.explained)


def spread(users: Users, metric: str) -> Spread:
    """Value, variance (delta method) and what CUPED takes of it, of one metric over all users at the last cut-off.

    Raises InputError as `Users.measure`, and where every user has the same value or the value is 0: no effect can be
    stated relative to it, and no number of users finds one.
    """
    measures = [users.measure(metric, number) for number in range(users.weeks.shape[1])]
    _, past = ratio(measures[-1].top_before, measures[-1].bottom_before)
    found = []
    for each in measures:
        value, influence = ratio(each.top, each.bottom)
        variance = float(influence.var(ddof=1)) if len(influence) > 1 else 0.0
        known = variance > 0 and past.var() > 0
        found.append((value, variance, float(np.corrcoef(influence, past)[0, 1] ** 2) if known else 0.0))
    value, variance, explained = found[-1]
    if not variance > (ROUNDING * value) ** 2 or value == 0:
        what = "is 0" if value == 0 else "is the same for every user, or nothing it is divided by happened"
        raise InputError(
            f"abtest.metrics: {metric} {what} in the log ({len(users)} users); there is nothing to detect, name "
            "another metric."
        )
    information = tuple(1 / (v * (1 - e)) if v > 0 else 0.0 for _, v, e in found)
    return Spread(value, variance, explained, information)


def drift_needed(config: AbtestConfig, alpha: float, information: tuple[float, ...]) -> float:
    """The mean of z at the planned end with which an effect is found, at any look until then, with the planned power.

    A single look needs z_{1-alpha/2} + z_power; more looks need more. `information` [L] is used for planned looks.
    """
    if config.method == "always_valid":
        fraction = tuple(np.arange(1, DAILY + 1) / DAILY)
        bounds = [AlwaysValid(each, config.alpha / config.tests).bound(alpha) for each in fraction]
        return drift_for(bounds, fraction, config.power)
    time = np.array(config.looks) / config.looks[-1]
    scale = tuple(time) if len(information) != len(time) or not (np.diff(information) > 0).all() else information
    return drift_for(list(boundaries(scale, list(spent(config.spending, alpha, list(time))))), scale, config.power)


def plan(users: Users, arrivals: Integers, config: AbtestConfig) -> dict[str, Any]:
    """Users and days for every metric, plain for JSON; the experiment needs the most that any metric asks for.

    n = drift^2 sigma^2 (1 - rho^2) (1 / p_0 + 1 / p_1) / (effect |R|)^2 in all arms together, p the smallest shares
    compared, drift from `drift_needed` (2.80 for one look, alpha 0.05, power 0.8). Goals share alpha (the first step of
    Holm, the hardest); a guardrail is planned to be shown within its margin where nothing changed. `users` are those of
    the log that would enrol, `arrivals` [D] how many users it saw for the first time on each of its days.

    Raises InputError as `spread`.
    """
    control, treatment = config.shares[0], min(config.shares[1:])
    metrics: dict[str, Any] = {}
    for name, metric in config.metrics.items():
        found = spread(users, name)
        goal = metric.effect is not None
        alpha = config.alpha / config.tests if goal else config.alpha
        drift = drift_needed(config, alpha, found.information)
        size = metric.effect if metric.effect is not None else metric.margin
        # Standard error of the relative difference with one user in all.
        error = float(np.sqrt(found.left * (1 / control + 1 / treatment))) / abs(found.value)
        needed = int(np.ceil((drift * error / (size or np.nan)) ** 2))
        metrics[name] = {
            "role": "goal" if goal else "guardrail",
            "value": found.value,
            "standard_deviation": float(np.sqrt(found.variance)),
            "explained": found.explained,
            "effect" if goal else "margin": size,
            "alpha": alpha,
            "users": needed,
            "detectable": drift * error / float(np.sqrt(len(users))),
            "inflation": float((drift / (ndtri(1 - alpha / 2) + ndtri(config.power))) ** 2),
            "days": _days(needed, len(users), arrivals, config),
        }
    worst = max(metrics, key=lambda name: int(metrics[name]["users"]))
    needed = metrics[worst]["users"]
    return {
        "method": config.method,
        "alpha": config.alpha,
        "power": config.power,
        "tests": config.tests,
        "horizon_days": config.horizon_days,
        "metrics": metrics,
        "decided_by": worst,
        "users": needed,
        "users_by_arm": {arm: int(np.ceil(needed * p)) for arm, p in zip(config.arms, config.shares, strict=True)},
        "days": metrics[worst]["days"],
        "exist": len(users),
        "without_cuped": _without_cuped(users, config),
    }


def _without_cuped(users: Users, config: AbtestConfig) -> str | None:
    """Why the plan counts on no pre-period; None where it does."""
    if config.pre_days == 0:
        return "pre_days is 0"
    return None if users.weeks_before.sum() > 0 else NO_BEFORE


def _days(needed: int, exist: int, arrivals: Integers, config: AbtestConfig) -> int | None:
    """Days from the start to the reading; None where the users never come.

    Where users enrol as they come, until the last of them has had the window; where all enrol at once, the last look.
    """
    if config.method == "looks":
        return int(np.ceil(config.looks[-1])) if needed <= exist else None
    enrolling = days_to_enrol(needed, arrivals, config.users_per_day)
    return None if enrolling is None else enrolling + int(np.ceil(config.window_days))


def days_to_enrol(needed: int, arrivals: Integers, users_per_day: float | None) -> int | None:
    """Days until `needed` users have come: at a given rate, or as in the log and then as in its last week."""
    if users_per_day is not None:
        return int(np.ceil(needed / users_per_day))
    total: Floats = np.cumsum(arrivals).astype(np.float64)
    if needed <= total[-1]:
        return int(np.searchsorted(total, needed)) + 1
    rate = float(np.mean(arrivals[-7:]))
    return None if rate == 0 else len(arrivals) + int(np.ceil((needed - total[-1]) / rate))
