"""HeartSteps V1, a real micro-randomised trial, by configuration alone; skipped where the file is absent.

Known of the file (Klasnja et al., CC BY 4.0): 7,540 decisions of 37 people, one without its time, 6,061 at which the
person was available, sent with probability 0.6. In plain averages over the available decisions 3,594 sends less 2,467
holds make +0.1175 log steps.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pyspark.sql import SparkSession

from models import table
from pipelines import jobs
from pipelines.config import Config, load
from policies.baselines import Always, Never
from policies.evaluate import evaluate

ROOT = Path(__file__).parents[2]
FILE = ROOT.parent / "shared" / "data" / "heartsteps_v1_decisions.csv"
OUTCOME = "log_steps_post_30m"

pytestmark = pytest.mark.skipif(not FILE.exists(), reason=f"{FILE.name} is not part of the repository; see README")


@pytest.fixture(scope="module")
def run(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, dict[str, Any], Any]:
    folder = tmp_path_factory.mktemp("heartsteps")
    paths = {f"data.{name}.path": f'"{FILE}"' for name in ("decisions", "candidates")}
    config = load(ROOT / "configs" / "heartsteps.toml", {"run_dir": f'"{folder}"', **paths})
    report = jobs.etl(config)
    return config, report, table.read(config.transitions_path, config.contract)


def test_every_row_is_kept_or_counted_by_its_reason(run: tuple[Config, dict[str, Any], Any]) -> None:
    _, report, _ = run
    decisions = report["rows"]["decisions"]
    assert (decisions["read"], decisions["kept"], decisions["immature"]) == (7540, 7539, 0)
    assert decisions["by_reason"] == {"missing_decided_at": 1}
    made = report["rows"]["transitions"]
    # The last row of each of the 37 people ends at the watermark.
    assert (made["usable"], made["unusable"], made["silent"], made["truncated"]) == (7539, 0, 0, 37)


def test_the_trial_is_read_as_it_was_run(run: tuple[Config, dict[str, Any], Any]) -> None:
    config, _, log = run
    raw = pd.read_csv(FILE).dropna(subset=["decision_time_utc"])
    found = evaluate(log, [Never(), Always()], config.evaluate, config.gate, seed=1, progress=False, fit=zero)
    logging = found["policies"]["logging"]
    assert logging["estimates"]["on_policy"][OUTCOME]["estimate"] == pytest.approx(raw[OUTCOME].mean(), abs=1e-9)
    assert (logging["diagnostics"]["mean_weight"], logging["diagnostics"]["largest_weight"]) == (1.0, 1 / 37)
    (choice,) = [each for each in found["contrasts"] if each["rows"] == "choice"]
    assert (choice["policy"], choice["against"]) == ("always", "never")
    effect = choice["estimates"]["wpdis"][OUTCOME]
    available = raw[raw["available"] == 1].groupby("action")[OUTCOME].mean()
    assert effect["estimate"] == pytest.approx(available[1] - available[0], abs=1e-9)
    assert effect["estimate"] == pytest.approx(0.1175, abs=1e-4)
    # About [-0.02, 0.25] by people.
    assert effect["low"] == pytest.approx(-0.02, abs=0.03)
    assert effect["high"] == pytest.approx(0.25, abs=0.03)
    assert found["calibration"]["inverse_sum"] == pytest.approx(1.0, abs=0.02)


def zero(log: table.Transitions, rows: Any, ahead: Any, extra: Any) -> Any:
    """No value function: doubly robust is then importance sampling, and nothing here reads it."""
    return np.zeros((len(rows), len(log.user), len(log.contract.actions), len(log.contract.rewards)))
