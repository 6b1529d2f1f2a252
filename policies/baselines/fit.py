"""All baselines that a log allows, by name."""

from collections.abc import Callable, Sequence
from typing import Any

from models.errors import InputError
from models.table import Transitions
from policies.baselines.clicks import ClickThreshold, fit_click_threshold
from policies.baselines.survival import SurvivalUplift, fit_survival_uplift
from policies.baselines.volume import Random, fit_random

Fitted = Random | ClickThreshold | SurvivalUplift

FITS: dict[str, Callable[[Transitions, int, float | None], Fitted]] = {
    Random.name: fit_random,
    ClickThreshold.name: fit_click_threshold,
    SurvivalUplift.name: fit_survival_uplift,
}
NAMES = tuple(FITS)


def fit_baselines(
    table: Transitions, names: Sequence[str] | None, seed: int, send_rate: float | None = None
) -> tuple[list[Fitted], dict[str, Any]]:
    """The baselines `names`, or all that the log allows where it is None; by name their facts, or why one is absent.

    Training and validation rows alone are read. Raises InputError where a baseline that was named cannot be fitted.
    """
    fitted: list[Fitted] = []
    found: dict[str, Any] = {}
    for name in NAMES if names is None else names:
        try:
            policy = FITS[name](table, seed, send_rate)
        except InputError as error:
            if names is not None:
                raise
            found[name] = {"left_out": str(error)}
            continue
        fitted.append(policy)
        found[name] = policy.facts
    return fitted, found
