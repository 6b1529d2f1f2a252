"""Every night: a decision for every candidate (`tactful score`), then a look at what decisions did (`tactful monitor`).

Runs when `transitions_daily` has taken a day in, not by the clock: by the clock it would decide on data that did not
pass or did not come. Where that happens no run begins, last night's decisions end by their own `valid_until`, and the
deadline of `transitions_daily` tells a person. Days made anew by a backfill are not announced.

`score` believes what was logged up to the run's own time, so that a retry or a cleared task decides as the first try
would have. `monitor` failed with exit code 3 means: what was scored and what was logged and earned do not fit, see its
report. The scores are there all the same; `tactful freeze` makes every later score hold.

**Set**: `TACTFUL` (the command), `TACTFUL_HOME` (the folder it runs in), `TACTFUL_CONFIG` (the TOML file).
**Red?** The task's log ends with the exit code and its meaning; see docs/airflow.md.
"""

import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from airflow.sdk import DAG, Param

# Airflow puts only the bundle's root there, which may lie above this folder.
sys.path.append(str(Path(__file__).parent))
from tactful_alerts import deadline, run_late, task_failed
from tactful_operator import CHAMPION, CONFIG, SCORES, TRANSITIONS, TactfulOperator

AS_OF = '"{{ params.as_of or dag_run.run_after.strftime("%Y-%m-%dT%H:%M:%S") }}"'
NAME = "scoring_nightly"


def late(context: Any) -> None:
    """This DAG's deadline was missed."""
    run_late(context)


with DAG(
    dag_id=NAME,
    description="Tonight's decisions, and what the last ones did",
    doc_md=__doc__,
    schedule=[TRANSITIONS],
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    dagrun_timeout=timedelta(hours=8),
    deadline=deadline(NAME, timedelta(hours=2), late),
    tags=["tactful"],
    default_args={
        "retries": 3,
        "retry_delay": timedelta(minutes=5),
        "retry_exponential_backoff": 2.0,
        "on_failure_callback": task_failed,
    },
    params={
        "config": CONFIG,
        "as_of": Param(
            "",
            type="string",
            pattern=r"^(\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2})?$",
            description="UTC time after which nothing logged is believed; empty: the time of this run.",
        ),
    },
):
    score = TactfulOperator(
        task_id="score",
        step="score",
        overrides={"etl.as_of": AS_OF},
        inlets=[TRANSITIONS, CHAMPION],
        outlets=[SCORES],
        execution_timeout=timedelta(hours=3),
        doc_md="The champion of the registry decides for every candidate: one commit, or none.",
    )
    monitor = TactfulOperator(
        task_id="monitor",
        step="monitor",
        inlets=[SCORES],
        execution_timeout=timedelta(hours=2),
        doc_md="`monitor/NIGHT/monitor.html`. Failed with exit code 3: somebody should look, and perhaps freeze.",
    )
    score >> monitor
