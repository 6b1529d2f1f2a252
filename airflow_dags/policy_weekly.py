"""Every week: learn (`train`), prove (`evaluate`), decide (`promote`), explain (`report`).

`promote` ends in one of three ways. **Success**: the gate promoted, the champion is new, and the asset
`tactful://champion` changed. **Skipped**: the gate refused, or the log cannot settle it; the champion stays, and the
reasons are in the task's log. Neither is an accident: a gate that never said no would not be one. **Failed**: something
broke. The report is made after the first two.

**Set**: `TACTFUL` (the command), `TACTFUL_HOME` (the folder it runs in), `TACTFUL_CONFIG` (the TOML file).
**Red?** The task's log ends with the exit code and its meaning; see docs/airflow.md.
"""

import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from airflow.sdk import DAG, TriggerRule

# Airflow puts only the bundle's root there, which may lie above this folder.
sys.path.append(str(Path(__file__).parent))
from tactful_alerts import deadline, run_late, task_failed
from tactful_operator import CHAMPION, CONFIG, NOT_PROMOTED, TRANSITIONS, TactfulOperator

NAME = "policy_weekly"


def late(context: Any) -> None:
    """This DAG's deadline was missed."""
    run_late(context)


with DAG(
    dag_id=NAME,
    description="Train, evaluate, promote or not, report",
    doc_md=__doc__,
    schedule="0 6 * * 1",
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    dagrun_timeout=timedelta(hours=48),
    deadline=deadline(NAME, timedelta(hours=24), late),
    tags=["tactful"],
    default_args={
        "retries": 2,
        "retry_delay": timedelta(minutes=10),
        "retry_exponential_backoff": 2.0,
        "on_failure_callback": task_failed,
    },
    params={
        "config": CONFIG,
    },
):
    train = TactfulOperator(
        task_id="train",
        step="train",
        inlets=[TRANSITIONS],
        execution_timeout=timedelta(hours=8),
        doc_md="Policies learned from the transitions table, each an ONNX graph.",
    )
    evaluate = TactfulOperator(
        task_id="evaluate",
        step="evaluate",
        execution_timeout=timedelta(hours=4),
        doc_md="Policies, estimators and reward components: one table, with intervals.",
    )
    promote = TactfulOperator(
        task_id="promote",
        step="promote",
        skipped_on=NOT_PROMOTED,
        outlets=[CHAMPION],
        execution_timeout=timedelta(minutes=30),
        doc_md="The gate. Skipped means: it promoted nothing, and the log of this task says why.",
    )
    report = TactfulOperator(
        task_id="report",
        step="report",
        trigger_rule=TriggerRule.NONE_FAILED,
        execution_timeout=timedelta(minutes=30),
        doc_md="`report.html`: the verdict first, whatever it was.",
    )
    train >> evaluate >> promote >> report
