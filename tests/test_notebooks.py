"""The notebooks run from a fresh kernel, offline and on one thread, and their assertions can fail."""

import ast
import json
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
FIRST = NOTEBOOKS[0]
REPORT = next(path for path in NOTEBOOKS if path.stem == "02_reading_a_rollout_report")
PARETO = next(path for path in NOTEBOOKS if path.stem == "03_pareto_front")
WORTH = next(path for path in NOTEBOOKS if path.stem == "04_what_is_a_click_worth")

OFFLINE = """
import ipaddress
import socket

_connect = socket.socket.connect


def _local_only(self, address):
    if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] != "localhost":
        if not ipaddress.ip_address(address[0]).is_loopback:
            raise OSError(f"the notebook leaves this machine for {address}")
    return _connect(self, address)


socket.socket.connect = _local_only
"""
"""Before everything else: whoever leaves this machine fails."""

BREAKS = [
    ("adjacency", 'table.loc[0, "elapsed_days"] += 1e-4'),
    ("adjacency", 'table["truncated"] = False'),
    ("week-check", 'week["reward_clicks"] += 1'),
    ("week-check", 'week["reward_weekly_active_days"] += 1e-8'),
    ("balance", "mu = np.full(len(rows), 0.5)"),
    ("conservation-table", 'report["rows"]["transitions"]["silent"] += 1'),
    ("conservation-table", 'report["rows"]["events"]["by_day"]["2026-01-09"]["kept"] -= 1'),
    ("score", 'spoilt["events", "too_late"] += 1'),
    ("identity-check", 'table.loc[table["usable"].idxmax(), "reward_visits"] += 1'),
    ("identity-check", 'table.loc[table["usable"].idxmax(), "reward_weekly_active_days"] += 1e-4'),
]
"""Cell, and a harm that its assertions must notice."""
HARMED = ("table", "week", "report", "spoilt", "mu")
"""What the harms change, and is made whole after each."""
FOUND = '{"rates": [float(from_rows), float(from_visits)], "left_over": float(left_over.max()), "rows": len(table)}'

REPORT_BREAKS = [
    ("propensities", "table = replace(table, propensity=np.where(table.propensity < 1, 0.5, 1.0))"),
    ("naive-check", 'obvious["picky"]["sends"] = truth["picky"]["sends"]["value"]'),
    ("five-check", 'by_hand["weight ρ"] = 1.0'),
    ("one-check", "rho = (rho > 0).astype(float)"),
    ("weights-check", "effective = effective * 1.001"),
    ("weights-check", "first = first * 1.2"),
    ("support-check", "table = replace(table, propensity=np.minimum(table.propensity, 0.3))"),
    ("fit-check", 'spoilt["model halved"] = spoilt["as it is"]'),
    ("fit-check", 'spoilt.loc["dr", "propensities guessed"] = spoilt.loc["wpdis", "propensities guessed"]'),
    ("estimators-plot", 'truth["eager at 50%"]["sends"]["value"] += 0.5'),
    ("again-plot", 'twenty["dr"] += 0.3'),
    ("again-plot", 'twenty["ips"] += true_sends - twenty["ips"].mean()'),
    ("unit-check", 'widths.loc["difference"] *= 4'),
    ("unit-check", 'values["clicks"] = values["clicks"] * 1.5'),
    ("unit-check", "users_error = rows_error"),
    ("judge-check", 'readings["eager"][1]["verdict"] = "PROMOTE"'),
    ("judge-check", 'truth["picky at 30%"]["sends"]["difference"] += 1.0'),
    (
        "judge-check",
        'readings["picky"][0]["policies"]["picky at 30%"]["estimates"]["dr"]["clicks"]["estimate"] += 1e-6',
    ),
    ("pilots-check", 'many["eager at 30%"][0]["verdict"] = "PROMOTE"'),
    ("where", """page = page.replace('id="agreement"', 'id="elsewhere"')"""),
    ("where", 'page = page.replace(">Refuse<", ">Promote<")'),
    ("seeds", "rules = replace(rules, min_agreement=0.95)"),
    ("gamma-check", 'doubtful["verdict"] = "PROMOTE"'),
    ("gamma-check", 'told["metrics"]["clicks"]["low"][5] += 1.0'),
]
REPORT_HARMED = ("table", "truth", "obvious", "by_hand", "rho", "effective", "first", "spoilt", "twenty", "widths",
                 "values", "users_error", "readings", "many", "page", "rules", "doubtful", "told")  # fmt: skip
