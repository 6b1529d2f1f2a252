"""Run DAGs with the Airflow whose Python runs this file: scenarios as JSON on stdin, results as JSON on stdout.

A scenario: dag, and optionally env (for the commands started), conf (the run's params), timeout (seconds allowed to
every task) and patience (seconds a sensor waits in all). Waiting between tries and looks is cut to nothing; how often
is tried stays as the DAG has it. No scenario: the DAGs are described.
"""

import contextlib
import json
import os
import sys
from datetime import timedelta
from pathlib import Path
from unittest.mock import patch

from airflow.dag_processing.dagbag import BundleDagBag
from airflow.sdk import BaseSensorOperator


def play(scenario: dict, folder: Path) -> dict:
    """One run of one DAG: its state, and for each task the state and the number of tries."""
    dag = BundleDagBag(dag_folder=folder, bundle_path=folder, bundle_name="dags-folder").dags[scenario["dag"]]
    for task in dag.tasks:
        task.retry_delay = timedelta(0)
        task.retry_exponential_backoff = 0
        if isinstance(task, BaseSensorOperator):
            task.poke_interval = 0
            task.timeout = scenario.get("patience", task.timeout)
        if "timeout" in scenario:
            task.execution_timeout = timedelta(seconds=scenario["timeout"])
    with patch.dict(os.environ, scenario.get("env", {})):
        run = dag.test(run_conf=scenario.get("conf"))
    tasks = {ti.task_id: [str(ti.state), ti.try_number] for ti in run.get_task_instances()}
    return {"state": str(run.state), "tasks": tasks}


def listed(found: object) -> list:
    """One, several or none, as a list."""
    return found if isinstance(found, list) else [] if found is None else [found]


def describe(folder: Path) -> dict:
    """What the DAGs say of themselves, and what could not be imported."""
    bag = BundleDagBag(dag_folder=folder, bundle_path=folder, bundle_name="dags-folder")
    return {
        "errors": {str(path): error for path, error in bag.import_errors.items()},
        "dags": {
            name: {
                "tasks": {
                    task.task_id: {
                        "downstream": sorted(task.downstream_task_ids),
                        "retries": task.retries,
                        "retry_delay": task.retry_delay.total_seconds(),
                        "timeout": task.execution_timeout.total_seconds(),
                        "trigger_rule": str(task.trigger_rule),
                        "type": task.task_type,
                        "skipped_on": list(getattr(task, "skipped_on", [])),
                        "patience": getattr(task, "timeout", None),
                        "mode": getattr(task, "mode", None),
                        "pool": task.pool,
                        "tells": [getattr(told, "__name__", str(told)) for told in listed(task.on_failure_callback)],
                        "outlets": [asset.uri for asset in task.outlets],
                        "inlets": [asset.uri for asset in task.inlets],
                        "doc": task.doc_md,
                    }
                    for task in dag.tasks
                },
                "deadline": [alert.interval.total_seconds() for alert in listed(dag.deadline)],
                "after": [asset.uri for asset in getattr(dag.timetable.asset_condition, "objects", [])],
                "max_active_runs": dag.max_active_runs,
                "catchup": dag.catchup,
                "timeout": dag.dagrun_timeout.total_seconds(),
                "doc": dag.doc_md,
                "params": dag.params.dump(),
            }
            for name, dag in bag.dags.items()
        },
    }


if __name__ == "__main__":
    dags = Path(sys.argv[1])
    scenarios = json.load(sys.stdin)
    with contextlib.redirect_stdout(sys.stderr):  # Airflow logs to stdout
        answer = [play(scenario, dags) for scenario in scenarios] if scenarios else describe(dags)
    print("\n" + json.dumps(answer))
