"""Pairs of user-weeks before the judge, each in both orders: what it said of them, and what that makes the answer.

A judge that likes what it reads first (Zheng et al. 2023, section 3.3) says A in both orders of a close pair. Its two
answers then name different weeks, and the pair is a tie or no answer; only what it says in both orders is an answer.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from models.errors import InputError, TactfulError
from models.rewards.answers import Pair, Side
from models.rewards.judge.client import Client, GaveUpError, OutOfBudgetError, Reply
from models.rewards.judge.fit import NOTHING, SAYS_A, SAYS_B, SAYS_TIE, Codes, Floats
from models.rewards.judge.parsing import Said
from models.rewards.judge.prompt import Constitution, again, question

SMALLEST = 1e-9
"""Spread of a component, against its size, below which it does not vary."""
GIVEN_UP, IN_NO_FORM = 3, 20
"""Questions in a row after which the endpoint is taken to be down, or the model to be none that keeps to a form."""
NAMED: dict[int, dict[Said, Side]] = {
    0: {"A": "left", "B": "right", "tie": "tie"},
    1: {"A": "right", "B": "left", "tie": "tie"},
}
"""By order, 0 with the left week shown as A: which week an answer names."""

CODES = {"A": SAYS_A, "B": SAYS_B, "tie": SAYS_TIE, None: NOTHING}

Describe = Callable[[int], str]
"""Place of a user-week in Weeks -> what happened in it, in words, without identifiers."""


@dataclass(frozen=True)
class Heard:
    """What the judge said to one question; `said` is None where nothing came that is an answer."""

    said: Said | None
    principle: int | None = None
    model: str | None = None
    cached: bool = False
    asked_again: bool = False
    gave_up: str | None = None
    """Why the endpoint never answered."""
    text: str = ""
    """The last words, where they are in no form."""


@dataclass(frozen=True)
class Opinion:
    """One pair, in both orders."""

    left: int
    """Place of the week that is called left."""
    right: int
    heard: tuple[Heard, Heard]
    """With the left week shown first, and with the right one shown first."""

    @property
    def sides(self) -> tuple[Side | None, Side | None]:
        """The week that each of the two answers names."""
        first, second = (
            None if each.said is None else NAMED[order][each.said] for order, each in enumerate(self.heard)
        )
        return first, second

    @property
    def complete(self) -> bool:
        return None not in self.sides

    @property
    def conflict(self) -> bool:
        """Whether the answer changes with the order."""
        return self.complete and self.sides[0] != self.sides[1]

    def answer(self, conflicts: str) -> Side | None:
        """What both orders say; of a conflict a tie, or None where `conflicts` is drop; None without two answers."""
        if not self.complete or (self.conflict and conflicts == "drop"):
            return None
        return "tie" if self.conflict else self.sides[0]


@dataclass
class Session:
    """What was heard, and why no more was asked."""

    opinions: list[Opinion] = field(default_factory=list)
    """In the order of the pairs, those of which both orders were asked."""
    stopped: TactfulError | None = None

    def pairs(self, ids: NDArray[np.object_], rater: str, conflicts: str) -> list[Pair]:
        """The answers, as people's are written down."""
        found = [(each, each.answer(conflicts)) for each in self.opinions]
        return [Pair(str(ids[each.left]), str(ids[each.right]), said, rater) for each, said in found if said]


def codes_of(opinions: Sequence[Opinion]) -> tuple[NDArray[np.int64], NDArray[np.int64], Codes, Codes]:
    """Of every pair the places of both weeks, and what was said in either order, as `fit_judged` takes it."""
    left, right = (np.array([getattr(each, side) for each in opinions], dtype=np.int64) for side in ("left", "right"))
    first, second = (np.array([CODES[each.heard[order].said] for each in opinions], dtype=np.int8) for order in (0, 1))
    return left, right, first, second


def leverage(totals: Floats) -> Floats:
    """[W] chance of each week to be drawn, by its totals [W, K]: half of it equal, half in proportion to its leverage.

    Leverage is (x - mean)' S^-1 (x - mean), S the covariance of the totals: what such a week tells of the weights of a
    linear fit (Ma, Mahoney and Yu 2015 draw by it). A week with a rare event has much, so that the weight of what one
    user in fifty does rests on more pairs than one in twenty-five.
    """
    spread = totals.std(axis=0)
    varies = spread > SMALLEST * (1 + np.abs(totals).max(axis=0))
    z = np.where(varies, (totals - totals.mean(axis=0)) / np.where(varies, spread, 1.0), 0.0)
    found = np.einsum("wi,ij,wj->w", z, np.linalg.pinv(z.T @ z, rcond=SMALLEST), z)
    equal = np.full(len(totals), 1 / len(totals))
    return (equal + found / found.sum()) / 2 if found.sum() > 0 else equal


