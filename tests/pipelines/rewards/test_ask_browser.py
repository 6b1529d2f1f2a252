"""The page that asks, in a real browser with the network off: answered by keyboard, kept, saved, read and fitted."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from models.rewards import answers
from models.rewards.asking import Question, with_repeats
from models.rewards.preferences import PreferenceConfig, fit, random_pairs
from models.rewards.weeks import Weeks, weeks_of
from models.table import Transitions
from pipelines.rewards.page import render
from tests.browser import CHROMIUM, CUT_OFF, Page
from tests.pipelines.monitored import HOSTILE
from tests.pipelines.rewards.simulated import log

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH: the page is not opened in a browser")

WORDS = {"name": "demo", "rater": "ann", "file": "answers-ann.jsonl", "command": "tactful rewards fit demo.toml mine"}
RULE = {"sends": -0.6, "clicks": 2.0, "visits": 0.5}
"""How the person at the keyboard answers: the larger sum is better, and within TIE of one another is a tie."""
TIE = 0.25
KEY = {"left": "ArrowLeft", "right": "ArrowRight", "tie": " "}
SHOWN = "document.getElementById('title').textContent"
SAID = "document.getElementById('said').textContent"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    found = Page(tmp_path_factory.mktemp("profile"))
    yield found
    found.close()


@pytest.fixture(scope="module")
def weeks() -> Weeks:
    return weeks_of(log())


def questions(weeks: Weeks, n: int, repeats: int = 0, seed: int = 6) -> list[Question]:
    chosen = random_pairs(weeks, np.zeros((0, 2), dtype=np.int64), n - repeats, np.random.default_rng(seed))
    return with_repeats(chosen, repeats, seed)


def written(folder: Path, table: Transitions, asked: list[Question], **words: str) -> Path:
    path = folder / "ask.html"
    path.write_text(render(table, weeks_of(table), asked, 7.0, {**WORDS, **words}), encoding="utf-8")
    return path


def by_rule(weeks: Weeks, asked: Question) -> answers.Side:
    worth = np.array([RULE.get(name, 0.0) for name in log().contract.rewards])
    gap = float((weeks.totals[asked.left] - weeks.totals[asked.right]) @ worth)
    return "tie" if abs(gap) <= TIE else "left" if gap > 0 else "right"


def test_twenty_pairs_by_keyboard_teach_the_rule_that_answered(page: Page, tmp_path: Path, weeks: Weeks) -> None:
    asked = questions(weeks, 20, repeats=2)
    path = written(tmp_path, log(), asked)
    page.open(path, 1280)
    page.save_to(tmp_path)
    said = [by_rule(weeks, each) for each in asked]
    assert set(said) == {"left", "right", "tie"}

    for place, side in enumerate(said):
        assert page.evaluate(SHOWN) == f"Pair {place + 1} of 20: which went better?"
        if place == 4:
            # A slip, taken back.
            page.press(KEY["right" if side == "left" else "left"])
            assert page.evaluate(SHOWN).startswith("Pair 6")
            page.press("u")
            assert (page.evaluate(SHOWN)[:6], page.evaluate(SAID)) == ("Pair 5", "Taken back.")
        if place == 11:
            page.reload()
            assert page.evaluate(SAID) == "11 answers of an earlier visit are here."
            assert page.evaluate(SHOWN).startswith("Pair 12")
        page.press("ArrowDown" if side == "tie" and place % 2 else KEY[side])
    assert page.evaluate(SHOWN) == "All pairs are answered"
    told = page.evaluate("document.getElementById('consistency').textContent")
    assert told == "2 of the pairs came twice with their sides swapped; the answer was the same on 2."
    page.press("s")
    page.downloaded()

    assert page.evaluate(SAID) == "20 of 20 answers saved."
    assert page.complaints == []
    found = answers.read([tmp_path / "answers-ann.jsonl"])
    names = [(str(weeks.id[each.left]), str(weeks.id[each.right])) for each in asked]
    assert [(each.left, each.right) for each in found.pairs] == names
    assert [each.answer for each in found.pairs] == said
    assert found.raters == ("ann",)
    lines = [json.loads(line) for line in (tmp_path / "answers-ann.jsonl").read_text().splitlines()]
    assert sum(line["again"] for line in lines) == 2
    assert all(line["seconds"] >= 0 for line in lines)
    learned = fit(weeks, log().contract.rewards, found, PreferenceConfig(components=tuple(RULE)), intervals=False)
    assert np.sign(learned.weights).tolist() == np.sign(list(RULE.values())).tolist()


def test_a_file_saved_half_way_holds_what_was_answered(page: Page, tmp_path: Path, weeks: Weeks) -> None:
    page.open(written(tmp_path, log(), questions(weeks, 6, seed=8), rater="bob", file="half.jsonl"), 1280)
    page.save_to(tmp_path)

    page.press("s")
    for key in ("ArrowRight", "ArrowRight", "Backspace", "ArrowLeft"):
        page.press(key)
    page.evaluate("document.getElementById('save').click()")
    page.downloaded()

    found = answers.read([tmp_path / "half.jsonl"])
    assert [each.answer for each in found.pairs] == ["right", "left"]
    assert list(tmp_path.glob("half*")) == [tmp_path / "half.jsonl"], "an empty file was saved"


def test_answers_of_other_questions_are_not_taken_up(page: Page, tmp_path: Path, weeks: Weeks) -> None:
    page.open(written(tmp_path, log(), questions(weeks, 5, seed=9)), 1280)
    page.press("ArrowLeft")
    page.open(written(tmp_path, log(), questions(weeks, 5, seed=10)), 1280)
    assert page.evaluate(SHOWN).startswith("Pair 1 of 5")


def test_what_was_kept_and_is_no_answer_is_left_alone(page: Page, tmp_path: Path, weeks: Weeks) -> None:
    path = written(tmp_path, log(), questions(weeks, 5, seed=11))
    for spoilt in ("{", "7", '[{"answer": "up", "seconds": 1}]', '[{"answer": "left"}]', "[null]"):
        page.open(path, 1280)
        page.evaluate(f"localStorage.setItem(store, {json.dumps(spoilt)})")
        page.reload()
        assert page.evaluate(SHOWN).startswith("Pair 1 of 5"), spoilt
        page.press("ArrowRight")
        assert page.evaluate(SHOWN).startswith("Pair 2 of 5"), spoilt
        page.press("u")
    assert page.complaints == []


def test_a_browser_that_keeps_nothing_is_told_and_goes_on(page: Page, tmp_path: Path, weeks: Weeks) -> None:
    broken = (
        "Object.defineProperty(window, 'localStorage', { get() { throw new DOMException('no', 'SecurityError'); } })"
    )
    script = page.call("Page.addScriptToEvaluateOnNewDocument", source=broken)["identifier"]
    page.open(written(tmp_path, log(), questions(weeks, 3, seed=12)), 360)
    page.call("Page.removeScriptToEvaluateOnNewDocument", identifier=script)

    assert "save before you close it" in page.evaluate("document.getElementById('kept').textContent")
    page.press("ArrowLeft")
    assert page.evaluate(SHOWN).startswith("Pair 2 of 3")
    assert page.complaints == []
    # Whoever leaves is asked whether to lose what was answered.
    page.dialogs.clear()
    page.reload()
    assert page.dialogs == ["beforeunload"]


def test_a_key_held_down_and_a_shortcut_are_no_answers(page: Page, tmp_path: Path, weeks: Weeks) -> None:
    page.open(written(tmp_path, log(), questions(weeks, 5, seed=13)), 1280)
    for _ in range(3):
        page.call("Input.dispatchKeyEvent", type="rawKeyDown", key="ArrowLeft", autoRepeat=_ > 0)
    page.call("Input.dispatchKeyEvent", type="rawKeyDown", key="ArrowLeft", modifiers=1)
    assert page.evaluate(SHOWN).startswith("Pair 2 of 5")


def test_space_presses_the_button_that_has_the_focus(page: Page, tmp_path: Path, weeks: Weeks) -> None:
    page.open(written(tmp_path, log(), questions(weeks, 5, seed=14)), 1280)
    page.evaluate("document.getElementById('choose-right').focus()")
    page.press(" ")
    assert (page.evaluate(SHOWN)[:11], page.evaluate(SAID)) == ("Pair 2 of 5", "Right was better.")
    # The focus went to the new question, where space is a tie.
    assert page.evaluate("document.activeElement.id") == "title"
    page.press(" ")
    assert page.evaluate(SAID) == "A tie."


DRAWN = """
JSON.stringify(Object.fromEntries(['left', 'right'].map((side) => {
  const box = document.getElementById(side + '-timeline');
  const rows = [...box.querySelectorAll('.row > svg')];
  const at = (e) => 24 * rows.indexOf(e.closest('.row > svg')) + 0.24 * parseFloat(e.getAttribute('cx'));
  const count = (what) => box.querySelectorAll(what).length;
  return [side, {
    sent: [...box.querySelectorAll('.sent')].map(at), clicked: count('.sent.clicked'), late: count('.late'),
    ended: count('.ended'),
  }];
})))
"""
"""Of each side: hours of the sends since the first row's midnight, and how many signs of each kind."""


