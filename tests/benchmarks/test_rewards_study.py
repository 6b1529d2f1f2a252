"""`make study-rewards` at toy sizes: its summary, its page, a run that goes on; and the share of the truth's gain."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from typer.testing import CliRunner

from benchmarks.rewards import __main__ as study
from benchmarks.rewards.page import blocks
from benchmarks.rewards.truth import HIDDEN, ratio
from models.errors import InputError
from models.rewards import simulated
from models.rewards.weeks import weeks_of

PAGE = Path(__file__).parents[2] / "docs"


def page_with_marks(folder: Path) -> Path:
    """A page that has every mark of the study, and a word beside them."""
    names = ("settings", "findings", "active", *study.PARTS)
    folder.mkdir()
    page = folder / "rewards.md"
    page.write_text("Kept.\n" + "".join(f"<!-- study {name} -->\n<!-- end -->\n" for name in names))
    return page


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Where a toy run left its results, and the page that it filled."""
    folder = tmp_path_factory.mktemp("study")
    page = page_with_marks(folder / "docs")
    words = ["--small", "--workers", "1", "--out", str(folder / "out"), "--docs", str(page.parent)]
    done = CliRunner().invoke(study.app, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return folder / "out", page


def test_the_summary_has_what_is_asked(small: tuple[Path, Path]) -> None:
    found = json.loads((small[0] / "summary.json").read_text())
    assert set(study.SUMMARY) <= set(found)
    assert {"seconds", "commit", "sizes", "threads"} <= set(found)
    assert found["small"] is True
    assert set(found["gain_of_truth"]) == {"weights", "network"}
    assert set(found["weights_coverage"]) == set(HIDDEN)
    assert found["sizes"]["truth"]["seeds"] == 2


def test_the_page_is_filled_between_its_marks(small: tuple[Path, Path]) -> None:
    text = small[1].read_text()
    assert text.startswith("Kept.\n")
    assert "the figures say nothing" in text
    assert "| network |" in text
    assert "of the gain of one trained on the truth" in text
    for name in ("rewards_truth.svg", "rewards_goal.svg"):
        assert (small[1].parent / name).read_text().startswith("<?xml")


def test_a_run_goes_on_from_what_is_there(small: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is computed twice: parts that are there are read, whatever the parts would do now."""

    def fails(plan: study.Plan) -> dict[str, Any]:
        raise AssertionError("computed again")

    before = (small[0] / "details.json").read_text()
    monkeypatch.setattr(study, "PARTS", dict.fromkeys(study.PARTS, fails))
    study.study(study.Plan(0, 1, small[0], True), list(study.PARTS))
    assert json.loads((small[0] / "details.json").read_text())["parts"] == json.loads(before)["parts"]


def test_every_mark_is_in_the_documents(small: tuple[Path, Path]) -> None:
    details = json.loads((small[0] / "details.json").read_text())
    text = "".join(path.read_text() for path in PAGE.glob("rewards*.md"))
    assert [name for name in blocks(details) if f"<!-- {name} -->" not in text] == []


def test_a_page_without_marks_is_refused(small: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "rewards.md").write_text("nothing here")
    details = json.loads((small[0] / "details.json").read_text())
    with pytest.raises(InputError, match="has no `<!-- study settings -->`"):
        study.fill(tmp_path / "rewards.md", details)
    with pytest.raises(InputError, match="no such page"):
        study.fill(tmp_path / "none.md", details)
    with pytest.raises(InputError, match="'truths' is no part"):
        study._wanted(["truths"])


def test_fiellers_ends_are_where_the_paired_t_is_at_its_quantile() -> None:
    """A second way: at low and high the mean of mine - rho truth is t standard errors from 0."""
    rng = np.random.default_rng(0)
    truth = 1 + 0.2 * rng.normal(size=10)
    mine = 0.9 * truth + 0.1 * rng.normal(size=10)
    found = ratio(mine, truth)
    assert found["ratio"] == pytest.approx(mine.mean() / truth.mean())
    for rho, side in ((found["low"], 1), (found["high"], -1)):
        left = mine - rho * truth
        assert left.mean() / (left.std(ddof=1) / 10**0.5) == pytest.approx(side * stats.t.ppf(0.975, 9))
    assert found["met"] is True


def test_a_constant_share_is_known_exactly() -> None:
    truth = np.array([1.0, 2.0, 4.0])
    found = ratio(0.5 * truth, truth)
    assert (found["ratio"], found["met"]) == (0.5, False)
    # Of three seeds the truth's own gain, 2.33 +- 3.79, is not apart from 0.
    assert found["low"] is None
    # mine - 0.8 truth = -0.3, -0.6, -1.2.
    assert found["margin"]["mean"] == pytest.approx(-0.7)
    found = ratio(0.5 * truth + 5, truth + 10)
    assert (found["low"], found["high"]) == (pytest.approx(0.5), pytest.approx(0.5))


def test_a_rater_answers_by_the_utility(table_of_weeks: Any) -> None:
    """Utility by hand; over many answers the share of `left` is sigma of the gap."""
    weeks = weeks_of(table_of_weeks)
    of_week = simulated.utility(weeks, ("value",), {"value": 0.5})
    assert of_week.tolist() == [3.5, 0.0]
    said = simulated.answers(weeks, np.tile([[0, 1]], (4000, 1)), of_week / 3.5, np.random.default_rng(0))
    share = np.mean([each.answer == "left" for each in said])
    # sigma(1) = 0.731, standard error 0.007.
    assert share == pytest.approx(0.731, abs=0.025)


@pytest.fixture
def table_of_weeks() -> Any:
    from tests.policies.conftest import make_table

    return make_table(["a"] * 14, [0] * 14, [0.5] * 14, [1.0] * 7 + [0.0] * 7)
