"""Send where it brings the next visit nearer: an accelerated-failure-time model of the time to it.

With T the time from a decision to the user's next visit, x the standardised state and 1_a whether send action a went
out,

    ln T = b_0 + b.x + sum_a 1_a (d_a + g_a.x) + s W,

W extreme-value (T is Weibull) or normal (T is log-normal), whichever has the lower AIC. The relative uplift of a send
is

    U(x, a) = (P(T <= h | x, a) - P(T <= h | x, hold)) / P(T <= h | x, hold),  h the horizon,

and the policy sends the legal action of largest U where that exceeds tau. Sources: Yuan, Zhang, Chatterjee, Yu and
Rosales 2019, "A State Transition Model for Mobile Notifications via Survival Analysis" (arXiv 2207.03099), for the
Weibull model with a log-linear scale; United States patent 11,238,358, claims 1 and 3, for the rule that compares the
probabilities of a visit within a window with and without a send against a threshold.
"""

import warnings
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_ndtr
from threadpoolctl import threadpool_limits

from models.columns import MICROSECONDS_PER_DAY
from models.contract import SPLITS
from models.errors import InputError
from models.table import Transitions
from policies.base import Booleans, Floats, Integers
from policies.baselines.design import LEAST_ROWS, Design, crossed
from policies.baselines.volume import DIGITS, UNTRIED, Cut, check_hold, choice, cut_on_validation, rows_of
from policies.shuffle import shuffled

HORIZON_DAYS = 1.0
"""Within which a visit counts."""
MOST_ROWS = 20_000
"""Training decisions a fit takes, of whole users drawn by the seed: more cost more time than they add precision."""
PENALTY = 1e-3
"""lifelines' L2 penalizer: keeps features that repeat each other from running off to opposite ends."""
INSTANT = 1e-6
"""Days: the least lower end of an interval, since the logarithm of 0 has no slope."""
FAMILIES = {"weibull": ("lambda_", "rho_"), "log_normal": ("mu_", "sigma_")}
"""Names lifelines gives the parameters."""


@dataclass(frozen=True)
class VisitModel:
    """ln T by state and action; see the head of this file."""

    family: str
    """A key of FAMILIES."""
    design: Design
    tried: Integers
    """Send actions that training took often enough."""
    actions: int
    intercept: float
    coefficient: Floats
    """[D + E + E D] b, d and g in the order of `crossed`."""
    scale: float
    """s: 1 / rho of the Weibull, sigma of the log-normal."""

    def log_probability(self, state: NDArray[Any], action: int, days: float) -> Floats:
        """[N] ln P(T <= days | s, action)."""
        known = self.design(state)
        inputs = crossed(known, np.full(len(known), action), self.tried)
        z = (np.log(days) - self.intercept - inputs @ self.coefficient) / self.scale
        if self.family == "log_normal":
            return np.asarray(log_ndtr(z), dtype=np.float64)
        # ln(1 - exp(-e^z)), which is z where e^z is small.
        hazard = np.exp(np.minimum(z, 50.0))
        found: Floats = np.where(z < -30, z, np.log(-np.expm1(-np.maximum(hazard, 1e-300))))
        return found

    def uplift(self, state: NDArray[Any], days: float) -> Floats:
        """[N, A] relative uplift U of every action over `hold`, 0 for `hold`, UNTRIED where no model could say."""
        found: Floats = np.full((len(state), self.actions), UNTRIED)
        held = self.log_probability(state, 0, days)
        found[:, 0] = 0.0
        for each in self.tried:
            # Beyond e^50 it is large enough, and finite.
            ratio = np.minimum(self.log_probability(state, each, days) - held, 50.0)
            found[:, each] = np.round(np.expm1(ratio), DIGITS)
        return found


@dataclass(frozen=True)
class SurvivalUplift:
    """Sends where the relative uplift in the probability of a visit within the horizon exceeds tau."""

    model: VisitModel
    horizon_days: float
    cut: Cut
    facts: dict[str, Any]
    name: str = "survival_uplift"
    learned: bool = True

    def action_probabilities(self, state: NDArray[np.float32], legal: Booleans) -> Floats:
        """[N, A] one on the legal send of highest uplift where that exceeds tau, else on `hold`."""
        return self.cut.probabilities(self.model.uplift(state, self.horizon_days), legal)


