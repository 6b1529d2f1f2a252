"""The rules of the house: which way imports flow, what is packaged, pinned, explained, and never written down."""

import ast
import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PARTS = ("models", "policies", "pipelines", "airflow_dags")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

FORBIDDEN = {
    "models": {"policies", "pipelines", "pyspark", "airflow"},
    "policies": {"pipelines", "pyspark", "airflow"},
    "pipelines": {"airflow"},
    "airflow_dags": {"models", "policies", "pipelines", "pyspark", "torch"},
}
"""What each part may not import: pipelines -> policies -> models, Spark in pipelines alone, DAGs import none."""


def imported(source: str, package: str = "") -> Iterator[tuple[int, str]]:
    """(line, root module) of every import in a source, wherever it stands; relative ones start at `package`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name.split(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            if above or node.module:
                yield node.lineno, ".".join([*above, node.module or ""]).split(".")[0]
            else:
                yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            yield from ((node.lineno, str(a.value).split(".")[0]) for a in node.args if isinstance(a, ast.Constant))


@pytest.mark.parametrize(
    ("source", "package", "found"),
    [
        ("import pyspark.sql as s", "models", ["pyspark"]),
        ("def f():\n    from policies.ope import ips", "models", ["policies"]),
        ("from .network import Network", "models", ["models"]),
        ("from ..config import Config", "pipelines.etl", ["pipelines"]),
        ("from .. import pipelines", "models", ["pipelines"]),
        ("importlib.import_module('pyspark.sql')", "models", ["pyspark"]),
        ("x = 'import pyspark'", "models", []),
    ],
)
def test_the_reader_of_imports_sees_each_form(source, package, found):
    assert [name for _, name in imported(source, package)] == found


@pytest.mark.parametrize("part", PARTS)
def test_imports_flow_one_way(part):
    files = sorted((ROOT / part).rglob("*.py"))
    assert files
    broken = [
        f"{path.relative_to(ROOT)}:{line}: imports {name}"
        for path in files
        for line, name in imported(path.read_text(), ".".join(path.relative_to(ROOT).parent.parts))
        if name in FORBIDDEN[part]
    ]
    assert broken == []


def test_every_folder_with_python_files_is_packaged():
    folders = {path.parent.relative_to(ROOT) for part in PARTS[:3] for path in (ROOT / part).rglob("*.py")}
    assert {".".join(folder.parts) for folder in folders} == set(PROJECT["tool"]["setuptools"]["packages"])
    assert [str(folder) for folder in folders if not (ROOT / folder / "__init__.py").exists()] == []


def test_every_other_file_of_a_package_is_declared_as_its_data():
    """Else it is there in a checkout and missing where the wheel is installed."""
    data = PROJECT["tool"]["setuptools"].get("package-data", {})
    undeclared = [
        f"{package}: {path.name}"
        for package in PROJECT["tool"]["setuptools"]["packages"]
        for path in (ROOT / package.replace(".", "/")).iterdir()
        if path.is_file() and path.suffix not in {".py", ".pyc"}
        if not any(path.match(pattern) for pattern in data.get(package, []))
    ]
    assert undeclared == []


def test_no_two_test_modules_share_a_name():
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))


# What is never written down. Each pattern is put together here so that this file does not match it.
HOSTS = (
    r"\b(?:py"
    + r"pi|python"
    + r"hosted|deb\.deb"
    + r"ian|registry\.np"
    + r"mjs|download\.py"
    + r"torch)\.(?:org|com)\b"
)
PATHS = "|".join(f"/{root}/" for root in ("wo" + "rk", "ro" + "ot", "fa" + "rm", r"home/\w+", r"Users/\w+"))
WRITTEN = re.compile(f"{HOSTS}|(?<![\\w.}}])(?:{PATHS})")


def tracked() -> list[Path]:
    """Files that git tracks or would, as text."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    if listed.returncode:
        pytest.skip("not a git checkout: nothing says which files belong to it")
    return [ROOT / name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]


@pytest.mark.parametrize(
    ("line", "matches"),
    [
        ("pip install --index-url https://py" + "pi.org/simple", True),
        ("cd /wo" + "rk/main", True),
        ('path = "/ho' + 'me/ann/log"', True),
        ("../shared/data, frame" + "work/main, https://example.org/wo" + "rk/", False),
        ("a wheel from PyPI, PATH, /path/to/file", False),
    ],
)
def test_the_pattern_of_hosts_and_paths(line, matches):
    assert bool(WRITTEN.search(line)) is matches


