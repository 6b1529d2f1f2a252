"""How the two halves of the study compare: what each member is truly worth, and what the gate said of it."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from benchmarks.study.members import KINDS
from benchmarks.study.promotion import PROMOTE, VERDICTS
from benchmarks.study.truth import UTILITY, Truth, harmed, relative
from policies.rules import GuardedMetric

SURE = 1.959963984540054
"""Standard errors of a two-sided 95% interval."""
SILENT = -0.9
"""Change in volume below which a policy hardly acts any more."""


def beats(truth: Truth) -> bool:
    """Whether a policy's true utility w.V, per user-week, is above the logging policy's."""
    found = truth[UTILITY]["difference"]
    return found is not None and found > 0


def _distance(truth: Truth) -> float:
    """The true difference in utility in its standard errors."""
    difference, error = (truth[UTILITY][key] for key in ("difference", "difference_standard_error"))
    if difference is None or not error:
        return 0.0
    return difference / error


def compared(
    truth: Mapping[str, Truth], metrics: Mapping[str, GuardedMetric], verdicts: Mapping[str, Any]
) -> dict[str, Any]:
    """By half: how many beat the logging policy, how surely, how many of those harm nothing, and what the gate said.

    `beat`: utility above the logging policy's. `surely` and `surely_not`: by more than 1.96 standard errors.
    `silent`: it sends less than a tenth of what the logging policy does.
    `harmless`: it beats and no guarded metric is worse by more than its margin. `gain` and `gain_spread`: mean and
    standard deviation over members of the difference in utility, as a share of the logging policy's. `gate`: verdicts
    on each as the only try and as one of all, and how many of them were granted some rollout share.
    """
    found = {}
    for kind in KINDS:
        mine = {name: each for name, each in truth.items() if name.startswith(f"{kind}/")}
        gains = np.array([relative(each, UTILITY) for each in mine.values()])
        found[kind] = {
            "alive": len(mine),
            "beat": sum(beats(each) for each in mine.values()),
            "surely": sum(_distance(each) > SURE for each in mine.values()),
            "surely_not": sum(_distance(each) < -SURE for each in mine.values()),
            "harmless": sum(beats(each) and not harmed(each, metrics) for each in mine.values()),
            "silent": sum(relative(each, "sends") < SILENT for each in mine.values()),
            "gain": float(gains.mean()) if len(gains) else None,
            "gain_spread": float(gains.std(ddof=1)) if len(gains) > 1 else None,
            "gate": {
                key: _granted({name: (verdicts[name][key], mine[name]) for name in mine}, metrics)
                for key in ("alone", "among")
            },
        }
    return found


def _granted(pairs: Mapping[str, tuple[Any, Truth]], metrics: Mapping[str, GuardedMetric]) -> dict[str, Any]:
    counted = Counter(verdict["verdict"] for verdict, _ in pairs.values())
    promoted = [truth for verdict, truth in pairs.values() if verdict["verdict"] == PROMOTE]
    shares = [verdict["largest_share"] for verdict, _ in pairs.values() if verdict["largest_share"] is not None]
    return {
        **{verdict: counted[verdict] for verdict in VERDICTS},
        "promoted_harmful": sum(bool(harmed(truth, metrics)) for truth in promoted),
        "some_share": len(shares),
        "mean_share": float(np.mean(shares)) if shares else None,
    }
