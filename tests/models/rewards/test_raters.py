"""What raters are like, counted by hand."""

import math

import numpy as np
import pytest

from models.rewards.answers import Answers, Pair, Ranking
from models.rewards.choices import Compared, compared, groups_of, one_sided
from models.rewards.raters import contradictions, nothing_left, raters_of, splits, together, votes
from tests.models.rewards.preferring import weeks_from

WEEKS = weeks_from([[3.0], [2.0], [1.0], [0.0]])
SAID = (
    Pair("w0", "w1", "left", "ann"),
    Pair("w1", "w0", "left", "bob"),  # bob says w1, ann says w0
    Pair("w1", "w2", "left", "ann"),
    Pair("w2", "w1", "right", "bob"),  # both say w1
    Pair("w2", "w3", "tie", "ann"),
    Pair("w2", "w3", "left", "bob"),  # a tie is no opposite
    Pair("w0", "w1", "right", "ann"),  # ann contradicts herself
    Pair("w0", "w3", "left", "cy"),
)


@pytest.fixture
def pairs() -> Compared:
    return compared(WEEKS, Answers(SAID))


def test_votes_are_for_the_week_of_smaller_place(pairs: Compared) -> None:
    assert votes(pairs).tolist() == [1, -1, 1, 1, 0, 1, -1, 1]
    assert pairs.key.tolist() == [[0, 1], [0, 1], [1, 2], [1, 2], [2, 3], [2, 3], [0, 1], [0, 3]]


def test_contradictions_are_a_raters_own(pairs: Compared) -> None:
    assert dict(contradictions(pairs)) == {0: 1, 1: 0, 2: 0}


def test_splits_are_between_raters(pairs: Compared) -> None:
    """w0 or w1: one vote (ann's first) against two. The fit's utilities 3 and 2 give sigma(1) = 0.7311."""
    (found,) = splits(pairs, WEEKS.totals[:, 0], WEEKS.id)
    assert (found.first, found.second, found.for_first, found.for_second, found.ties) == ("w0", "w1", 1, 2, 0)
    assert found.probability == pytest.approx(1 / (1 + math.exp(-1)))
    alone = compared(WEEKS, Answers(tuple(each for each in SAID if each.rater == "ann")))
    assert splits(alone, WEEKS.totals[:, 0], WEEKS.id) == ()


def test_agreement_of_two_raters_beyond_chance() -> None:
    """Of ten pairs one says `first` in 6, the other in 5, the same in 7: chance 0.6 x 0.5 + 0.4 x 0.5 = 0.5,
    kappa (0.7 - 0.5) / (1 - 0.5) = 0.4."""
    one = [1, 1, 1, 1, 1, 1, 0, 0, 0, 0]
    other = [1, 1, 1, 1, 0, 0, 1, 0, 0, 0]
    weeks = weeks_from(np.arange(20.0)[:, None])
    side = {1: "left", 0: "right"}
    said = [Pair(f"w{2 * i}", f"w{2 * i + 1}", side[a], "ann") for i, a in enumerate(one)]  # type: ignore[arg-type]
    said += [Pair(f"w{2 * i + 1}", f"w{2 * i}", side[1 - b], "bob") for i, b in enumerate(other)]  # type: ignore[arg-type]
    (found,) = together(compared(weeks, Answers(tuple(said))), ("ann", "bob"))
    assert (found.first, found.second, found.pairs) == ("ann", "bob", 10)
    assert found.agreement == pytest.approx(0.7)
    assert found.kappa == pytest.approx(0.4)


def test_ann_who_contradicts_herself_takes_no_side_of_that_pair(pairs: Compared) -> None:
    (found,) = together(pairs, ("ann", "bob", "cy"))
    assert (found.first, found.second, found.pairs, found.agreement) == ("ann", "bob", 1, 1.0)
    assert found.kappa is None  # both always chose the first: chance explains all


def test_each_rater_counted(pairs: Compared) -> None:
    utility, ranked = WEEKS.totals[:, 0], np.array([2, 0, 0])
    interval = (-0.5, 0.1)
    found = raters_of(pairs, utility, ("ann", "bob", "cy"), ranked, np.ones(3), np.array([0.2, 0, 0]), [interval] * 3)
    ann, bob, cy = found
    assert (ann.answers, ann.pairs, ann.left, ann.right, ann.ties, ann.contradictions) == (6, 4, 2, 1, 1, 1)
    assert ann.agreement == pytest.approx(2 / 3)  # w0, w1 follow the utility; `right` of w0 and w1 does not
    assert bob.agreement == pytest.approx(2 / 3)
    assert cy.agreement == 1.0
    assert ann.favours is None


@pytest.mark.parametrize(
    ("left", "right", "said"), [(10, 0, False), (11, 0, True), (0, 11, True), (50, 1, False), (0, 0, False)]
)
def test_one_key_is_told_from_chance(left: int, right: int, said: bool) -> None:
    """2 x 0.5^10 = 0.00195 and 2 x 0.5^11 = 0.00098, against 0.001."""
    assert one_sided(left, right) is said


def test_nothing_is_left_where_all_cancels() -> None:
    there = [Pair("w0", "w1", "left", "ann"), Pair("w2", "w3", "right", "ann")]
    back = [Pair("w1", "w0", "left", "bob"), Pair("w2", "w3", "left", "bob")]
    assert nothing_left(compared(WEEKS, Answers(tuple(there + back))))
    assert not nothing_left(compared(WEEKS, Answers(tuple(there + back[:1]))))
    assert not nothing_left(compared(WEEKS, Answers(())))


def test_groups_link_what_is_about_the_same_weeks() -> None:
    said = (
        Pair("w0", "w1", "left", "ann"),
        Pair("w1", "w0", "left", "bob"),
        Pair("w1", "w2", "left", "ann"),
        Pair("w2", "w3", "left", "ann"),
    )
    pairs = compared(WEEKS, Answers(said))
    first = groups_of(pairs, [])
    assert first[0] == first[1]
    assert len(set(first.tolist())) == 3
    # A ranking of w0, w1, w2 is about the pairs (0, 1), (0, 2) and (1, 2): it links the first three.
    ranked = groups_of(pairs, [WEEKS.places(list(Ranking(("w2", "w0", "w1"), "cy").order))])
    assert ranked[0] == ranked[1] == ranked[2] == ranked[4] != ranked[3]
