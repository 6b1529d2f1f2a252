"""What the gate asks of a policy beyond its estimates: do the estimators agree, and is any part of the users harmed."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from policies.base import Booleans, Floats
from policies.ope.sensitivity import GAMMAS, bounds
from policies.ope.target import Target
from policies.rowset import CTR, Metrics, RowSet, quotient

CONSISTENT = ("ips", "pdis", "wpdis", "dr", "wdr")
"""Estimators that agree in the long run where propensities are right; IPS per decision only, PDIS per week only."""


def disagreement(estimates: Mapping[str, Metrics], logged: Metrics, by: str, per: str) -> dict[str, Any]:
    """How far the other consistent estimators lie from `by`: {estimator: {metric: {relative, se}}}.

    (V_other - V_by) / |V(mu)| and its standard error over the resamples, which both saw; metrics that the log cannot
    say are left out.
    """
    found: dict[str, Any] = {}
    for name in CONSISTENT:
        if name == by or name not in estimates or (name == "ips" and per == "week"):
            continue
        figures = {
            metric: spread(quotient(values - estimates[by][metric], np.abs(logged[metric])))
            for metric, values in estimates[name].items()
        }
        found[name] = {metric: {"relative": figure[0], "se": figure[1]} for metric, figure in figures.items() if figure}
    return found


def relative_difference(metrics: Metrics, logged: Metrics) -> dict[str, dict[str, float]]:
    """(V(pi) - V(mu)) / |V(mu)| of every metric that the log can say: {metric: {relative, se}}.

    Standard errors are over resamples, so that those of few users are rough.
    """
    figures = {m: spread(quotient(values - logged[m], np.abs(logged[m]))) for m, values in metrics.items()}
    return {m: {"relative": figure[0], "se": figure[1]} for m, figure in figures.items() if figure}


def confounding(whole: RowSet, estimated: Booleans, target: Target, logged: Metrics) -> dict[str, Any]:
    """Least and largest relative difference of every metric at each Gamma of `policies.ope.sensitivity`.

    `estimated` [N]: rows whose propensity is an estimate. {gamma: [...], metrics: {metric: {low, high}}}, of the log's
    own estimate by WPDIS, its sampling error left out. CTR has the extremes of both of its totals.
    """
    rows = whole.sample.rows
    found: dict[str, Any] = {"gamma": list(GAMMAS), "metrics": {}}
    ratio, guessed = whole.sample.ratios(target.ratio), estimated[rows] & ~whole.sample.closed
    low, high = bounds(whole.sample, ratio, guessed, GAMMAS)
    sides = {name: (low[:, c], high[:, c]) for c, name in enumerate(whole.components)}
    if {"clicks", "sends"} <= sides.keys():
        (least, most), (few, many) = sides["clicks"], sides["sends"]
        sides[CTR] = quotient(least, many), quotient(most, few)
    for name, (least, most) in sides.items():
        base = logged[name][0]
        if base and np.isfinite([least, most]).all():
            found["metrics"][name] = {
                "low": ((least - base) / abs(base)).tolist(),
                "high": ((most - base) / abs(base)).tolist(),
            }
    return found


def spread(values: Floats) -> tuple[float, float] | None:
    """(value in the log, standard deviation over the resamples) of `values` [R + 1]; None where the log cannot say."""
    clear = values[1:][np.isfinite(values[1:])]
    # A value that one resample in a hundred does not have is no value.
    if not np.isfinite(values[0]) or len(clear) < 0.99 * (len(values) - 1):
        return None
    return float(values[0]), float(clear.std(ddof=1))
