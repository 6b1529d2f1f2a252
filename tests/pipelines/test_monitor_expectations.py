"""What a night must hold: each alarm rings where it should, at its level, and the page says so and runs nothing."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.errors import InputError
from pipelines.etl.quality.expect import Validator
from pipelines.monitor import failures, judge_night
from pipelines.monitor.expectations import demands
from pipelines.monitor.page import render
from tests.pipelines.monitored import HOSTILE, ROWS, config_of, hostile_night, night, sums
from tests.pipelines.test_report import Tree, text_of

Change = Callable[[dict[str, Any]], None]


def broken(report: dict[str, Any], folder: Path) -> dict[str, str]:
    """Measure -> worst severity of the demands that a night does not meet, without Great Expectations."""
    measures, wanted = demands(report, config_of(folder))
    found: dict[str, str] = {}
    for one in wanted:
        value = measures[str(one.metric)]
        outside = (one.low is not None and value < one.low) or (one.high is not None and value > one.high)
        if outside and found.get(str(one.metric)) != "critical":
            found[str(one.metric)] = one.severity
    return found


def fate(name: str, share: float) -> Change:
    def change(report: dict[str, Any]) -> None:
        n = round(ROWS * share)
        report["rows"]["fates"][name] += n
        report["rows"]["fates"]["matched"] -= n

    return change


def at(path: str, value: Any) -> Change:
    def change(report: dict[str, Any]) -> None:
        *parents, leaf = path.split("/")
        for name in parents:
            report = report[name]
        report[leaf] = value

    return change


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        (lambda report: None, {}),
        (fate("never_logged", 0.01), {}),
        (fate("never_logged", 0.03), {"unlogged_share": "warning"}),
        (fate("late", 0.1), {"unlogged_share": "warning"}),
        (fate("never_logged", 0.3), {"unlogged_share": "critical"}),
        # What may still come is not lost.
        (fate("open", 0.9), {}),
        (at("agreement/otherwise", 50), {"otherwise_share": "warning"}),
        (at("agreement/otherwise", 500), {"otherwise_share": "critical"}),
        (at("agreement/propensity_missing", 50), {"propensity_share": "warning"}),
        (at("agreement/propensity_differs", 5000), {"propensity_share": "critical"}),
        (at("rows/logged_fates/decided_again", 200), {"decided_again_share": "critical"}),
        (at("rows/logged_fates/duplicate", 2000), {}),
        (at("rows/logged_fates/never_scored", 2000), {"never_scored_share": "warning"}),
        (at("rows/by_rule", {"policy": 9000, "missing_feature:x": 1000}), {"fallback_share": "warning"}),
        (at("rows/by_rule", {"missing_feature:x": ROWS}), {"fallback_share": "critical"}),
        (at("rows/by_rule", {"frozen": ROWS}), {"frozen_share": "warning"}),
        (at("manifest/candidates", ROWS + 1), {"scored_rows_missing": "critical"}),
        (at("manifest/budget_met", False), {"quota_missed": "warning"}),
        (at("manifest/model_stale", True), {"registry_unreachable": "warning"}),
        (at("model/window", ["2025-01-01", "2025-12-01"]), {"model_age_days": "warning"}),
        (at("draws/scored/push/whole", sums(ROWS, 2500, 0.2)), {"rate_scored:push": "critical"}),
        # Half of the sends were lost on the way; 10,000 draws at 0.2 have a standard deviation of 40.
        (at("draws/answered/push/whole", sums(ROWS, 1000, 0.2)), {"rate_answered:push": "critical"}),
        (at("draws/answered/push/whole", sums(ROWS, 1830, 0.2)), {"rate_answered:push": "warning"}),
        (at("draws/answered/push/whole", sums(ROWS, 1900, 0.2)), {}),
        (at("action_rate/push/expected", 0.27), {"rate_usual:push": "warning"}),
        (at("action_rate/push/expected", 0.6), {"rate_usual:push": "critical"}),
        (at("drift/features/relevance/psi", 0.15), {"psi:relevance": "warning"}),
        (at("drift/features/relevance/psi", 0.3), {"psi:relevance": "critical"}),
        (at("drift/features/sends_7d/psi", 0.9), {"psi:sends_7d": "warning"}),
        (at("drift/values/value_push_clicks/psi", 0.3), {"psi:value_push_clicks": "warning"}),
        (at("drift/values/value_push_clicks/psi", 2.0), {"psi:value_push_clicks": "critical"}),
        (at("drift/left_out", {"values": "no table"}), {"drift_unknown": "warning"}),
        (at("earned/metrics/clicks/difference/estimate", -0.3), {"earned_minus_predicted:clicks": "warning"}),
    ],
)
def test_each_alarm_rings_at_its_level_and_alone(change: Change, wanted: dict[str, str], tmp_path: Path) -> None:
    report = night()
    change(report)
    assert broken(report, tmp_path) == wanted


def test_noise_is_part_of_the_bounds(tmp_path: Path) -> None:
    """An index above the usual marks, of a night of a few users, is no alarm."""
    report = night()
    report["drift"]["features"]["relevance"] |= {"psi": 0.5, "noise": [0.6, 0.9]}
    assert broken(report, tmp_path) == {}


def test_calendar_features_and_short_windows_are_not_judged(tmp_path: Path) -> None:
    report = night()
    report["drift"]["features"]["relevance"] |= {"psi": 9.0, "judged": False}
    report["earned"] |= {"judged": False}
    report["earned"]["metrics"]["clicks"]["difference"]["estimate"] = -9.0
    report["action_rate"]["push"] |= {"expected": 0.9, "history": [0.2] * 6}
    assert broken(report, tmp_path) == {}


def test_great_expectations_find_the_same(tmp_path: Path) -> None:
    config, report = config_of(tmp_path), night()
    at("agreement/otherwise", 50)(report)
    at("drift/features/relevance/psi", 0.3)(report)
    found = judge_night(Validator(), config, report)
    assert not found["success"]
    assert {line.split()[0] for line in failures(found, "critical")} == {"psi:relevance"}
    assert {line.split()[0] for line in failures(found, "warning")} == {"psi:relevance", "otherwise_share"}
    assert "otherwise_share is 0.005 on 2026-02-01, expected at most 0.001" in failures(found, "warning")[0]
    assert (config.run_dir / "monitor" / "2026-02-01" / "expectations.json").exists()
    page = render({**report, "expectations": found})
    Tree(page)
    said = text_of(page)
    assert "Critical" in said
    assert "psi:relevance is 0.3" in said
    assert "adds up to the row" in said
    assert "1 August" not in said


def test_a_thousand_nights_on_which_nothing_is_wrong(tmp_path: Path) -> None:
    """Draws, drift and earnings at random, at a warning level of 0.01: five families of tests, at most 5% of nights."""
    from policies.drift import Bins, Drift

    rng, alarms = np.random.default_rng(3), 0
    config = config_of(tmp_path, monitor={"false_alarm": 0.01})
    reference = rng.normal(size=2000)
    bins = Bins.of(reference)
    counts = bins.counts(reference)
    for _ in range(1000):
        report, n = night(), int(rng.integers(20, 600))
        for family in report["draws"].values():
            for action, p in (("badge", 0.1), ("push", 0.2)):
                family[action]["whole"] = sums(n, int(rng.binomial(n, p)), p)
        for found in (report["drift"]["values"], report["drift"]["features"]):
            for each in found.values():
                drift = Drift(counts, bins.counts(rng.normal(size=n)))
                each |= {"psi": drift.psi, "noise": [drift.noise(a / len(found), (2000, n)) for a in (0.01, 1e-6)]}
        for each in report["earned"]["metrics"].values():
            gap, half = 0.1 * rng.normal(), 0.1 * 2.807
            each["difference"] = {"estimate": gap, "alarm_low": gap - half, "alarm_high": gap + half}
        measures, wanted = demands(report, config)
        alarms += any(
            not (one.low is None or one.low <= measures[str(one.metric)])
            or not (one.high is None or measures[str(one.metric)] <= one.high)
            for one in wanted
        )
    assert alarms <= 50


def test_a_hostile_name_stays_text(tmp_path: Path) -> None:
    report = hostile_night()
    report["expectations"] = judge_night(Validator(), config_of(tmp_path, actions=["hold", "badge", HOSTILE]), report)
    page = render(report)
    tree = Tree(page)
    assert tree.all("script") == []
    assert tree.all("img") == []
    assert not any(name.startswith("on") for _, attributes in tree.elements for name in attributes)
    assert HOSTILE in text_of(page)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("psi", [0.3, 0.1], r"monitor\.psi is \[0\.3, 0\.1\]"),
        ("unlogged", [-0.1, 0.1], r"monitor\.unlogged is \[-0\.1, 0\.1\]"),
        ("false_alarm", 1e-9, r"monitor\.critical_alarm is 1e-06, above monitor\.false_alarm 1e-09"),
        ("window_nights", 0, r"monitor\.window_nights"),
    ],
)
def test_thresholds_that_make_no_sense_are_refused(tmp_path: Path, key: str, value: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        config_of(tmp_path, monitor={key: value})
