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


def naive_ranked(log: list[Row]) -> list[Row]:
    def order(row: Row) -> tuple[Any, ...]:
        return tuple((row[name] is None, row[name] or 0 if name in ("logged", "at") else row[name] or "")
                     for name in ("logged", "at", "row_id", "label"))  # fmt: skip

    found, seen = [], {}
    for row in sorted(log, key=order):
        key = row["user_id"], row["match"]
        first = seen.setdefault(key, row)
        same = all(row[name] == first[name] for name in ("row_id", "at", "label", "propensity"))
        rank = 1 + sum((each["user_id"], each["match"]) == key for each in found)
        found.append({**row, "rank": rank, "repeats": same})
    return found


def naive_scored(row: Row, log: list[Row], end: int | None) -> tuple[str, str | None]:
    """(fate, propensity_is)."""
    if row["user_id"] is None or row["begins"] is None:
        return "unidentified", None
    mine = [each for each in log if each["match"] == row["candidate_id"] and each["user_id"] == row["user_id"]]
    if not mine:
        if any(each["match"] == row["candidate_id"] for each in log):
            return "other_user", None
        return ("open" if end is None or row["ends"] > end else "never_logged"), None
    answer = next(each for each in mine if each["rank"] == 1)
    if answer["at"] > row["ends"]:
        return "late", None
    if answer["at"] < row["begins"]:
        return "early", None
    if answer["label"] != row["action"]:
        return "matched", None
    if answer["propensity"] is None:
        return "matched", "missing"
    return "matched", "same" if abs(answer["propensity"] - row["propensity"]) <= SAME else "differs"


def naive_logged(row: Row, scores: list[Row], others: list[Row], span: Span) -> str | None:
    known = [each for each in scores if None not in (each["user_id"], each["candidate_id"], each["begins"])]
    mine = any(each["candidate_id"] == row["match"] and each["user_id"] == row["user_id"] for each in known)
    if not mine and not span.first <= row["at"] <= span.last:
        return None
    if mine:
        return "answers" if row["rank"] == 1 else "duplicate" if row["repeats"] else "decided_again"
    if row["user_id"] is None or row["match"] is None:
        return "unidentified"
    if any(each["candidate_id"] == row["match"] for each in known):
        return "other_user"
    return "other_night" if any(each["candidate_id"] == row["match"] for each in others) else "never_scored"


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
    end, naive = 1600, naive_ranked(log)
    mine, theirs = ranked(frame(spark, log, LOG)), frame(spark, scores, SCORES)
    found = {row["candidate_id"]: row for row in scored_fates(theirs, mine, end).collect()}
    assert len(found) == len(scores)
    wanted = {row["candidate_id"]: naive_scored(row, naive, end) for row in scores}
    assert {name: (row["fate"], row["propensity_is"]) for name, row in found.items()} == wanted
    assert {fate for fate, _ in wanted.values()} == set(SCORED_FATES)

    span = span_of(theirs)
    assert span == Span(
        min(row["begins"] for row in scores if row["begins"]), max(row["ends"] for row in scores if row["ends"])
    )
    fates = Counter(row["fate"] for row in logged_fates(mine, theirs, frame(spark, others, SCORES), span).collect())
    expected = Counter(fate for row in naive if (fate := naive_logged(row, scores, others, span)) is not None)
    assert fates == expected
    assert set(fates) == set(LOGGED_FATES)


def test_counts_add_up_and_draws_are_those_of_the_rows(spark: SparkSession) -> None:
    scores, _, log = a_night(3)
    fates = scored_fates(frame(spark, scores, SCORES), ranked(frame(spark, log, LOG)), 1500).cache()
    assert sum(row["count"] for row in counted(fates)) == len(scores)
    naive = naive_ranked(log)
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
        matched = [row for row in rows if naive_scored(row, naive, 1500)[0] == "matched"]
        answers = [next(each for each in naive if each["rank"] == 1 and each["match"] == row["candidate_id"]
                        and each["user_id"] == row["user_id"]) for row in matched]  # fmt: skip
        there = [row for row in mine if row["fate"] == "matched"]
        assert sum(row["answered"] for row in there) == sum(each["label"] == action for each in answers)
    fates.unpersist()


def test_a_log_that_ends_before_the_night_leaves_every_row_open(spark: SparkSession) -> None:
    scores, _, _ = a_night(4)
    known = [row for row in scores if row["user_id"] and row["begins"]]
    for end in (None, 900):
        fates = scored_fates(frame(spark, known, SCORES), ranked(frame(spark, [], LOG)), end)
        assert {row["fate"] for row in fates.collect()} == {"open"}
