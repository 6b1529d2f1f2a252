"""What off-policy evaluation had predicted, beside what the experiment found."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.special import ndtr, ndtri

from models.errors import InputError
from policies.abtest.config import AbtestConfig
from policies.abtest.read import holm


def against_prediction(
    reading: Mapping[str, Any], evaluation: Mapping[str, Any], estimator: str, config: AbtestConfig
) -> dict[str, Any]:
    """Each metric's predicted difference V(pi) - V(mu) and the one that was read, with z of their difference.

    z = (read - predicted) / sqrt(se_read^2 + se_predicted^2); the predicted error is the width of its interval over
    that of a normal one. `agrees` where p (Holm, over the metrics of a treatment) is above alpha. The control is taken
    for the logging policy that was evaluated. `left_out` says why, where there is nothing to compare.

    Raises InputError where `predicted` names a policy that was not evaluated.
    """
    known = evaluation["policies"]
    for policy in config.predicted.values():
        if policy not in known:
            raise InputError(f"abtest.predicted: {policy!r} was not evaluated; found {', '.join(known)}.")
    if evaluation["per"] != "week":
        return {"left_out": "evaluation was per decision, the experiment is read per user-week", "rows": []}
    rows, missing = [], []
    for arm, comparison in reading["comparisons"].items():
        policy = config.predicted.get(arm, arm)
        found = known.get(policy, {"estimates": {}})["estimates"].get(estimator)
        if found is None:
            missing.append(policy)
            continue
        mine = [
            {"treatment": arm, "policy": policy, "trusted": known[policy]["trusted"], **row}
            for name, figures in comparison["metrics"].items()
            if (row := _row(name, figures, found.get(name), evaluation["confidence"]))
        ]
        for row, p in zip(mine, holm([row["p"] for row in mine]), strict=True):
            row |= {"p_holm": float(p), "agrees": bool(p > config.alpha)}
        rows += mine
    why = f"not evaluated by {estimator}: {', '.join(missing)}" if missing else None
    return {"left_out": why, "estimator": estimator, "rows": rows}


def _row(
    name: str, figures: Mapping[str, Any], found: Mapping[str, Any] | None, confidence: float
) -> dict[str, Any] | None:
    predicted = None if found is None else found["difference"]
    read = figures["difference"]
    if read is None or predicted is None or None in (predicted["estimate"], predicted["low"], predicted["high"]):
        return None
    error = (predicted["high"] - predicted["low"]) / (2 * float(ndtri((1 + confidence) / 2)))
    z = (read["estimate"] - predicted["estimate"]) / float(np.hypot(read["standard_error"], error))
    return {
        "metric": name,
        "predicted": {key: predicted[key] for key in ("estimate", "low", "high")},
        "read": dict(read),
        "z": z,
        "p": float(2 * ndtr(-abs(z))),
    }
