"""Policies to compare with: those that learned nothing, and those a company would try before it learns from rewards."""

from policies.baselines.clicks import ClickThreshold, fit_click_threshold
from policies.baselines.fit import NAMES, fit_baselines
from policies.baselines.plain import Always, LoggingPolicy, Mixture, Never
from policies.baselines.survival import SurvivalUplift, fit_survival_uplift
from policies.baselines.volume import Random, fit_random

__all__ = [
    "NAMES",
    "Always",
    "ClickThreshold",
    "LoggingPolicy",
    "Mixture",
    "Never",
    "Random",
    "SurvivalUplift",
    "fit_baselines",
    "fit_click_threshold",
    "fit_random",
    "fit_survival_uplift",
]
