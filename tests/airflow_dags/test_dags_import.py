"""Both DAGs, as a real Airflow reads them: no import error, the steps in order, the promises of their documentation."""

import ast
import sys
from pathlib import Path

import pytest

DAGS = Path(__file__).parents[2] / "airflow_dags"
ORDER = {
    "transitions_daily": ["etl", "score"],
    "policy_weekly": ["train", "evaluate", "promote", "report"],
}


@pytest.fixture(scope="module")
def described(airflow) -> dict:
    return airflow.drive()[0]


def test_airflow_imports_both_without_an_error(described):
    assert described["errors"] == {}
    assert set(described["dags"]) == set(ORDER)


def test_they_import_where_the_folder_is_not_on_the_path(airflow):
    """A plain DagBag puts nothing on the path: so it is where the folder is only a part of a bundle."""
    code = (
        "import json, sys; from airflow.dag_processing.dagbag import DagBag; bag = DagBag(sys.argv[1]); "
        "print(); print(json.dumps([sorted(bag.dags), list(bag.import_errors.values())]))"
    )
    done = airflow.run("python", "-c", code, DAGS)
    assert done.stdout.splitlines()[-1:] == ['[["policy_weekly", "transitions_daily"], []]'], done.stdout + done.stderr


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
        assert task["type"] == "TactfulOperator"
        assert task["retries"] >= 2, step
        assert task["retry_delay"] >= 300, step
        assert 0 < task["timeout"] < dag["timeout"], step
        assert task["doc"], step
    assert dag["timeout"] >= sum(task["timeout"] for task in dag["tasks"].values())


def test_only_a_gate_that_said_no_is_a_skip_and_the_report_is_made_all_the_same(described):
    tasks = {step: task for dag in described["dags"].values() for step, task in dag["tasks"].items()}
    assert {step: task["skipped_on"] for step, task in tasks.items() if task["skipped_on"]} == {"promote": [4, 5]}
    assert tasks["report"]["trigger_rule"].lower().endswith("none_failed")


def test_the_configuration_comes_from_the_environment_unless_a_run_names_its_own(airflow):
    code = (
        "import sys; from airflow.dag_processing.dagbag import DagBag; bag = DagBag(sys.argv[1]); print(); "
        "print(*(dag.params.dump()['config'] for dag in bag.dags.values()))"
    )
    assert airflow.run("python", "-c", code, DAGS).stdout.splitlines()[-1] == "tactful.toml tactful.toml"
    done = airflow.run("python", "-c", code, DAGS, TACTFUL_CONFIG="nightly.toml")
    assert done.stdout.splitlines()[-1] == "nightly.toml nightly.toml"


@pytest.mark.parametrize("path", sorted(DAGS.glob("*.py")), ids=lambda path: path.name)
def test_a_dag_file_imports_airflow_the_standard_library_and_its_operator_only(path):
    tree = ast.parse(path.read_text())
    roots = {
        alias.name.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names
    }
    roots |= {(node.module or ".").split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert roots <= {"airflow", "tactful_operator"} | sys.stdlib_module_names