def test_what_is_drawn_is_what_happened(page: Page, tmp_path: Path, weeks: Weeks) -> None:
    """Against the table, by its own columns: hours of the clock from the state, clicks and switching off by row."""
    table, asked = log(), questions(weeks, 40, seed=16)
    rewards, features = table.contract.rewards, table.contract.features
    page.open(written(tmp_path, table, asked), 1280)
    ended = 0
    for each in asked:
        drawn = json.loads(page.evaluate(DRAWN))
        for side, place in (("left", each.left), ("right", each.right)):
            rows = np.arange(weeks.first[place], weeks.end[place])
            sine, cosine = (table.state[rows, features.index(f"hour_{part}")] for part in ("sin", "cos"))
            hour = np.arctan2(sine, cosine) / (2 * np.pi) % 1 * 24
            since = (table.decided_at[rows] - table.decided_at[rows[0]]) / 3.6e9
            clicks, disables = (table.reward[rows, rewards.index(name)] for name in ("clicks", "disables"))
            sent = table.action[rows] == 1
            # Minutes of the decisions, and seconds of the clock at the start, are rounded; no clock changed in January.
            first = (hour[0] - (table.decided_at[rows[0]] - weeks.start[place]) / 3.6e9) % 24
            into = (table.decided_at[rows[0]] - weeks.start[place]) / 3.6e9
            assert drawn[side]["sent"] == pytest.approx((first + into + since)[sent], abs=0.02)
            assert drawn[side]["clicked"] == (clicks[sent] > 0).sum()
            assert drawn[side]["late"] == (clicks[~sent] > 0).sum()
            assert drawn[side]["ended"] == ((disables > 0) | table.terminal[rows]).sum()
            ended += drawn[side]["ended"]
        page.press("ArrowRight")
    assert ended > 0, "nobody switched off in these weeks"


