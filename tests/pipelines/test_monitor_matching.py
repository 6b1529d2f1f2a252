"""Scored rows and logged decisions matched on Spark, against a second implementation in plain Python."""

import random
from collections import Counter
from typing import Any

import pytest
from pyspark.sql import DataFrame, SparkSession

from pipelines.monitor.matching import (
    LOGGED_FATES,
    SAME,
    SCORED_FATES,
    Span,
    answers,
    counted,
    drawn,
    logged_fates,
    ranked,
    scored_fates,
    span_of,
)

Row = dict[str, Any]
ACTIONS = ("hold", "badge", "push")
SCORES = (
    "night string, candidate_id string, user_id string, begins long, ends long, action string, propensity double, "
    "probabilities array<double>, rule string"
)
LOG = "match string, row_id string, user_id string, at long, logged long, label string, propensity double"


def frame(spark: SparkSession, rows: list[Row], schema: str) -> DataFrame:
    names = [part.split()[0] for part in schema.split(", ")]
    return spark.createDataFrame([tuple(row[name] for name in names) for row in rows], schema)


def is_in(row: Row, scored: Row) -> bool:
    return (
        scored["begins"] is not None
        and None not in (row["user_id"], row["match"])
        and (row["match"], row["user_id"]) == (scored["candidate_id"], scored["user_id"])
        and scored["begins"] <= row["at"] <= scored["ends"]
    )


def answers_to(scored: Row, log: list[Row], others: list[Row]) -> list[tuple[int, Row]]:
    """(0 within its time, 1 after it, 2 before; row), the answer first."""
    if None in (scored["user_id"], scored["begins"]):
        return []
    found = []
    for row in log:
        if (row["match"], row["user_id"]) != (scored["candidate_id"], scored["user_id"]):
            continue
        if is_in(row, scored):
            found.append((0, row))
        elif not any(is_in(row, other) for other in others):
            found.append((1 if row["at"] > scored["ends"] else 2, row))
    return sorted(found, key=lambda each: (each[0], *(each[1][name] for name in ("logged", "at", "row_id", "label"))))


def naive_scored(row: Row, log: list[Row], others: list[Row], end: int | None) -> tuple[str, str | None]:
    """(fate, propensity_is)."""
    if row["user_id"] is None or row["begins"] is None:
        return "unidentified", None
    mine = answers_to(row, log, others)
    if not mine:
        theirs = {each["user_id"] for each in log if each["match"] == row["candidate_id"]} - {None, row["user_id"]}
        if theirs:
            return "other_user", None
        return ("open" if end is None or row["ends"] > end else "never_logged"), None
    place, answer = mine[0]
    if place:
        return ("late" if place == 1 else "early"), None
    if answer["label"] != row["action"]:
        return "matched", None
    if answer["propensity"] is None:
        return "matched", "missing"
    return "matched", "same" if abs(answer["propensity"] - row["propensity"]) <= SAME else "differs"


def naive_logged(log: list[Row], scores: list[Row], others: list[Row], span: Span) -> Counter[str]:
    fates: Counter[str] = Counter()
    paired = []
    for scored in scores:
        mine = [row for _, row in answers_to(scored, log, others)]
        paired += [id(row) for row in mine]
        for place, row in enumerate(mine):
            same = all(row[name] == mine[0][name] for name in ("row_id", "at", "label", "propensity"))
            fates["answers" if place == 0 else "duplicate" if same else "decided_again"] += 1
    known = {each["candidate_id"] for each in scores if None not in (each["user_id"], each["begins"])}
    for row in log:
        if id(row) in paired or not span.first <= row["at"] <= span.last:
            continue
        if row["user_id"] is None or row["match"] is None:
            fates["unidentified"] += 1
        elif any(is_in(row, other) for other in others):
            fates["other_night"] += 1
        elif row["match"] in known:
            fates["other_user"] += 1
        else:
            there = any(each["candidate_id"] == row["match"] for each in others)
            fates["other_night" if there else "never_scored"] += 1
    return fates