def draw_pairs(chance: Floats, count: int, seed: int, without: Sequence[tuple[int, int]] = ()) -> list[tuple[int, int]]:
    """`count` pairs of places, none twice in any order; more are the same ones and others after them.

    One week of each is drawn by `chance` [W], the other one evenly, and sides by chance. Raises InputError where there
    are not so many pairs.
    """
    weeks, taken = len(chance), {frozenset(each) for each in without}
    there = weeks * (weeks - 1) // 2 - len(taken)
    if not 1 <= count <= there:
        raise InputError(f"--pairs {count}: {weeks} user-weeks make {max(there, 0)} pairs; ask for 1 to as many.")
    rng, found, up_to = np.random.default_rng(seed), list[tuple[int, int]](), np.cumsum(chance) / chance.sum()
    while len(found) < count:
        by_chance = int(np.searchsorted(up_to, rng.random(), side="right"))
        pair = (by_chance, int(rng.integers(weeks)))
        turned = rng.random() < 0.5
        if pair[0] != pair[1] and frozenset(pair) not in taken:
            taken.add(frozenset(pair))
            found.append(pair[::-1] if turned else pair)
    return found


def judge(
    client: Client,
    principles: Constitution,
    pairs: Sequence[tuple[int, int]],
    describe: Describe,
    progress: Callable[[int], None] = lambda done: None,
) -> Session:
    """Ask of each pair in both orders, several at a time; the result does not depend on how many.

    It stops, with what it has, where the endpoint refuses, where the budget is used up, where GIVEN_UP questions in a
    row were given up, and where IN_NO_FORM in a row had no answer in the form asked for.
    """
    questions = [(pair, order) for pair in pairs for order in (0, 1)]
    heard: dict[tuple[tuple[int, int], int], Heard] = {}
    session, lost, formless = Session(), 0, 0
    for place, found in enumerate(_in_order(client, principles, questions, describe)):
        if isinstance(found, TactfulError):
            session.stopped = session.stopped or found
            if isinstance(found, OutOfBudgetError):
                # Questions further on may be answered in the transcript.
                continue
            break
        heard[questions[place]] = found
        lost = lost + 1 if found.gave_up else 0
        formless = 0 if found.said else formless + (not found.gave_up)
        if lost >= GIVEN_UP:
            session.stopped = GaveUpError(found.gave_up or "")
        elif formless >= IN_NO_FORM:
            session.stopped = InputError(
                f"learned.judge.model: {client.settings.model!r} gave no answer in the form asked for to {formless} "
                f"questions in a row, each asked twice; the last began {found.text[:80]!r}. Use another model, or "
                "raise learned.judge.max_tokens where its answers are cut off."
            )
        progress(place + 1)
        if lost >= GIVEN_UP or formless >= IN_NO_FORM:
            break
    session.opinions = [
        Opinion(*pair, (heard[pair, 0], heard[pair, 1])) for pair in pairs if (pair, 0) in heard and (pair, 1) in heard
    ]
    return session


def _in_order(
    client: Client,
    principles: Constitution,
    questions: Sequence[tuple[tuple[int, int], int]],
    describe: Describe,
) -> Iterator[Heard | TactfulError]:
    """What comes of each question, in their order; of those begun when the caller leaves, answers are still kept."""
    waiting: deque[Future[Heard | TactfulError]] = deque()
    with ThreadPoolExecutor(client.settings.concurrency) as pool:
        try:
            for number, (pair, order) in enumerate(questions):
                shown = pair if order == 0 else pair[::-1]
                asked = question(principles, describe(shown[0]), describe(shown[1]))
                waiting.append(pool.submit(_hear, client, principles, asked))
                # No further ahead than needed to keep all busy, as what is begun is paid for; and the first one alone,
                # so that an endpoint that refuses does so once.
                if number == 0 or len(waiting) >= 2 * client.settings.concurrency:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BaseException:
            # Of an interrupt or a caller who leaves: what waits for another try is not waited for.
            client.stop()
            pool.shutdown(cancel_futures=True)
            raise


def _hear(client: Client, principles: Constitution, asked: list[dict[str, str]]) -> Heard | TactfulError:
    """One question, once more where the answer is in no form; the error where there is no sense in asking others."""
    try:
        reply = client.ask(asked)
        repeated = reply.verdict is None
        if repeated:
            reply = client.ask(again(asked, reply.content))
    except GaveUpError as error:
        return Heard(None, gave_up=str(error))
    except InputError as error:
        return error
    return _heard(reply, principles, repeated)


def _heard(reply: Reply, principles: Constitution, repeated: bool) -> Heard:
    found = reply.verdict
    if found is None:
        return Heard(None, None, reply.model, reply.cached, repeated, text=reply.content)
    named = found.principle if found.principle in principles.principles else None
    return Heard(found.answer, named, reply.model, reply.cached, repeated)
