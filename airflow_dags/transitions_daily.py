"""Every night: raw log to transitions (`tactful etl`), then a decision for every candidate (`tactful score`).

Nothing is decided on data that did not pass: if `etl` fails, `score` does not run, and last night's decisions end by
their own `valid_until`. Both steps believe what was logged up to one moment, the run's own time, so that a retry or a
cleared task decides as the first try would have. A missed night is not caught up on: its decisions would be void.

**Set**: `TACTFUL` (the command), `TACTFUL_HOME` (the folder it runs in), `TACTFUL_CONFIG` (the TOML file).
**Red?** The task's log ends with the exit code and its meaning; see docs/airflow.md.
"""

import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

from airflow.sdk import DAG, Param

# Airflow puts only the bundle's root there, which may lie above this folder.
sys.path.append(str(Path(__file__).parent))
from tactful_operator import CONFIG, TactfulOperator

AS_OF = '"{{ params.as_of or dag_run.run_after.strftime("%Y-%m-%dT%H:%M:%S") }}"'

with DAG(
    dag_id="transitions_daily",
    description="Raw log to transitions, then tonight's decisions",
    doc_md=__doc__,
    schedule="0 2 * * *",
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    dagrun_timeout=timedelta(hours=12),
    tags=["tactful"],
    default_args={"retries": 3, "retry_delay": timedelta(minutes=5), "retry_exponential_backoff": 2.0},
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
    etl = TactfulOperator(
        task_id="etl",
        step="etl",
        overrides={"etl.as_of": AS_OF},
        execution_timeout=timedelta(hours=3),
        doc_md="Raw decisions and events to the transitions table: one commit, or none.",
    )
    score = TactfulOperator(
        task_id="score",
        step="score",
        overrides={"etl.as_of": AS_OF},
        execution_timeout=timedelta(hours=2),
        doc_md="The champion of the registry decides for every candidate.",
    )
    etl >> score
