"""The page of learned weights in a real browser with the network off, at a desk's and at a phone's width."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.rewards import weights_page
from tests.pipelines.rewards.test_fitting import HOSTILE, facts_of_all
from tests.pipelines.test_report_browser import CHROMIUM, CUT_OFF, UNFOLD, Page

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH: the page is not opened in a browser")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    found = Page(tmp_path_factory.mktemp("profile"))
    yield found
    found.close()


@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_opens_offline_with_nothing_missing(page: Page, tmp_path: Path, width: int) -> None:
    path = tmp_path / "rewards.html"
    path.write_text(weights_page.render(facts_of_all(), "people version 1"))

    page.open(path, width)
    page.evaluate(UNFOLD)

    assert page.complaints == []
    assert [url for url in page.requests if not url.startswith("data:")] == [path.as_uri()]
    assert page.evaluate("getComputedStyle(document.querySelector('.verdict')).display") == "grid", "styles apply"
    assert json.loads(page.evaluate(CUT_OFF)) == {"wide": 0, "outside": [], "collisions": [], "clipped": []}


@pytest.mark.parametrize("width", [1280, 390])
def test_what_raters_and_logs_are_called_is_shown_as_text_and_has_room(page: Page, tmp_path: Path, width: int) -> None:
    """A rater called by a script, a component of forty letters, and a weight of a hundred million."""
    text = json.dumps(facts_of_all()).replace('"visits"', '"' + "W" * 40 + '"')
    facts = json.loads(text)
    facts["weights"]["clicks"], facts["intervals"]["clicks"] = 123456789.1, [-98765432.1, 323456789.1]
    path = tmp_path / "rewards.html"
    path.write_text(weights_page.render(facts, "people version 1"))

    page.open(path, width)
    page.evaluate(UNFOLD)

    assert page.complaints == []
    assert page.evaluate("document.querySelectorAll('script').length") == 0
    assert page.evaluate(f"document.body.innerText.includes({json.dumps(HOSTILE)})")
    assert json.loads(page.evaluate(CUT_OFF)) == {"wide": 0, "outside": [], "collisions": [], "clipped": []}