REPORT_FOUND = '{"verdicts": list(verdicts.values()), "ess": [effective[share] for share in (0.0, SHARE, 1.0)]}'

PARETO_BREAKS = [
    ("price", "wants = {name: 1 - each for name, each in wants.items()}"),
    ("naive", "on_front = set(sorted(on_front)[1:])"),
    ("naive", "values = -values"),
    ("sure-plot", 'members["m01"]["front_probability"] = 1.5'),
    (
        "budget-plot",
        "found = copy.deepcopy(found)\n"
        'found["members"][chosen[0]]["estimates"][ESTIMATOR]["weighted"]["estimate"] = 99.0',
    ),
]
PARETO_HARMED = ("wants", "values", "on_front", "found", "members")
PARETO_FOUND = '{"members": len(members), "farthest": float(np.abs(off).max())}'

WORTH_BREAKS = [
    ("scatter", "weeks.totals[0, 0] += 1"),
    ("trade-check", 'truth["clicks"] += 100'),
    ("trade-check", "hidden = -hidden"),
    ("more-plot", "found[800] = replace(found[800], high=found[800].high + 10)"),
    ("active-plot", 'courses["chosen"] = courses["chosen"] - 1'),
    ("policy-plot", 'value["answers"]["sends"]["difference"] += 5'),
    ("policy-plot", 'value["truth"]["sends"]["difference"] += 50'),
]
WORTH_HARMED = ("weeks", "truth", "hidden", "found", "courses", "value")
WORTH_FOUND = (
    '{"click": [click.low, truth["clicks"], click.high], "needed": needed, '
    '"gain": float(gains["answers"] / gains["truth"])}'
)


