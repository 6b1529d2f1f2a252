"""A monitored night as its report tells it, without Spark: nothing is wrong with it until a test makes it so."""

import copy
from pathlib import Path
from typing import Any

from pipelines.config import Config, validate
from pipelines.monitor.matching import LOGGED_FATES, SCORED_FATES

ROWS = 10_000
ACTIONS = ("hold", "badge", "push")
HOSTILE = "<script>document.title = 'run'</script><img src=x onerror=\"document.title = 'run'\">"


def config_of(folder: Path, **changes: Any) -> Config:
    tree = {
        "name": "night",
        "run_dir": str(folder / "run"),
        "actions": list(ACTIONS),
        "rewards": ["sends", "clicks"],
        "data": {"decisions": {"path": "d"}, "events": {"path": "e"}},
        "features": {"state": ["sends_7d"], "context": ["relevance"]},
        **changes,
    }
    return validate(tree, "night.toml")


def sums(n: int, taken: int, p: float) -> dict[str, Any]:
    return {"n": n, "taken": taken, "expected": n * p, "variance": n * p * (1 - p)}


def _drift(psi: float = 0.01, **changes: Any) -> dict[str, Any]:
    return {
        "psi": psi,
        "ks": 0.01,
        "noise": [0.005, 0.008],
        "judged": True,
        "moved_by_sends": False,
        "cuts": [0.5],
        "reference": [500, 480, 20],
        "rows": [5000, 4800, 200],
        **changes,
    }


def _earned(gap: float) -> dict[str, Any]:
    realised = {"estimate": 1.0 + gap, "low": 0.9 + gap, "high": 1.1 + gap}
    difference = {"estimate": gap, "low": gap - 0.1, "high": gap + 0.1, "alarm_low": gap - 0.2, "alarm_high": gap + 0.2}
    return {"realised": realised, "predicted": {"estimate": 1.0, "low": 0.95, "high": 1.05}, "difference": difference}


def _test(whole: dict[str, Any]) -> dict[str, Any]:
    return {"whole": whole, "z": 0.0, "p": 1.0, "bins": [{"bin": 1, **whole, "z": 0.0}]}


def night() -> dict[str, Any]:
    """As `monitor_night` returns it, of ROWS rows."""
    rates = {"hold": 0.7, "badge": 0.1, "push": 0.2}
    draws = {action: _test(sums(ROWS, round(ROWS * p), p)) for action, p in rates.items()}
    action_rate = {
        action: {"scored": p, "expected": p, "done": p, "history": [p * (1 + 0.01 * each) for each in range(-4, 4)]}
        for action, p in rates.items()
    }
    return {
        "night": "2026-02-01",
        "created_at": "2026-02-03T04:00:00+00:00",
        "name": "night",
        "policy": "ddqn_cql",
        "policy_version": "7",
        "model": {"learner": "ddqn_cql", "window": ["2025-12-01T00:00:00Z", "2026-01-25T00:00:00Z"], "data_version": 3},
        "decides": ["2026-02-01T18:00:00+00:00", "2026-02-02T20:00:00+00:00"],
        "log_end": "2026-02-03T00:00:00+00:00",
        "settled": True,
        "users": ROWS,
        "rows": {
            "scored": ROWS,
            "fates": {**dict.fromkeys(SCORED_FATES, 0), "matched": ROWS},
            "by_action": {action: round(ROWS * p) for action, p in rates.items()},
            "by_rule": {"policy": ROWS},
            "never_logged_by_action": {},
            "matched_by_action": {action: round(ROWS * p) for action, p in rates.items()},
            "logged": ROWS,
            "logged_fates": {**dict.fromkeys(LOGGED_FATES, 0), "answers": ROWS},
        },
        "agreement": {
            "otherwise": 0,
            "pairs": [],
            "propensity_same": ROWS,
            "propensity_missing": 0,
            "propensity_differs": 0,
        },
        "draws": {"scored": draws, "answered": copy.deepcopy(draws)},
        "action_rate": action_rate,
        "drift": {
            "values": {"value_push_clicks": _drift()},
            "features": {"relevance": _drift(), "sends_7d": _drift(moved_by_sends=True)},
            "left_out": {},
            "reference": {"rows": 1000, "users": 400, "version": 3},
            "waits": False,
        },
        "earned": {
            "left_out": None,
            "too_short": None,
            "judged": True,
            "policy": "ddqn_cql",
            "confidence": 0.95,
            "unit": "per user-week",
            "users": ROWS,
            "decisions": ROWS,
            "silent": 3,
            "open_clicks": 0,
            "days": 8.0,
            "metrics": {"sends": _earned(0.0), "clicks": _earned(0.05)},
            "nights": ["2026-02-01"],
        },
        "manifest": {"night": "2026-02-01", "candidates": ROWS, "lambda": 0.1},
    }


def hostile_night() -> dict[str, Any]:
    """Every name that a log or a configuration can choose is markup."""
    found = night()
    found["name"] = found["policy"] = HOSTILE
    found["rows"]["by_rule"] = {f"missing_feature:{HOSTILE}": ROWS}
    found["rows"]["never_logged_by_action"] = {HOSTILE: 1}
    found["agreement"]["pairs"] = [{"scored": "push", "logged": HOSTILE, "rows": 2}]
    for family in found["draws"].values():
        family[HOSTILE] = family.pop("push")
    found["action_rate"][HOSTILE] = found["action_rate"].pop("push")
    found["drift"]["features"][f"topic={HOSTILE}"] = _drift(0.5)
    found["drift"]["left_out"] = {"values": HOSTILE}
    found["drift"]["values"] = None
    found["earned"]["metrics"][HOSTILE] = _earned(0.1)
    found["earned"]["too_short"] = found["earned"]["left_out"] = HOSTILE
    found["manifest"]["fingerprint"] = HOSTILE
    return found
