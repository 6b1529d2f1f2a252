"""How a person hears of a task that failed or a run that is late: one line of JSON, in the log and to one command.

`TACTFUL_ALERT` in the worker's environment names the command; it gets the line on its standard input, as in
`curl --fail --silent --max-time 30 --json @- https://…`. It is not logged, nor is what it says: it may hold a secret.
Read where the DAGs are parsed: `TACTFUL_DEADLINE_<DAG_ID>`, the time in minutes that a run of the DAG may take, and
`TACTFUL_DEADLINES=off`, for `airflow dags test`: in Airflow 3.3.2 it cannot end a run that has a deadline
(apache/airflow#73428).
"""

import json
import logging
import os
import shlex
import subprocess
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from airflow.sdk import DeadlineAlert, DeadlineReference, SyncCallback

logger = logging.getLogger("tactful.alert")
BACKFILL = "backfill"
SECONDS = 60
"""Given to the command."""


def task_failed(context: Any) -> None:
    """The `on_failure_callback` of every task: called once, when no try is left."""
    ti, run = context["ti"], context["dag_run"]
    error = context.get("exception")
    tell(
        "task failed",
        dag=ti.dag_id,
        task=ti.task_id,
        run=run.run_id,
        tries=ti.try_number,
        reason=f"{type(error).__name__}: {error}" if error else "unknown",
        log=getattr(ti, "log_url", None),
    )


def run_late(context: Any) -> None:
    """What a missed deadline calls; a backfill has none, since its runs are queued all at once and then wait."""
    run = context["dag_run"]
    if run["run_type"] != BACKFILL:
        tell(
            "deadline missed",
            dag=run["dag_id"],
            run=run["dag_run_id"],
            queued=run["queued_at"],
            deadline=str(context["deadline"]["deadline_time"]),
        )


def deadline(dag_id: str, interval: timedelta, callback: Callable[..., None]) -> DeadlineAlert | None:
    """An alert `interval` after a run was queued, unless the environment says another time, or none.

    callback: a function of the DAG's own file, where Airflow finds it wherever the folder lies in its bundle.
    """
    if os.environ.get("TACTFUL_DEADLINES") == "off":
        return None
    name = f"TACTFUL_DEADLINE_{dag_id.upper()}"
    minutes = os.environ.get(name)
    try:
        interval = interval if minutes is None else timedelta(minutes=float(minutes))
    except ValueError:
        raise ValueError(f"{name} is {minutes!r}; give a number of minutes.") from None
    return DeadlineAlert(DeadlineReference.DAGRUN_QUEUED_AT, interval, SyncCallback(callback))


def tell(alert: str, **facts: Any) -> None:
    """One line of JSON in the log, and to the command where there is one; never raises."""
    line = json.dumps({"alert": alert, **facts})
    logger.error("%s", line)
    command = os.environ.get("TACTFUL_ALERT")
    if not command:
        return
    try:
        done = subprocess.run(
            shlex.split(command),
            input=line + "\n",
            text=True,
            timeout=SECONDS,
            check=False,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        outcome = f"ended with {done.returncode}"
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        outcome = f"did not run ({type(error).__name__})"
    logger.info("the command in TACTFUL_ALERT %s", outcome)
