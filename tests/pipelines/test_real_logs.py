"""Logs of others by configuration alone, held against plain pandas; skipped where the files are absent.

Open Bandit Dataset, men's campaign (st-tech/zr-obp, Apache-2.0): 10,000 impressions of 34 items in three positions by a
uniform policy and 10,000 by Bernoulli Thompson sampling, with 46 and 69 clicks. Each log knows the other policy's value
by its own mean. Oralytics pilot (GPL-3.0): 707 decisions of 9 people, whose propensities change from row to row.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pyspark.sql import SparkSession
from typer.testing import CliRunner

from models import table
from models.errors import InputError
from pipelines import jobs
from pipelines.cli import app
from pipelines.config import load

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data"
UNIFORM, BTS, ORALYTICS = (
    DATA / name for name in ("obd_men_random.csv.gz", "obd_men_bts.csv.gz", "oralytics_pilot_decisions.csv")
)

pytestmark = pytest.mark.skipif(
    not all(path.exists() for path in (UNIFORM, BTS, ORALYTICS)), reason="the logs are not part of the repository"
)

Evaluated = Callable[[str], dict[str, Any]]
RESAMPLES = 1000


@pytest.fixture(scope="module")
def evaluated(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Evaluated:
    """The evaluation that `tactful run configs/NAME.toml` leaves, run once."""
    found: dict[str, dict[str, Any]] = {}

    def once(name: str) -> dict[str, Any]:
        if name not in found:
            folder = tmp_path_factory.mktemp(name)
            file = {"obd_random": UNIFORM, "obd_bts": BTS, "oralytics": ORALYTICS}[name]
            changes = {"run_dir": folder, "data.decisions.path": file, "evaluate.resamples": RESAMPLES}
            if name == "obd_random":
                changes["evaluate.policies.bts.path"] = BTS
            words = [word for key, value in changes.items() for word in ("--set", f"{key}={value}")]
            done = CliRunner().invoke(app, ["run", str(ROOT / "configs" / f"{name}.toml"), *words])
            assert done.exit_code == 0, (done.output, done.exception)
            page = (folder / "report.html").read_text()
            config = load(ROOT / "configs" / f"{name}.toml", {"run_dir": str(folder)})
            found[name] = {"page": page, "config": config, "said": done.stdout, **jobs.report(config)}
        return found[name]

    return once


def estimates(found: dict[str, Any], policy: str, metric: str = "click") -> dict[str, Any]:
    return {name: each[metric] for name, each in found["evaluation"]["policies"][policy]["estimates"].items()}


def check(found: dict[str, Any], policy: str, weight: pd.Series, outcome: pd.Series) -> None:
    """Rows as clusters: IPS, SNIPS and effective sample size to 1e-9, the intervals against a plain bootstrap."""
    each = estimates(found, policy)
    w, r = weight.to_numpy(), outcome.to_numpy()
    assert each["ips"]["estimate"] == pytest.approx((w * r).mean(), abs=1e-9)
    assert each["wpdis"]["estimate"] == pytest.approx((w * r).sum() / w.sum(), abs=1e-9)
    diagnostics = found["evaluation"]["policies"][policy]["diagnostics"]
    assert diagnostics["ess"] == pytest.approx(w.sum() ** 2 / (w**2).sum(), rel=1e-9)
    assert diagnostics["mean_weight"] == pytest.approx(w.mean(), abs=1e-9)
    rng = np.random.default_rng(0)
    rows = [rng.integers(0, len(w), len(w)) for _ in range(RESAMPLES)]
    for name, values in (
        ("ips", [(w[i] * r[i]).mean() for i in rows]),
        ("wpdis", [(w[i] * r[i]).sum() / w[i].sum() for i in rows]),
    ):
        low, high = np.quantile(values, [0.025, 0.975])
        # Two bootstraps of 1,000: a 2.5% quantile has a standard error of about 5% of the half-width.
        near = 0.2 * (high - low) / 2
        assert (each[name]["low"], each[name]["high"]) == pytest.approx((low, high), abs=near)


def test_thompson_sampling_from_the_uniform_log(evaluated: Evaluated) -> None:
    found = evaluated("obd_random")
    log, bts = pd.read_csv(UNIFORM), pd.read_csv(BTS)
    shares = pd.crosstab(bts["position"], bts["item_id"], normalize="index")
    pi = np.array([shares.loc[at, item] for at, item in zip(log["position"], log["item_id"], strict=True)])
    check(found, "bts", pd.Series(pi) / log["propensity_score"], log["click"])
    # What Thompson sampling earned where it ran, 69 clicks in 10,000, lies in the interval from the other log.
    each = estimates(found, "bts")["ips"]
    assert each["low"] <= bts["click"].mean() == 0.0069 <= each["high"]


def test_uniform_from_the_uniform_log_is_its_mean(evaluated: Evaluated) -> None:
    each = estimates(evaluated("obd_random"), "uniform")
    for name in ("ips", "wpdis"):
        assert each[name]["estimate"] == pytest.approx(0.0046, abs=1e-12)
    assert estimates(evaluated("obd_random"), "logging")["on_policy"]["estimate"] == pytest.approx(0.0046, abs=1e-12)


def test_uniform_from_the_log_of_thompson_sampling(evaluated: Evaluated) -> None:
    found = evaluated("obd_bts")
    log = pd.read_csv(BTS)
    check(found, "uniform", 1 / 34 / log["propensity_score"], log["click"])
    each = estimates(found, "uniform")["ips"]
    assert each["low"] <= pd.read_csv(UNIFORM)["click"].mean() == 0.0046 <= each["high"]


def test_every_impression_is_kept_and_counts_alone(evaluated: Evaluated) -> None:
    for name in ("obd_random", "obd_bts"):
        found = evaluated(name)
        decisions = found["rows"]["decisions"]
        assert (decisions["read"], decisions["kept"], decisions["quarantined"]) == (10_000, 10_000, 0)
        evaluation = found["evaluation"]
        assert evaluation["clusters"] == "rows"
        assert evaluation["row_sets"]["all"] == {"users": 10_000, "decisions": 10_000, "left_out": 0}
        assert {"never", "always"}.isdisjoint(evaluation["policies"])
        for said in (found["page"], " ".join(found["said"].split())):
            assert "every row is a cluster of its own" in said


def test_that_the_other_log_does_not_state_its_policy_is_told(evaluated: Evaluated) -> None:
    found, bts = evaluated("obd_random"), pd.read_csv(BTS)
    recorded = found["evaluation"]["policies"]["bts"]["recorded"]
    groups = bts.groupby(["position", "item_id"])["propensity_score"]
    assert recorded["spread"] == pytest.approx((groups.max() - groups.min()).max(), abs=1e-12)
    assert (recorded["cells"], recorded["exact_cells"], recorded["unseen"]) == (3, 0, 0)
    # The mean of what was logged for the chosen item is no probability: over the items it sums to about 2.
    assert (groups.mean().groupby("position").sum() > 1.5).all()
    (warning,) = found["evaluation"]["warnings"]
    assert warning.startswith("bts: in 3 of 3 cells its log does not state the policy's probabilities")
    assert warning.split("(")[0] in found["page"].replace("&#39;", "'")


def test_the_uniform_policy_is_known_exactly_from_its_log(spark: SparkSession, evaluated: Evaluated) -> None:
    """The other way round the table is the policy: 1/34 for each of 34 items in each of three positions."""
    from pipelines.evaluating import named_policies

    config = evaluated("obd_bts")["config"]
    policy = {"policies.u.kind": "logged", "policies.u.by": '["position"]', "policies.u.path": f'"{UNIFORM}"'}
    changes = {f"evaluate.{key}": value for key, value in policy.items()}
    asked = load(ROOT / "configs" / "obd_bts.toml", {"run_dir": str(config.run_dir), **changes})
    found: Any = named_policies(asked, spark)[-1]
    assert (found.told["cells"], found.told["exact_cells"]) == (3, 3)
    log = table.read(config.transitions_path, config.contract)
    np.testing.assert_allclose(found.action_probabilities(log.state, log.legal), 1 / 34, atol=1e-12)


def test_sending_always_and_never_to_nine_people(evaluated: Evaluated) -> None:
    found = evaluated("oralytics")
    log = pd.read_csv(ORALYTICS)
    assert found["evaluation"]["clusters"] == "users"
    for policy, action in (("never", 0), ("always", 1)):
        each = estimates(found, policy, "quality")
        weight = (log["action"] == action) / log["propensity"]
        assert each["ips"]["estimate"] == pytest.approx((weight * log["quality"]).mean(), abs=1e-9)
        snips = (weight * log["quality"]).sum() / weight.sum()
        assert each["wpdis"]["estimate"] == pytest.approx(snips, abs=1e-9)
        by_person = weight.groupby(log["user_id"]).mean()
        ess = by_person.sum() ** 2 / (by_person**2).sum()
        assert found["evaluation"]["policies"][policy]["diagnostics"]["ess"] == pytest.approx(ess, rel=1e-9)
        sums = (weight * log["quality"]).groupby(log["user_id"]).sum(), log.groupby("user_id").size()
        counts = np.random.default_rng(0).poisson(1.0, (RESAMPLES, 9))
        values = (counts @ sums[0].to_numpy()) / (counts @ sums[1].to_numpy())
        low, high = np.quantile(values, [0.025, 0.975])
        assert (each["ips"]["low"], each["ips"]["high"]) == pytest.approx((low, high), abs=0.2 * (high - low) / 2)
    assert estimates(found, "logging", "quality")["on_policy"]["estimate"] == pytest.approx(
        log["quality"].mean(), abs=1e-9
    )
    assert found["evaluation"]["warnings"] == [
        "Intervals resample 9 users: with fewer than 30 they are likely too narrow, and no level is promised."
    ]
    assert "Intervals resample 9 users" in found["page"]


def test_its_propensities_by_row_are_calibrated(evaluated: Evaluated) -> None:
    calibration = evaluated("oralytics")["evaluation"]["calibration"]
    log = pd.read_csv(ORALYTICS)
    for name, action in (("hold", 0), ("send", 1)):
        weight = (log["action"] == action) / log["propensity"]
        assert calibration["actions"][name]["mean_weight"] == pytest.approx(weight.mean(), abs=1e-9)
        assert abs(weight.mean() - 1) < 3 * calibration["actions"][name]["se"]
    tenths = (log["p_send"] * 10).astype(int)
    for each, (_, rows) in zip(calibration["bins"], log.groupby(tenths), strict=True):
        assert each["n"] == len(rows)
        assert each["predicted"] == pytest.approx(rows["p_send"].mean(), abs=1e-9)
        assert each["observed"] == pytest.approx(rows["action"].mean(), abs=1e-9)
        # Each decision was drawn by its own p: four standard errors of that.
        error = np.sqrt((rows["p_send"] * (1 - rows["p_send"])).sum()) / len(rows)
        assert abs(each["observed"] - each["predicted"]) < 4 * error


def test_nothing_is_to_be_learned_from_them(evaluated: Evaluated) -> None:
    with pytest.raises(InputError, match=r"oralytics: the configuration has no \[train\]"):
        jobs.train(evaluated("oralytics")["config"])