def fit_survival_uplift(
    table: Transitions, seed: int = 0, send_rate: float | None = None, horizon_days: float = HORIZON_DAYS
) -> SurvivalUplift:
    """The model of the training split and the tau that meets the log's volume on the validation split.

    Fitted by `lifelines` on the interval-censored times of `next_visit`, over training decisions with a choice outside
    the warm-up, at most MOST_ROWS of them in whole users drawn by `seed`. By default tau makes the policy send as often
    as the log on the validation rows; `send_rate` is a share of the decisions with a choice instead. One thread.

    Raises InputError where the log has no `hold` or no reward component `visits`, the horizon is not positive, `hold`
    or every send was taken fewer than LEAST_ROWS times, no visit followed, the fit did not converge, and as
    `cut_on_validation`.
    """
    name = SurvivalUplift.name
    check_hold(name, table.contract)
    if not horizon_days > 0:
        raise InputError(f"{name}: the horizon is {horizon_days} days; give more than 0.")
    if "visits" not in table.contract.rewards:
        raise InputError(
            f"{name}: the log has no reward component `visits` (it has {', '.join(table.contract.rewards)}); add it to "
            "rewards, or leave the baseline out of evaluate.baselines."
        )
    training = table.where(table.split == SPLITS.index("train"))
    lower, upper = next_visit(training)
    rows = rows_of(training, "train") & choice(training.legal)
    rows &= training.legal[np.arange(len(rows)), training.action]
    rows &= _drawn(training, rows, seed)
    tried = _tried(training.action[rows], len(table.contract.actions))
    rows &= np.isin(training.action, [0, *tried])
    design = Design.of(training.state[rows])
    inputs = crossed(design(training.state[rows]), training.action[rows], tried)
    visited = int(np.isfinite(upper[rows]).sum())
    if not visited:
        raise InputError(f"{name}: no visit followed any of {int(rows.sum())} training decisions; use a longer log.")
    with threadpool_limits(limits=1):
        family, values, aic = _fit(inputs, lower[rows], upper[rows], visited)
        model = VisitModel(family, design, tried, len(table.contract.actions), values[0], values[1:-1], values[-1])
        cut, rate = cut_on_validation(table, partial(model.uplift, days=horizon_days), name, send_rate)
    facts = {
        "distribution": family,
        # At the mean state: below 1 the next visit comes sooner.
        "time_ratio": {
            table.contract.actions[each]: float(np.exp(effect))
            for each, effect in zip(tried, model.coefficient[len(design.spread) :], strict=False)
        },
        "aic": aic,
        "decisions": int(rows.sum()),
        "visited": visited,
        "horizon_days": horizon_days,
        "threshold": cut.threshold,
        "send_rate": rate,
    }
    return SurvivalUplift(model, horizon_days, cut, facts)


def next_visit(table: Transitions) -> tuple[Floats, Floats]:
    """[N], [N] days (lower, upper] in which the next visit after each decision lies.

    That is the interval (t_j, e_j] of the first row j >= k with a visit. Upper is infinite, and lower the last moment
    watched, where the log ends before a visit, or another send comes first: from then on the user is in another state.
    """
    visits = table.reward[:, table.contract.rewards.index("visits")] > 0
    after = table.next_row
    sent_after = (after >= 0) & (table.action[after] > 0)
    stops = visits | (after < 0) | sent_after
    n = len(stops)
    at = np.minimum.accumulate(np.where(stops, np.arange(n), n)[::-1])[::-1]
    since = (table.decided_at[at] - table.decided_at) / MICROSECONDS_PER_DAY
    end = since + table.elapsed_days[at]
    lower = np.maximum(np.where(visits[at], since, end), INSTANT)
    upper = np.where(visits[at], np.maximum(end, lower + INSTANT), np.inf)
    return lower, upper


def _drawn(table: Transitions, rows: Booleans, seed: int) -> Booleans:
    """[N] rows of the users drawn, as many as have MOST_ROWS of `rows` between them, and one at least."""
    order = shuffled(table.user_id, seed)
    held = np.cumsum(np.bincount(table.user[rows], minlength=len(order))[order])
    drawn = order[: max(int(np.searchsorted(held, MOST_ROWS, side="right")), 1)]
    found: Booleans = np.isin(table.user, drawn)
    return found


def _tried(action: Integers, actions: int) -> Integers:
    taken = np.bincount(action, minlength=actions)
    tried: Integers = np.flatnonzero(taken >= LEAST_ROWS)
    if len(tried) < 2 or tried[0] != 0:
        raise InputError(
            f"{SurvivalUplift.name}: of {len(action)} training decisions with a choice {int(taken[0])} were holds and "
            f"{int(taken[1:].max(initial=0))} the commonest send; {LEAST_ROWS} of both are needed: use a longer log."
        )
    return tried[1:]


def _fit(inputs: Floats, lower: Floats, upper: Floats, visited: int) -> tuple[str, Floats, dict[str, float]]:
    """Family of lowest AIC, its (b_0, coefficients, s), and the AIC of every family that converged."""
    # A second to import, and every command reads the configuration, which names the baselines.
    import pandas as pd
    from lifelines import LogNormalAFTFitter, WeibullAFTFitter
    from lifelines.exceptions import ConvergenceError

    columns = [f"x{i}" for i in range(inputs.shape[1])]
    frame = pd.DataFrame(inputs, columns=columns).assign(lower=lower, upper=upper)
    fitters = {
        "weibull": WeibullAFTFitter(penalizer=PENALTY),
        "log_normal": LogNormalAFTFitter(penalizer=PENALTY),
    }
    aic, values, why = {}, {}, ""
    for family, fitter in fitters.items():
        place, spread = FAMILIES[family]
        try:
            with warnings.catch_warnings():
                # Of its standard errors, which nobody reads.
                warnings.simplefilter("ignore")
                fitter.fit_interval_censoring(frame, "lower", "upper")
        except (ConvergenceError, ValueError, np.linalg.LinAlgError) as error:
            why = str(error).strip().splitlines()[0]
            continue
        scale = np.exp(fitter.params_[spread]["Intercept"])
        scale = 1 / scale if family == "weibull" else scale
        found = fitter.params_[place]
        values[family] = np.array([found["Intercept"], *found[columns], scale])
        aic[family] = float(fitter.AIC_)
    if not aic:
        raise InputError(
            f"{SurvivalUplift.name}: the time to the next visit could not be fitted on {len(inputs)} training "
            f"decisions, {visited} of them with a visit after them ({why}); leave features out that repeat each other, "
            "use a longer log, or leave the baseline out of evaluate.baselines."
        )
    best = min(aic, key=lambda each: aic[each])
    return best, values[best], aic