def a_night(seed: int) -> tuple[list[Row], list[Row], list[Row]]:
    """Scored rows, those of another night, and a log in which everything goes wrong that can."""
    rng = random.Random(seed)
    scores, others, log = [], [], []
    for number in range(120):
        begins = 1000 + rng.randrange(200)
        p = [round(each / 10, 1) for each in rng.choice([(2, 3, 5), (10, 0, 0), (8, 1, 1)])]
        place = rng.choices(range(3), p)[0]
        row = {
            "night": "n", "candidate_id": f"c{number}", "user_id": f"u{number % 90}", "begins": begins,
            "ends": begins + 500, "action": ACTIONS[place], "propensity": p[place], "probabilities": p, "rule": None,
        }  # fmt: skip
        if rng.random() < 0.03:
            row["user_id"] = None
        if rng.random() < 0.03:
            row["begins"] = row["ends"] = None
        (others if rng.random() < 0.2 else scores).append(row)
        if rng.random() < 0.2 and row["begins"]:
            # The same id and user the night before, whose time ends where this one begins.
            times = {"begins": row["begins"] - 501, "ends": row["begins"] - 1}
            (others if row in scores else scores).append({**row, **times, "night": "m"})
    for row in scores + others:
        for _ in range(rng.choices((0, 1, 2), (2, 7, 1))[0]):
            at = (row["begins"] or 1000) + rng.choice((0, 100, 500, 501, -1, 100, 200, 300))
            answer = {
                "match": row["candidate_id"], "row_id": f"d{len(log)}", "user_id": row["user_id"], "at": at,
                "logged": at + rng.randrange(50), "label": row["action"], "propensity": row["propensity"],
            }  # fmt: skip
            wrong = rng.random()
            if wrong < 0.05:
                answer["label"] = rng.choice(ACTIONS)
            elif wrong < 0.1:
                answer["propensity"] = rng.choice((None, 0.123, answer["propensity"] + 1e-8))
            elif wrong < 0.15:
                answer["user_id"] = rng.choice((None, "u1", "stranger"))
            elif wrong < 0.2:
                answer["match"] = rng.choice((None, "unknown"))
            log.append(answer)
            if rng.random() < 0.1:
                log.append({**answer, "logged": answer["logged"] + 5})
    rng.shuffle(log)
    return scores, others, log


@pytest.mark.parametrize("seed", [1, 2])
def test_fates_agree_with_the_definitions_and_every_one_occurs(spark: SparkSession, seed: int) -> None:
    scores, others, log = a_night(seed)
    end, mine, theirs, rest = 1600, frame(spark, log, LOG), frame(spark, scores, SCORES), frame(spark, others, SCORES)
    answered = answers(theirs, mine, rest)
    found = {row["candidate_id"]: row for row in scored_fates(theirs, mine, ranked(answered), end).collect()}
    assert len(found) == len(scores)
    wanted = {row["candidate_id"]: naive_scored(row, log, others, end) for row in scores}
    assert {name: (row["fate"], row["propensity_is"]) for name, row in found.items()} == wanted
    assert {fate for fate, _ in wanted.values()} == set(SCORED_FATES)

    span = span_of(theirs)
    assert span == Span(
        min(row["begins"] for row in scores if row["begins"]), max(row["ends"] for row in scores if row["ends"])
    )
    fates = Counter(row["fate"] for row in logged_fates(answered, ranked(answered), theirs, rest, span).collect())
    assert fates == naive_logged(log, scores, others, span)
    assert set(fates) == set(LOGGED_FATES)


def test_counts_add_up_and_draws_are_those_of_the_rows(spark: SparkSession) -> None:
    scores, others, log = a_night(3)
    mine, theirs = frame(spark, log, LOG), frame(spark, scores, SCORES)
    firsts = ranked(answers(theirs, mine, frame(spark, others, SCORES)))
    fates = scored_fates(theirs, mine, firsts, 1500).cache()
    assert sum(row["count"] for row in counted(fates)) == len(scores)
    sums = drawn(fates, ACTIONS)
    for place, action in enumerate(ACTIONS):
        rows = [row for row in scores if 0 < row["probabilities"][place] < 1]
        mine = [row for row in sums if row["place"] == place]
        assert sum(row["n"] for row in mine) == len(rows)
        assert sum(row["scored"] for row in mine) == sum(row["action"] == action for row in rows)
        assert sum(row["expected"] for row in mine) == pytest.approx(sum(row["probabilities"][place] for row in rows))
        wanted = sum(p * (1 - p) for row in rows for p in [row["probabilities"][place]])
        assert sum(row["variance"] for row in mine) == pytest.approx(wanted)
        # 0.1, 0.2, 0.3, 0.5 and 0.8 begin their bins.
        assert {row["bin"] for row in mine} == {round(10 * row["probabilities"][place]) for row in rows}
        matched = [row for row in rows if naive_scored(row, log, others, 1500)[0] == "matched"]
        done = [answers_to(row, log, others)[0][1]["label"] for row in matched]
        there = [row for row in mine if row["fate"] == "matched"]
        assert sum(row["answered"] for row in there) == done.count(action)
    fates.unpersist()


def test_a_log_that_ends_before_the_night_leaves_every_row_open(spark: SparkSession) -> None:
    scores, _, _ = a_night(4)
    known = [row for row in scores if row["user_id"] and row["begins"]]
    for end in (None, 900):
        mine, theirs = frame(spark, [], LOG), frame(spark, known, SCORES)
        fates = scored_fates(theirs, mine, ranked(answers(theirs, mine, theirs.limit(0))), end)
        assert {row["fate"] for row in fates.collect()} == {"open"}