@pytest.mark.parametrize("width", [1280, 360])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everything_fits_and_can_be_read(page: Page, tmp_path: Path, weeks: Weeks, width: int, scheme: str) -> None:
    path = written(tmp_path, log(), questions(weeks, 2, seed=width), rater=scheme)
    page.open(path, width, scheme)
    page.evaluate("document.querySelectorAll('details').forEach((e) => { e.open = true; })")

    assert page.complaints == []
    assert [url for url in page.requests if not url.startswith("data:")] == [path.as_uri()]
    # Eight days of the calendar on each side.
    assert page.evaluate("document.querySelectorAll('.timeline .row > svg').length") == 16
    for end in (False, True):
        assert page.evaluate("document.getElementById('done').hidden") is not end
        found = json.loads(page.evaluate(CUT_OFF))
        assert (found["wide"], found["outside"]) == (0, [])
        assert page.evaluate(CONTRAST) == []
        page.press("ArrowLeft")
        page.press("ArrowLeft")


CONTRAST = """
(() => {
  const parts = (text) => text.match(/[\\d.]+/g).slice(0, 3).map(Number);
  const light = (text) => parts(text).map((v) => v / 255)
    .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const paper = (e) => {
    for (let at = e; at; at = at.parentElement) {
      const colour = getComputedStyle(at).backgroundColor;
      if (!/, 0\\)$/.test(colour)) return colour;
    }
  };
  return [...document.querySelectorAll('h1, h2, p, th, td span, summary, li, b, kbd, .day, .scale span')]
    .filter((e) => e.getClientRects().length && e.textContent.trim() && !e.closest('button:disabled'))
    .filter((e) => {
      const [a, b] = [light(getComputedStyle(e).color), light(paper(e))];
      return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05) < 4.5;
    })
    .map((e) => e.tagName + ' ' + e.textContent.trim().slice(0, 30));
})()
"""
"""Texts whose contrast is below 4.5 to 1 (WCAG 2.2, 1.4.3)."""