def test_no_registry_host_and_no_path_of_a_machine_is_written_down():
    found = []
    for path in tracked():
        try:
            lines = path.read_text().splitlines()
        except UnicodeDecodeError:  # a picture
            continue
        found += [f"{path.relative_to(ROOT)}:{n}: {line}" for n, line in enumerate(lines, 1) if WRITTEN.search(line)]
    assert found == []


# The Makefile


def make(*words: str, **env: str) -> subprocess.CompletedProcess[str]:
    clean = {"PATH": "/usr/local/bin:/usr/bin:/bin", **env}
    return subprocess.run(
        ["make", "--no-print-directory", *words], cwd=ROOT, capture_output=True, text=True, env=clean, timeout=60
    )


def test_help_is_the_default_and_explains_every_target():
    source = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z][a-z0-9-]*):", source, re.M))
    phony = set(re.search(r"^\.PHONY: (.*)$", source, re.M)[1].split())
    assert {"demo", "test", "check", "heartsteps", "help"} <= targets == phony
    listed = make()
    assert listed.returncode == 0
    assert {line.split()[1] for line in listed.stdout.splitlines() if len(line.split()) > 2} == targets


def test_check_is_part_of_test_and_ci_runs_test():
    assert re.search(r"^test:.*\bcheck\b", (ROOT / "Makefile").read_text(), re.M)
    assert (ROOT / ".ci" / "run").read_text().rstrip().endswith("make test")


@pytest.mark.parametrize(
    ("version", "said"),
    [
        ('openjdk version "17.0.15" 2025-04-15', None),
        ('openjdk version "25" 2025-09-16', None),
        ('openjdk version "11.0.2" 2019-01-15', "is Java 11"),
        ('java version "1.8.0_292"', "is Java 1."),
        (None, "no Java found"),
    ],
)
def test_demo_says_what_is_missing_before_it_installs_anything(tmp_path, version, said):
    java = tmp_path / "bin" / "java"
    if version:
        java.parent.mkdir()
        java.write_text(f"#!/bin/sh\necho '{version}' >&2\n")
        java.chmod(0o755)
    done = make("java", JAVA_HOME=str(tmp_path))
    assert (done.returncode == 0) == (said is None)
    if said:
        assert said in done.stderr
        assert "openjdk-17-jre-headless" in done.stderr
        failed = make("demo", JAVA_HOME=str(tmp_path))
        assert failed.returncode != 0
        assert failed.stdout == ""


def test_heartsteps_without_its_file_says_where_to_get_it_before_it_installs_anything(tmp_path):
    done = make("heartsteps", f"DATA={tmp_path / 'absent.csv'}")
    assert done.returncode != 0
    assert done.stdout == ""
    for word in (
        "absent.csv: no such file",
        "not part of this repository",
        "klasnja/HeartStepsV1",
        "CC BY 4.0",
        "DATA=PATH",
    ):
        assert word in done.stderr


# Versions


def pins(name: str) -> dict[str, str]:
    """{package: version} of a constraints file, every line of which must be an exact pin of a public version."""
    lines = (ROOT / name).read_text().splitlines()
    assert [line for line in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", line)] == []
    found = dict(line.split("==") for line in lines)
    assert len(found) == len(lines)
    return {canonicalize_name(package): version for package, version in found.items()}


EXTRAS = PROJECT["project"]["optional-dependencies"]


@pytest.mark.parametrize(
    ("constraints", "wanted"),
    [
        ("constraints.txt", PROJECT["project"]["dependencies"] + EXTRAS["dev"]),
        ("constraints-airflow.txt", EXTRAS["airflow"]),
        ("constraints-d3rlpy.txt", ["d3rlpy==2.8.1", "torch==2.13.0"]),
    ],
)
def test_every_dependency_is_pinned_within_its_range(constraints, wanted):
    found = pins(constraints)
    for requirement in map(Requirement, wanted):
        version = found[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(Version(version)), f"{requirement} and {constraints}: {version}"


def test_torch_is_pinned_exactly():
    assert pins("constraints.txt")["torch"] == "2.13.0"


def test_the_version_is_that_of_the_top_entry_of_the_changelog():
    top = re.search(r"^## \[?v?(\d+\.\d+\.\d+)", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert top is not None
    assert top[1] == PROJECT["project"]["version"]
