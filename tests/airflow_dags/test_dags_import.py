"""The DAGs, as a real Airflow reads them: no import error, the steps in order, the promises of their documentation."""

import ast
import json
import sys
from pathlib import Path

import pytest

DAGS = Path(__file__).parents[2] / "airflow_dags"
ORDER = {
    "policy_weekly": ["train", "evaluate", "promote", "report"],
    "scoring_nightly": ["score", "monitor"],
    "transitions_daily": ["lake_ready", "etl", "announce"],
}


@pytest.fixture(scope="module")
def described(airflow) -> dict:
    return airflow.drive()[0]


def test_airflow_imports_all_without_an_error(described):
    assert described["errors"] == {}
    assert set(described["dags"]) == set(ORDER)


def plain(airflow, of_each: str, **env: str) -> list:
    """A value of each DAG, and the errors, of a plain DagBag: it puts nothing on the path, so it is where the folder
    is only a part of a bundle."""
    code = (
        "import json, sys; from airflow.dag_processing.dagbag import DagBag; bag = DagBag(sys.argv[1]); print(); "
        f"found = [({of_each}) for name, dag in sorted(bag.dags.items())]; "
        "print(json.dumps([found, list(bag.import_errors.values())]))"
    )
    done = airflow.run("python", "-c", code, DAGS, **env)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_they_import_where_the_folder_is_not_on_the_path(airflow):
    assert plain(airflow, "name") == [sorted(ORDER), []]


@pytest.mark.parametrize("name", ORDER)
def test_each_step_waits_for_the_one_before(described, name):
    tasks = described["dags"][name]["tasks"]
    following = dict(zip(ORDER[name], [[step] for step in ORDER[name][1:]] + [[]], strict=True))
    assert {step: task["downstream"] for step, task in tasks.items()} == following


@pytest.mark.parametrize("name", ORDER)
def test_one_run_at_a_time_bounded_documented_and_never_caught_up_on(described, name):
    dag = described["dags"][name]
    assert dag["max_active_runs"] == 1
    assert dag["catchup"] is False
    assert len(dag["doc"]) > 200
    for step, task in dag["tasks"].items():
        assert task["retries"] >= 2, step
        assert task["retry_delay"] >= 300, step
        assert 0 < task["timeout"] < dag["timeout"], step
        assert task["doc"], step
    # A sensor that holds no slot between two looks is bounded by its patience.
    assert dag["timeout"] >= sum(task["patience"] or task["timeout"] for task in dag["tasks"].values())


@pytest.mark.parametrize("name", ORDER)
def test_a_person_hears_of_what_fails_and_of_what_is_late(described, name):
    dag = described["dags"][name]
    assert [task["tells"] for task in dag["tasks"].values()] == [["task_failed"]] * len(ORDER[name])
    (deadline,) = dag["deadline"]
    assert 0 < deadline < dag["timeout"]


def test_commands_are_run_by_our_operators(described):
    kinds = {step: task["type"] for dag in described["dags"].values() for step, task in dag["tasks"].items()}
    assert kinds.pop("lake_ready") == "TactfulSensor"
    assert kinds.pop("announce") == "_PythonDecoratedOperator"
    assert set(kinds.values()) == {"TactfulOperator"}
    assert described["dags"]["transitions_daily"]["tasks"]["lake_ready"]["mode"] == "reschedule"


def test_only_a_gate_that_said_no_is_a_skip_and_the_report_is_made_all_the_same(described):
    tasks = {step: task for dag in described["dags"].values() for step, task in dag["tasks"].items()}
    assert {step: task["skipped_on"] for step, task in tasks.items() if task["skipped_on"]} == {"promote": [4, 5]}
    assert tasks["report"]["trigger_rule"].lower().endswith("none_failed")


def test_assets_link_the_dags(described):
    dags = described["dags"]
    outlets = {step: task["outlets"] for dag in dags.values() for step, task in dag["tasks"].items() if task["outlets"]}
    assert outlets == {
        "announce": ["tactful://transitions/"],
        "promote": ["tactful://champion/"],
        "score": ["tactful://scores/"],
    }
    assert {name: dag["after"] for name, dag in dags.items()} == {
        "policy_weekly": [],
        "scoring_nightly": outlets["announce"],
        "transitions_daily": [],
    }
    assert dags["scoring_nightly"]["tasks"]["score"]["inlets"] == outlets["announce"] + outlets["promote"]
    assert dags["policy_weekly"]["tasks"]["train"]["inlets"] == outlets["announce"]


def test_what_the_environment_says_where_the_dags_are_parsed(airflow):
    assert plain(airflow, "dag.params.dump()['config']") == [["tactful.toml"] * 3, []]
    assert plain(airflow, "dag.params.dump()['config']", TACTFUL_CONFIG="nightly.toml") == [["nightly.toml"] * 3, []]
    pools = "sorted({task.task_id: task.pool for task in dag.tasks}.items())"
    found, errors = plain(airflow, pools, TACTFUL_POOL="tactful_spark")
    assert not errors
    by_task = dict(pair for dag in found for pair in dag)
    assert {step for step, pool in by_task.items() if pool == "tactful_spark"} == set(by_task) - {
        "lake_ready",
        "announce",
    }
    minutes = "dag.deadline[0].interval.total_seconds() / 60 if isinstance(dag.deadline, list) else "
    minutes += "dag.deadline.interval.total_seconds() / 60"
    found, _ = plain(airflow, minutes, TACTFUL_DEADLINE_SCORING_NIGHTLY="90")
    assert found == [24 * 60, 90, 6 * 60]
    assert plain(airflow, "dag.deadline", TACTFUL_DEADLINES="off") == [[None] * 3, []]
    _, (error,) = plain(airflow, "name", TACTFUL_DEADLINE_SCORING_NIGHTLY="soon")
    assert "TACTFUL_DEADLINE_SCORING_NIGHTLY is 'soon'; give a number of minutes." in error


@pytest.mark.parametrize("path", sorted(DAGS.glob("*.py")), ids=lambda path: path.name)
def test_a_dag_file_imports_airflow_the_standard_library_and_its_neighbours_only(path):
    tree = ast.parse(path.read_text())
    roots = {
        alias.name.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names
    }
    roots |= {(node.module or ".").split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert roots <= {"airflow", "tactful_alerts", "tactful_operator"} | sys.stdlib_module_names