def test_tab_goes_from_the_question_to_the_answers(page: Page, tmp_path: Path, weeks: Weeks) -> None:
    page.open(written(tmp_path, log(), questions(weeks, 3, seed=15)), 1280)
    page.press("ArrowLeft")
    order = []
    for _ in range(7):
        page.call("Input.dispatchKeyEvent", type="rawKeyDown", key="Tab", windowsVirtualKeyCode=9)
        order.append(page.evaluate("document.activeElement.id || document.activeElement.tagName"))
    assert order == ["SUMMARY", "SUMMARY", "choose-left", "choose-tie", "choose-right", "undo", "save"]
    assert page.evaluate("document.getElementById('said').getAttribute('aria-live')") == "polite"


def test_markup_from_a_log_cannot_run(page: Page, tmp_path: Path) -> None:
    """Names that a log or a configuration chooses: of the log, the rater, an action, a component and its unit."""
    hostile = HOSTILE + "\"'</script><script>document.title = 'run'</script><!--"
    plain = log()
    contract = replace(
        plain.contract,
        actions=("hold", hostile),
        rewards=(*plain.contract.rewards[:2], hostile, *plain.contract.rewards[3:]),
        units={hostile: hostile},
    )
    table = replace(plain, contract=contract)
    words = {"name": hostile, "rater": hostile, "command": hostile, "file": "x.jsonl"}
    page.open(written(tmp_path, table, questions(weeks_of(table), 4), **words), 1280)
    page.evaluate("document.querySelectorAll('details').forEach((e) => { e.open = true; })")
    for key in ("ArrowLeft", "ArrowRight", " ", " "):
        assert page.evaluate("document.title") != "run"
        assert page.evaluate("document.querySelectorAll('img, [onerror]').length + document.scripts.length") == 2
        assert page.evaluate("document.body.innerText.includes('<script>')"), "it is shown as text"
        page.press(key)
    assert page.evaluate(SHOWN) == "All pairs are answered"
    assert page.complaints == []


def test_another_script_would_be_stopped_by_the_page_s_policy(page: Page, tmp_path: Path, weeks: Weeks) -> None:
    path = written(tmp_path, log(), questions(weeks, 3))
    path.write_text(path.read_text().replace("</main>", "<script>document.title = 'run'</script></main>"))
    page.open(path, 1280)
    assert page.evaluate("document.title") != "run"
    assert any("Content Security Policy" in each for each in page.complaints)