def harmless(breaks: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The same cells on data that nobody harmed: else to notice would mean nothing."""
    return [(cell, "pass") for cell in dict(breaks)]


HARM = """
import copy

_whole = {name: copy.deepcopy(globals()[name]) for name in HARMED}
_unnoticed = []
for _cell, _harm in BREAKS:
    exec(_harm)
    try:
        exec(SOURCES[_cell])
        _unnoticed.append([_cell, _harm])
    except AssertionError:
        pass
    globals().update(copy.deepcopy(_whole))
"""

TOLD = """
import json
import torch

print(json.dumps({
    **_found,
    "unnoticed": _unnoticed,
    "threads": torch.get_num_threads(),
    "left_behind": folder.exists(),
}))
"""


def code(source: str) -> Any:
    return nbformat.v4.new_code_cell(source)


def sections(notebook: Any) -> dict[str, list[Any]]:
    """Second-level heading -> the code cells under it."""
    found: dict[str, list[Any]] = {}
    under: list[Any] = []
    for cell in notebook.cells:
        if cell.cell_type == "markdown" and cell.source.startswith("## "):
            under = found.setdefault(cell.source.splitlines()[0].removeprefix("## "), [])
        elif cell.cell_type == "code":
            under.append(cell)
    return found


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_stored_without_outputs_for_the_kernel_that_everybody_has(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    stored = [cell.id for cell in notebook.cells if cell.cell_type == "code" and (cell.outputs or cell.execution_count)]
    assert stored == [], "clear the outputs: pictures make the repository grow with every run"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_section_asserts_what_it_says(path):
    silent = [
        title
        for title, cells in sections(nbformat.read(path, as_version=4)).items()
        if not any(isinstance(node, ast.Assert) for cell in cells for node in ast.walk(ast.parse(cell.source)))
    ]
    assert silent == []


def run(path: Path, breaks: list[tuple[str, str]], harmed: tuple[str, ...], found: str, own: Path) -> Any:
    """A notebook, run; its assertions tried on harmed data before it cleans up, and what it found told."""
    notebook = nbformat.read(path, as_version=4)
    sources = {cell.id: cell.source for cell in notebook.cells}
    *cells, clean = notebook.cells
    given = f"BREAKS = {breaks + harmless(breaks)!r}\nSOURCES = {sources!r}\nHARMED = {harmed!r}\n_found = {found}\n"
    notebook.cells = [code(OFFLINE), *cells, code(given + HARM), clean, code(TOLD)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        # A notebook that fails does not reach the cell that cleans up.
        patch.setenv("TMPDIR", str(own))
        patch.delenv("MPLBACKEND", raising=False)
        for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "MPLCONFIGDIR"):
            patch.setenv(name, str(own / name.lower()))
        NotebookClient(
            notebook, timeout=400, kernel_name="python3", resources={"metadata": {"path": str(path.parent)}}
        ).execute()
    told = "".join(output.text for output in notebook.cells[-1].outputs if output.get("name") == "stdout")
    notebook.cells = [*cells, clean]
    return notebook, json.loads(told)


def pictures(notebook: Any) -> list[int]:
    """How many each numbered section drew."""
    drawn = {
        title: sum("image/png" in output.get("data", {}) for cell in cells for output in cell.outputs)
        for title, cells in sections(notebook).items()
    }
    return [drawn[title] for title in drawn if title[0].isdigit()]


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    return run(FIRST, BREAKS, HARMED, FOUND, tmp_path_factory.mktemp("jupyter"))


def test_it_ran_and_drew(executed):
    notebook, told = executed
    assert pictures(notebook) == [1, 2, 2, 1, 0]
    assert told["rows"] > 10_000
    assert told["threads"] == 1
    assert not told["left_behind"]


def test_the_weekly_active_rate_is_the_same_by_rewards_and_by_visits(executed):
    _, told = executed
    by_rewards, by_visits = told["rates"]
    assert 0.2 < by_rewards < 0.9
    assert abs(by_rewards - by_visits) < 1e-9
    assert told["left_over"] < 1e-6


def test_its_assertions_notice_harm(executed):
    assert executed[1]["unnoticed"] == [list(each) for each in harmless(BREAKS)]


def test_a_report_is_read_from_the_log_to_the_verdict(tmp_path):
    notebook, told = run(REPORT, REPORT_BREAKS, REPORT_HARMED, REPORT_FOUND, tmp_path)
    assert pictures(notebook) == [1, 1, 1, 2, 1, 1, 1]
    assert told["unnoticed"] == [list(each) for each in harmless(REPORT_BREAKS)]
    assert told["verdicts"] == ["INCONCLUSIVE", "PROMOTE", "REFUSE"]
    everybody, first, alone = told["ess"]
    assert alone < 100 < 1000 < first < 0.6 * everybody
    assert (told["threads"], told["left_behind"]) == (1, False)


def test_the_front_is_drawn_chosen_from_and_held_against_the_truth(tmp_path):
    notebook, told = run(PARETO, PARETO_BREAKS, PARETO_HARMED, PARETO_FOUND, tmp_path)
    assert pictures(notebook) == [1, 1, 1, 1, 1]
    assert told["unnoticed"] == [list(each) for each in harmless(PARETO_BREAKS)]
    assert told["members"] == 6
    assert told["farthest"] < 4.5
    assert (told["threads"], told["left_behind"]) == (1, False)


def test_a_click_is_weighed_by_answers_and_a_policy_follows(tmp_path):
    notebook, told = run(WORTH, WORTH_BREAKS, WORTH_HARMED, WORTH_FOUND, tmp_path)
    assert pictures(notebook) == [1, 1, 1, 1, 1]
    assert told["unnoticed"] == [list(each) for each in harmless(WORTH_BREAKS)]
    low, truth, high = told["click"]
    assert low < truth < high
    assert told["needed"]["chosen"] <= told["needed"]["by chance"] <= 200
    assert 0.5 < told["gain"] < 1.5
    assert (told["threads"], told["left_behind"]) == (1, False)
