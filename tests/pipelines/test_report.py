"""The rollout report: what it says, where it draws, what it does without, and that it loads nothing."""

import copy
import functools
import html
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from models.errors import InputError
from pipelines.report import render, write_report
from pipelines.report import svg as pictures
from pipelines.report.reading import Reading
from pipelines.report.svg import Part, Point, Scale
from pipelines.report.text import Range, short
from pipelines.report.verdict import sentence

SUMMARIES = Path(__file__).parent / "summaries"
VOID = {"meta", "link", "br"}


def summary(name: str = "week") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((SUMMARIES / f"{name}.json").read_text())
    return found


def text_of(page: str) -> str:
    """What a reader sees: no styles, no markup, one space between words."""
    body = re.sub(r"<style>.*?</style>|<head>.*?</head>", " ", page, flags=re.S)
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]*>", " ", body)))


@functools.cache
def page_of(name: str) -> str:
    return render(summary(name))


class Tree(HTMLParser):
    """Checks that elements close in order and keeps what the tests ask about."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


# What is said


@pytest.mark.parametrize(
    "said",
    [
        # lineage, counts and scoring as the summary gives them
        "29 March 2026, 06:14 UTC",
        "9f2c41d07be1a35e",
        "4be1c9d27a90f3b1c2d4e5f60718293a4b5c6d7e",
        "2026-03-01 to 2026-03-28",
        "Decisions read: 412,345 ✓ adds up to the row",
        "kept 410,470 (99.5%) exact duplicates 1,204 (0.29%) quarantined 671 (0.16%)",
        "too_late 412 missing_feature:relevance 203 propensity_range 31 clock_ahead 17 duplicate_conflict 8",
        "mature 408,260 (99.5%) immature, waiting 2,210 (0.54%)",
        "silent 3,012 warm up 98,210 truncated 6,204 terminal 312",
        "6,000 candidates scored",
        "4,212 (70.2%)",
        "1 min 14 s",
        "Raw events: 1 of 2 met",
        # overlap: 911.46 / 1811 = 0.503; 0.9962345 ± 0.0131
        "911 50% of users 0.63% 0.996 ± 0.013 99.9%",
        "Seeds agree on the best action in 96.3% of validation rows",
        "Population of 8 members",
        "send 1.009 ± 0.012 289,889",
    ],
)
def test_the_figures_given_appear(said: str) -> None:
    assert said in text_of(page_of("week"))


def judged() -> dict[str, Any]:
    found = summary()
    found["verdict"]["metrics"] = {"clicks": {"direction": "up", "margin": 0.02}}
    candidate = found["evaluation"]["policies"][found["verdict"]["candidate"]]
    candidate["segments"] = {
        "tenure_days up to 90": {"users": 512, "metrics": {"clicks": {"relative": 0.04, "se": 0.01}}},
        "tenure_days above 90": {"users": 1299, "metrics": {"clicks": {"relative": -0.031, "se": 0.01}}},
    }
    candidate["disagreement"] = {"wpdis": {"clicks": {"relative": 0.002, "se": 0.001}}, "wdr": {}}
    candidate["floors"] = {"weekly_active_days": 2.5, "sends": 3.0}
    return found


@pytest.mark.parametrize(
    "said",
    [
        # 4 +- 1.96, -3.1 +- 1.96 and 0.2 +- 0.196 per cent
        "tenure_days up to 90 512 +4.0% +2.0% to +6.0%",
        "tenure_days above 90 1,299 −3.1% −5.1% to −1.1%",
        "Weighted per-decision importance sampling +0.200% +0.004% to +0.396%",
        "is worth at least, with the gate’s confidence each: Weekly-active days 2.5 days per user-week (empirical",
    ],
)
def test_segments_agreement_and_floors_of_the_candidate_are_told(said: str) -> None:
    assert said.lower() in text_of(render(judged())).lower()


def test_a_run_without_segments_shows_no_table_of_them() -> None:
    tree = Tree(page_of("week"))
    assert not [each for each in tree.all("div") if each.get("id") in ("segments", "agreement")]
    tree = Tree(render(judged()))
    assert len([each for each in tree.all("div") if each.get("id") in ("segments", "agreement")]) == 2


@pytest.mark.parametrize("name", ["week", "decision"])
def test_every_estimate_interval_and_truth_is_in_the_table(name: str) -> None:
    given = summary(name)
    text = text_of(render(given))
    for policy in given["evaluation"]["policies"].values():
        for metrics in policy["estimates"].values():
            for key, figures in metrics.items():
                value, spread = Range.of(figures, 100 if key == "ctr" else 1).texts("%" if key == "ctr" else "")
                assert f"{value} {spread}".strip() in text


def test_no_figure_has_more_digits_than_a_reader_can_use() -> None:
    assert re.findall(r"\d\.\d{6,}", text_of(page_of("week"))) == []
    assert re.findall(r"\d\.\d{6,}", text_of(page_of("decision"))) == []


def test_relative_difference_is_over_the_logging_policy_on_the_same_rows() -> None:
    """Test rows: V(mu) = 2, difference 0.1 in [-0.02, 0.2], so +5% in [-1%, +10%]; the 4 of all rows is not it."""
    evaluation = {
        "components": ["clicks"],
        "units": {"clicks": "clicks"},
        "policies": {
            "old": {"rows": "all", "estimates": {}},
            "new": {
                "rows": "test",
                "learned": True,
                "estimates": {
                    "dr": {
                        "clicks": {
                            "estimate": 2.1,
                            "low": 1.9,
                            "high": 2.3,
                            "difference": {"estimate": 0.1, "low": -0.02, "high": 0.2},
                        }
                    }
                },
            },
        },
        "logging_by_rows": {"all": {"clicks": {"estimate": 4.0}}, "test": {"clicks": {"estimate": 2.0}}},
    }
    reading = Reading(evaluation, {"candidate": "new"}, {})
    (metric,), (_, entry) = reading.metrics, reading.policies
    relative = reading.relative(reading.quoted(entry, metric), entry.rows, metric)
    assert relative is not None
    assert (relative.value, relative.low, relative.high) == pytest.approx((0.05, -0.01, 0.10))


def test_a_loss_of_a_negative_value_is_still_a_loss() -> None:
    """V(mu) = -4, difference -1 in [-2, -0.4]: -25% in [-50%, -10%]."""
    evaluation = {
        "components": ["margin"],
        "policies": {"p": {}},
        "logging_by_rows": {"all": {"margin": {"estimate": -4.0}}},
    }
    reading = Reading(evaluation, {}, {})
    relative = reading.relative(
        {"difference": {"estimate": -1.0, "low": -2.0, "high": -0.4}}, "all", reading.metrics[0]
    )
    assert relative is not None
    assert (relative.value, relative.low, relative.high) == pytest.approx((-0.25, -0.5, -0.1))


@pytest.mark.parametrize(("passed", "said"), [(True, "✓ held"), (False, "✕ not held"), (None, "? could not be shown")])
def test_a_check_says_whether_it_held(passed: bool | None, said: str) -> None:
    given = summary("decision")
    given["verdict"]["checks"] = [{"name": "ess", "passed": passed, "found": 8.2134, "needed": "at least 10 users"}]
    text = text_of(render(given))
    assert f"Effective sample size {said} 8.21 at least 10 users" in text
    assert f"The gate’s checks: {int(passed is True)} of 1 held" in text


@pytest.mark.parametrize(
    ("verdict", "said", "tone"),
    [
        ("PROMOTE", "With 97.5% confidence, the log shows that ddqn_cql is an improvement and keeps", "good"),
        ("REFUSE", "With 97.5% confidence, the log shows that ddqn_cql would harm a guarded metric", "bad"),
        ("INCONCLUSIVE", "With 97.5% confidence, the log is not enough to promote ddqn_cql, and does not show", "open"),
    ],
)
def test_the_verdict_in_one_sentence(verdict: str, said: str, tone: str) -> None:
    given = summary()
    given["verdict"]["verdict"] = verdict
    page = render(given)
    assert said in text_of(page)
    assert f'<div class="verdict {tone}">' in page
    assert text_of(page).index(verdict.capitalize()) < text_of(page).index("against today’s policy")


def test_a_verdict_without_a_confidence_claims_none() -> None:
    assert sentence({"verdict": "REFUSE", "candidate": "x"}).startswith("The log shows that x would harm")


def test_an_unknown_verdict_is_an_error_and_leaves_the_old_report(tmp_path: Path) -> None:
    path = tmp_path / "new" / "report.html"
    write_report(summary(), path)
    before = path.read_bytes()
    given = summary()
    given["verdict"]["verdict"] = "MAYBE"
    with pytest.raises(InputError, match=r"found 'MAYBE'.*PROMOTE, REFUSE, INCONCLUSIVE.*tactful promote"):
        write_report(given, path)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]


@pytest.mark.parametrize(
    ("largest", "said", "statuses"),
    [
        (None, "No rollout share could be certified", ["not certified"] + 4 * ["not examined"]),
        (0.2, "up to 20% of traffic, the logging policy for the other 80%", 2 * ["certified"] + ["not certified"]),
        (1.0, "own choices decide for everybody", 5 * ["certified"]),
    ],
)
def test_the_share_of_traffic_certified(largest: float | None, said: str, statuses: list[str]) -> None:
    given = summary()
    given["verdict"]["largest_share"] = largest
    page = render(given)
    assert said in text_of(page)
    found = re.findall(r'data-label="Gate"[^>]*>([^<]*)<', page)
    assert found == statuses + (5 - len(statuses)) * ["not examined"]


def test_truth_is_marked_by_whether_the_interval_holds_it() -> None:
    given = summary()
    policies = given["evaluation"]["policies"]
    policies["ddqn_cql"]["truth"]["clicks"] = {"value": 99.0}
    text = text_of(render(given))
    assert re.search(r"99\.000? ✕ outside interval", text)
    assert "True value" not in text_of(page_of("decision"))


def test_bounds_of_a_check_are_read_in_per_cent() -> None:
    text = text_of(page_of("week"))
    assert "+3.4%, at worst 1.9% better" in text
    assert "Weekly-active days: estimated 1.10% better" in text


# What is drawn


def test_an_interval_lies_where_it_should() -> None:
    """On [-10, 10]: 0 at 50%; 2 at (2 + 10) / 20 = 60%; 5 at 75%; 3 at 65%; the margin -2 at 40%."""
    bar = str(pictures.interval_bar(Range(3, 2, 5), Scale(-10, 10), "t", "good", bound=-2))
    assert '<line x1="60.00%" y1="19" x2="75.00%" y2="19" class="whisker good"/>' in bar
    assert '<circle cx="65.00%" cy="19"' in bar
    assert '<line x1="50.00%" y1="0" x2="50.00%" y2="38" class="zero"/>' in bar
    assert '<line x1="40.00%" y1="0" x2="40.00%" y2="38" class="bound"/>' in bar
    assert "arrow" not in bar


@pytest.mark.parametrize(
    ("found", "arrows", "dots"), [(Range(-50, -60, 3), 1, 0), (Range(0, -11, 11), 2, 1), (Range(1, -10, 10), 0, 1)]
)
def test_what_leaves_the_picture_ends_in_an_arrow(found: Range, arrows: int, dots: int) -> None:
    bar = str(pictures.interval_bar(found, Scale(-10, 10), "t", "bad"))
    assert (bar.count('class="arrow'), bar.count("<circle")) == (arrows, dots)


def test_a_point_lies_where_it_should() -> None:
    """x = 50 in [40, 60], on 0..50: air 0.12 x 50 = 6, so [-3, 56], stretched by the interval to [-3, 60], and by 3% of
    63 to [-4.89, 61.89]; across 60..414 of 430: 60 + 354 x 54.89 / 66.78 = 350.97. y = x, upwards from 284 to 14:
    284 - 270 x 54.89 / 66.78 = 62.07."""
    picture = str(
        pictures.scatter(
            [Point("p", Range(50, 40, 60), Range(50, 40, 60), "accent", "tip")], "x", "y", (short, short), "t"
        )
    )
    assert '<circle cx="351.0" cy="62.1" r="5" class="dot accent">' in picture


def test_parts_of_a_whole_keep_their_share_and_rare_ones_stay_visible() -> None:
    """300 : 100 of 400 are 75% and 25%; 1 of 1,000,000 is widened to 0.4%, which the widest gives up."""
    picture = str(pictures.stacked([Part("a", 300, "good"), Part("b", 100, "bad")], "t"))
    assert 'x="0.00%" y="0.0" width="75.00%"' in picture
    assert 'x="75.00%" y="0.0" width="25.00%"' in picture
    rare = str(pictures.stacked([Part("a", 999_999, "good"), Part("b", 1, "bad"), Part("c", 0, "neutral")], "t"))
    assert 'width="99.60%"' in rare
    assert 'x="99.60%" y="0.0" width="0.40%"' in rare
    assert rare.count("<rect") == 2


def test_ticks_are_round_and_inside() -> None:
    assert pictures.ticks(-22, 31) == [-20.0, 0.0, 20.0]
    assert pictures.ticks(-0.05, 0.3) == [0.0, 0.1, 0.2, 0.3]


def test_rows_that_do_not_add_up_are_called_out() -> None:
    given = summary()
    given["rows"]["decisions"]["kept"] -= 3
    assert "✕ 3 rows unaccounted for" in text_of(render(given))


# What is missing


@pytest.mark.parametrize("name", ["week", "decision"])
@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("verdict", "No verdict: the gate has not judged this run."),
        ("evaluation", "No evaluation in this run."),
        ("rows", "No row counts in this run."),
        ("quality", "No expectations were checked in this run."),
        ("training", "No learning curves in this run."),
        ("scoring", "Nothing was scored in this run."),
        ("lineage", "No lineage was recorded."),
        ("seconds", "Lineage"),
        ("created_at", "Tactful rollout report · –"),
    ],
)
def test_a_missing_section_is_said_to_be_missing(name: str, key: str, said: str) -> None:
    given = summary(name)
    given.pop(key)
    assert said in text_of(render(given))
    given[key] = None
    assert said in text_of(render(given))


def test_a_log_without_clicks_is_drawn_with_what_it_has() -> None:
    text = text_of(page_of("decision"))
    assert "Log steps post 30m against notifications sent" in text
    assert "Always send against Never send" in text
    assert "+0.12 −0.02 to +0.25" in text
    assert "No mixtures of the candidate" in text
    assert "Click-through rate clicks per" not in text


def test_nulls_everywhere_still_make_a_page() -> None:
    def emptied(found: Any) -> Any:
        if isinstance(found, dict):
            return {
                key: value if key in {"verdict", "rows", "per"} and isinstance(value, str) else emptied(value)
                for key, value in found.items()
            }
        if isinstance(found, list) and found and not isinstance(found[0], str):
            return [emptied(value) for value in found]
        return None if isinstance(found, int | float) and not isinstance(found, bool) else found

    text = text_of(render(emptied(summary())))
    assert "Promote" in text
    assert not re.search(r"\b(None|nan|NaN)\b", text)


# What it must not do


@pytest.mark.parametrize("name", ["week", "decision"])
def test_the_page_is_well_formed_and_loads_nothing(name: str) -> None:
    page = page_of(name)
    tree = Tree(page)
    assert not re.search(r"https?://|//[a-z]|@import|url\(", page)
    assert {tag for tag, _ in tree.elements} & {"script", "img", "iframe", "object", "embed", "image", "use"} == set()
    assert [link["href"] for link in tree.all("link")] == ["data:,"]
    anchors = [str(a["href"]) for a in tree.all("a")]
    ids = [str(attributes["id"]) for _, attributes in tree.elements if "id" in attributes]
    assert sorted(ids) == sorted(set(ids))
    assert {a.removeprefix("#") for a in anchors} <= set(ids)
    assert "default-src 'none'" in str([meta.get("content") for meta in tree.all("meta")])


@pytest.mark.parametrize("name", ["week", "decision"])
def test_tables_and_pictures_can_be_heard(name: str) -> None:
    page = page_of(name)
    tree = Tree(page)
    assert all(cell.get("scope") in {"col", "row", "rowgroup"} for cell in tree.all("th"))
    assert page.count("<table") == page.count("<caption")
    pictured = re.findall(r"<svg [^>]*role=\"img\"><title>([^<]+)</title>", page)
    assert len(pictured) == page.count('role="img"') > 10


@pytest.mark.parametrize(
    "hostile", ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "a'b & <b>{{ 7 * 7 }}"]
)
def test_hostile_names_are_shown_not_run(hostile: str) -> None:
    given = summary()
    text = (
        json.dumps(given).replace("ddqn_cql", json.dumps(hostile)[1:-1]).replace("too_late", json.dumps(hostile)[1:-1])
    )
    given = json.loads(text)
    given["name"] = hostile
    given["verdict"]["reasons"] = [f"{hostile}: because"]
    given["lineage"]["commit"] = hostile
    page = render(given)
    assert hostile not in page
    assert hostile in html.unescape(page)
    assert {tag for tag, _ in Tree(page).elements} & {"script", "img", "b"} <= {"b"}
    assert page.count("<b>") == page_of("week").count("<b>")


def test_the_summary_is_left_as_it_was_and_the_page_is_the_same_again() -> None:
    given = summary()
    before = copy.deepcopy(given)
    assert render(given) == render(given)
    assert given == before


def test_a_learned_reward_stands_beside_what_was_written_by_hand():
    found = summary()
    assert "Learned reward" not in page_of("week")
    found["verdict"]["learned_rewards"] = {
        "liked": {
            "kind": "network",
            "version": 3,
            "distance": {
                "decisions": 1000,
                "ess": 600.0,
                "chi2": 0.67,
                "kl": 0.2,
                "outside": 0.25,
                "learned_rows": 400,
            },
            "learned": {"estimate": 0.4, "low": 0.3, "high": 0.5},
            "hand_written": {
                "clicks": {"estimate": -0.02, "low": -0.03, "high": -0.01},
                "written": {"estimate": None, "low": None, "high": None},
            },
        }
    }
    found["verdict"]["reasons"].append("Warning: learned:liked: the candidate gains, and clicks lose.")
    page = render(found)
    Tree(page)
    text = text_of(page)
    assert "Learned reward Liked, version 3 (network)" in text
    assert "Liked (learned) +0.40 +0.30 to +0.50 Clicks −0.020 −0.030 to −0.010 Hand-written return –" in text
    assert "worth 60% of their number to the candidate; 25% of its actions lie outside the 400 rows" in text
    assert "Warning: learned:liked: the candidate gains" in text
