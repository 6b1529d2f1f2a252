"""Every UTC day: wait for what arrived (`tactful ready`), check it and take it into the transitions (`tactful etl`).

A run's data interval is one arrival day, from midnight to midnight. `lake_ready` waits until the day's raw folders are
there and whole. `etl` measures the data first: a critical expectation that does not hold ends it with exit code 3,
before anything is committed, and then nothing downstream runs: `announce`, which changes the asset
`tactful://transitions` that `scoring_nightly` waits for, does not. Otherwise the table takes the day in by one commit.

**Any order, any number of times.** A day that the table knows is made anew to the same rows; days that it lacks before
the run's own are taken in with it, the first time the whole log. So nothing is caught up on (`catchup=False`): the next
run takes in what a pause or a failure left, in one pass. A backfill is for making days anew: it announces nothing,
since history is no reason to decide again what was sent.

**Set**: `TACTFUL` (the command), `TACTFUL_HOME` (the folder it runs in), `TACTFUL_CONFIG` (the TOML file).
**Red?** The task's log ends with the exit code and its meaning; see docs/airflow.md.
"""

import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from airflow.sdk import DAG, CronDataIntervalTimetable, Param, task
from airflow.sdk.exceptions import AirflowSkipException

# Airflow puts only the bundle's root there, which may lie above this folder.
sys.path.append(str(Path(__file__).parent))
from tactful_alerts import BACKFILL, deadline, run_late, task_failed
from tactful_operator import CONFIG, TRANSITIONS, TactfulOperator, TactfulSensor

# A run that was triggered without a date has no interval: the last whole day before it is meant.
DAY = "{{ params.day or (data_interval_start or dag_run.run_after - macros.timedelta(days=1)).strftime('%Y-%m-%d') }}"
NAME = "transitions_daily"


def late(context: Any) -> None:
    """This DAG's deadline was missed."""
    run_late(context)


with DAG(
    dag_id=NAME,
    description="Raw log to transitions, one arrival day at a time",
    doc_md=__doc__,
    schedule=CronDataIntervalTimetable("0 0 * * *", timezone="UTC"),
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    dagrun_timeout=timedelta(hours=23),
    deadline=deadline(NAME, timedelta(hours=6), late),
    tags=["tactful"],
    default_args={
        "retries": 3,
        "retry_delay": timedelta(minutes=5),
        "retry_exponential_backoff": 2.0,
        "on_failure_callback": task_failed,
    },
    params={
        "config": CONFIG,
        "day": Param(
            "",
            type="string",
            pattern=r"^(\d{4}-\d{2}-\d{2})?$",
            description="UTC arrival day up to which the log is taken in; empty: that of the run's data interval.",
        ),
        "marker": Param(
            "",
            type="string",
            pattern=r"^[\w.-]*$",
            description="A file in a day's raw folder that says the folder is whole, as _SUCCESS; empty: none is.",
        ),
    },
):
    lake_ready = TactfulSensor(
        task_id="lake_ready",
        step="ready",
        arguments=["--to", DAY, "--marker", "{{ params.marker }}"],
        poke_interval=timedelta(minutes=5),
        timeout=timedelta(hours=18),
        execution_timeout=timedelta(minutes=10),
        doc_md="Waits for the raw days that `etl` will take in. Failed means: 18 hours, and they did not come.",
    )
    etl = TactfulOperator(
        task_id="etl",
        task_display_name="quality and etl",
        step="etl",
        arguments=["--to", DAY],
        # Two would race for one commit; the loser would only be tried again.
        max_active_tis_per_dag=1,
        execution_timeout=timedelta(hours=3),
        doc_md="Expectations, then transitions: one commit, or none. Exit code 3: the data did not pass.",
    )

    # Apart from `etl`: were a backfill's change told too, Airflow could tell tonight's together with it, or after it.
    @task(
        outlets=[TRANSITIONS],
        execution_timeout=timedelta(minutes=10),
        doc_md="Lets `scoring_nightly` begin. Skipped in a backfill.",
    )
    def announce(dag_run: Any = None) -> None:
        """Change the asset, unless the run is a backfill's."""
        if dag_run.run_type == BACKFILL:
            raise AirflowSkipException("a backfill made this day; nothing is decided anew for it.")

    lake_ready >> etl >> announce()
