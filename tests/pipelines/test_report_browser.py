"""The report in a real browser with the network off, at a desk's and at a phone's width."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.etl.quality.expect import Validator
from pipelines.monitor import judge_night
from pipelines.monitor.page import write_page
from pipelines.report import write_report
from tests.browser import CHROMIUM, CUT_OFF, Page
from tests.pipelines.monitored import HOSTILE, config_of, hostile_night, night

SUMMARIES = Path(__file__).parent / "summaries"
UNFOLD = "document.querySelectorAll('details').forEach((e) => { e.open = true; })"
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH: the report is not opened in a browser")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    found = Page(tmp_path_factory.mktemp("profile"))
    yield found
    found.close()


@pytest.mark.parametrize("name", ["week", "decision"])
@pytest.mark.parametrize("width", [1280, 390])
def test_the_report_opens_offline_with_nothing_missing(page: Page, tmp_path: Path, name: str, width: int) -> None:
    path = tmp_path / "report.html"
    write_report(json.loads((SUMMARIES / f"{name}.json").read_text()), path)

    page.open(path, width)
    page.evaluate(UNFOLD)

    assert page.complaints == []
    assert [url for url in page.requests if not url.startswith("data:")] == [path.as_uri()]
    assert page.evaluate("getComputedStyle(document.querySelector('.verdict')).display") == "grid", "styles apply"
    layout = json.loads(page.evaluate(CUT_OFF))
    assert layout == {"wide": 0, "outside": [], "collisions": [], "clipped": []}
    page.screenshot(tmp_path / "report.png")
    assert (tmp_path / "report.png").stat().st_size > 50_000


@pytest.mark.parametrize("width", [1280, 390])
def test_a_sweep_of_sixteen_members_has_room(page: Page, tmp_path: Path, width: int) -> None:
    found = {name: json.loads((SUMMARIES / f"{name}.json").read_text()) for name in ("week", "sweep")}
    path = tmp_path / "report.html"
    write_report({**found["week"], "sweep": found["sweep"]}, path)

    page.open(path, width)
    page.evaluate(UNFOLD)

    assert page.complaints == []
    assert json.loads(page.evaluate(CUT_OFF)) == {"wide": 0, "outside": [], "collisions": [], "clipped": []}
    assert page.evaluate("getComputedStyle(document.querySelector('polyline.front')).fill") == "none", "styles apply"


@pytest.mark.parametrize("width", [1280, 390])
def test_long_names_and_large_figures_stay_inside(page: Page, tmp_path: Path, width: int) -> None:
    text = (SUMMARIES / "week.json").read_text()
    text = text.replace("ddqn_cql", "double_q_with_conservatism_and_a_very_long_experiment_name").replace(
        '"visits"', '"' + "W" * 40 + '"'
    )
    given = json.loads(text)
    for metrics in given["evaluation"]["policies"]["always"]["estimates"].values():
        metrics["clicks"] |= {"estimate": 123456789.123, "low": -98765432.1, "high": 323456789.123}
    path = tmp_path / "report.html"
    write_report(given, path)

    page.open(path, width)
    page.evaluate(UNFOLD)

    assert json.loads(page.evaluate(CUT_OFF)) == {"wide": 0, "outside": [], "collisions": [], "clipped": []}


@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_of_a_night_opens_offline_with_nothing_missing(page: Page, tmp_path: Path, width: int) -> None:
    path, report = tmp_path / "monitor.html", night()
    report["agreement"] |= {"otherwise": 500, "pairs": [{"scored": "push", "logged": "hold", "rows": 500}]}
    report["expectations"] = judge_night(Validator(), config_of(tmp_path), report)
    write_page(report, path)

    page.open(path, width)
    page.evaluate(UNFOLD)

    assert page.complaints == []
    assert [url for url in page.requests if not url.startswith("data:")] == [path.as_uri()]
    assert page.evaluate("getComputedStyle(document.querySelector('.verdict')).display") == "grid", "styles apply"
    assert json.loads(page.evaluate(CUT_OFF)) == {"wide": 0, "outside": [], "collisions": [], "clipped": []}


def test_markup_from_a_log_cannot_run(page: Page, tmp_path: Path) -> None:
    """Names that a log or a configuration chooses, in the page of a night and in the rollout report."""
    monitored, rollout, report = tmp_path / "monitor.html", tmp_path / "report.html", hostile_night()
    report["expectations"] = judge_night(Validator(), config_of(tmp_path, actions=["hold", "badge", HOSTILE]), report)
    write_page(report, monitored)
    summary = json.loads((SUMMARIES / "week.json").read_text())
    quoted = json.dumps(HOSTILE)[1:-1]
    renamed = json.dumps(summary).replace('"visits"', f'"{quoted}"').replace('"always"', f'"{quoted} always"')
    write_report({**json.loads(renamed), "name": HOSTILE, "lineage": {HOSTILE: HOSTILE}}, rollout)

    for path in (monitored, rollout):
        page.open(path, 1280)
        page.evaluate(UNFOLD)
        assert page.complaints == []
        assert page.evaluate("document.title") != "run"
        assert page.evaluate("document.querySelectorAll('script, img, [onerror]').length") == 0
        assert page.evaluate("document.body.innerText.includes('<script>')"), "it is shown as text"


def test_markup_that_is_not_escaped_would_be_seen(page: Page, tmp_path: Path) -> None:
    path = tmp_path / "open.html"
    path.write_text(f"<!doctype html><title>x</title>{HOSTILE}")

    page.open(path, 390)

    assert page.evaluate("document.title") == "run"


def test_a_load_from_elsewhere_would_be_seen(page: Page, tmp_path: Path) -> None:
    """The check above can fail: a page that wants a script and an image from a host makes both lists grow."""
    path = tmp_path / "hungry.html"
    path.write_text(
        "<!doctype html><title>x</title><script src='//example.invalid/x.js'></script><p style='width:3000px'>wide"
    )

    page.open(path, 390)

    assert page.complaints
    assert any("example.invalid" in url for url in page.requests)
