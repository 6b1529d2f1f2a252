"""Agreement of a judge with people, by hand and against scikit-learn; and answers that are not read without it."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import binomtest
from sklearn.metrics import cohen_kappa_score

from models.errors import InputError
from models.rewards import answers
from models.rewards.answers import Pair, Side
from models.rewards.judge.trust import agreement, kappa, majority, wilson


def pairs(*said: str, rater: str = "judge:tiny", start: int = 0) -> list[Pair]:
    """Pair n of weeks an and bn."""
    return [Pair(f"a{n}", f"b{n}", side, rater) for n, side in enumerate(said, start)]  # type: ignore[arg-type]


def test_agreement_by_hand() -> None:
    """Ten pairs of people, nine that the judge answered, of which two are ties of either; six of seven agree."""
    people = pairs(*["left"] * 5, *["right"] * 3, "tie", "left", rater="ann")
    judge = pairs("left", "left", "left", "left", "right", "right", "right", "tie", "left")
    found = agreement(judge, people)
    assert (found.pairs, found.unanswered, found.decided, found.agreed) == (9, 1, 7, 6)
    assert found.rate == 6 / 7
    assert found.same == 6 / 9
    # p_e: left 5 of the judge's 9 and 5 of the people's, right 3 and 3, tie 1 and 1.
    chance = (5 * 5 + 3 * 3 + 1 * 1) / 81
    assert found.kappa == pytest.approx((6 / 9 - chance) / (1 - chance))
    assert found.interval == pytest.approx((0.4869, 0.9743), abs=5e-5)


@pytest.mark.parametrize(("k", "n"), [(0, 1), (0, 10), (7, 10), (10, 10), (150, 200), (1, 1000)])
def test_wilson_is_scipys(k: int, n: int) -> None:
    wanted = binomtest(k, n).proportion_ci(0.95, method="wilson")
    assert wilson(k, n) == pytest.approx((wanted.low, wanted.high), abs=1e-12)


def test_kappa_is_scikit_learns() -> None:
    ours: list[Side] = ["left", "right", "tie", "left", "left", "right", "tie", "right", "left", "left"]
    theirs: list[Side] = ["left", "left", "tie", "left", "right", "right", "left", "right", "left", "tie"]
    assert kappa(list(zip(ours, theirs, strict=True))) == pytest.approx(cohen_kappa_score(ours, theirs))
    assert kappa([]) is None
    assert kappa([("left", "left")] * 3) is None


def test_a_pair_is_the_same_whichever_week_is_on_the_left() -> None:
    people = [Pair("a", "b", "left", "ann"), Pair("d", "c", "left", "ann"), Pair("e", "f", "tie", "ann")]
    judge = [Pair("b", "a", "right", "j"), Pair("c", "d", "left", "j"), Pair("f", "e", "tie", "j")]
    found = agreement(judge, people)
    assert (found.pairs, found.decided, found.agreed) == (3, 2, 1)
    assert found.same == 2 / 3


def test_people_are_one_by_majority() -> None:
    said = [
        *[Pair("a", "b", "left", "ann"), Pair("b", "a", "right", "bob"), Pair("a", "b", "right", "cy")],
        *[Pair("d", "c", "left", "ann"), Pair("c", "d", "left", "bob")],
        Pair("e", "f", "right", "ann"),
    ]
    assert majority(said) == {
        frozenset("ab"): "left",
        frozenset("cd"): "tie",
        frozenset("ef"): "right",
    }


def test_trust_is_of_the_lower_end() -> None:
    good = agreement(pairs(*["left"] * 40), pairs(*["left"] * 36, *["right"] * 4, rater="ann"))
    assert good.interval[0] == pytest.approx(0.7695, abs=5e-5)
    assert good.enough(0.76)
    assert not good.enough(0.78)
    assert good.rate == 0.9
    none = agreement([], pairs("left", rater="ann"))
    assert (none.pairs, none.unanswered, none.rate, none.kappa, none.interval) == (0, 1, None, None, (0, 1))
    assert not none.enough(0.0)


# Answers of a judge


def left(folder: Path, facts: Any, rater: str = "judge:tiny") -> Path:
    path = folder / "answers.jsonl"
    answers.write(path, pairs("left", "right", rater=rater))
    if facts is not None:
        if isinstance(facts, dict):
            facts = {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), **facts}
        answers.facts_path(path).write_text(facts if isinstance(facts, str) else json.dumps(facts))
    return path


def test_answers_of_a_trusted_judge_are_answers(tmp_path: Path) -> None:
    assert len(answers.read([left(tmp_path, {"trusted": True, "why": "w"})]).pairs) == 2


def test_answers_of_people_need_no_facts(tmp_path: Path) -> None:
    assert answers.read([left(tmp_path, None, rater="ann")]).raters == ("ann",)


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        (None, r"a judge answered, and answers\.jsonl\.facts\.json does not say how well; have people answer some"),
        ("no json", "does not say how well"),
        ("[]", "does not say how well"),
        ({"trusted": True}, "does not say how well"),
        ({"trusted": False, "why": "only 3 pairs"}, "its judge is not trusted: only 3 pairs; have people answer"),
        ({"trusted": "yes", "why": "so"}, "its judge is not trusted"),
        ({"trusted": True, "why": "w", "sha256": "other"}, "has changed since its judge was held against people"),
    ],
)
def test_answers_of_an_untrusted_judge_are_read_only_where_wanted(facts: Any, said: str, tmp_path: Path) -> None:
    path = left(tmp_path, facts)
    with pytest.raises(InputError, match=rf"answers\.jsonl: {said}" if "judge answered" in said else said):
        answers.read([path])
    assert len(answers.read([path], untrusted=True).pairs) == 2
