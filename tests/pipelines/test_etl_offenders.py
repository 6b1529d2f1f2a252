"""What an error says of quarantined rows: the values that many users hold, and nothing that one alone does."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import DeltaTable
from pyspark.sql import SparkSession

from models.contract import Contract
from models.errors import QualityError
from pipelines.config import validate
from pipelines.etl.flow import run_etl
from pipelines.etl.offenders import LONGEST, NAMED_FROM, SENT, form_of, in_words, offences

CONTRACT = Contract(("hold", "send"), ("badge",), ("clicks",))
SCHEMA = pa.schema(
    [
        ("user_id", pa.string()),
        ("label", pa.string()),
        ("legal", pa.list_(pa.string())),
        ("propensity", pa.float64()),
        ("context:relevance", pa.float64()),
        ("outcome:value", pa.float64()),
        ("found", pa.string()),
    ]
)


def counted(reason: str, *rows: dict[str, Any]) -> list[tuple[str | None, int, int]]:
    """(value, rows, users) of rows that all have one reason; without a user_id each is another user's."""
    table = pa.Table.from_pylist([{"user_id": f"u{n}", **row} for n, row in enumerate(rows)], SCHEMA)
    found = offences(table, pa.chunked_array([[reason] * len(rows)], pa.string()), CONTRACT)
    assert all(each[0] == reason for each in found)
    return [each[1:] for each in found]


@pytest.mark.parametrize(
    ("reason", "rows", "found"),
    [
        ("unknown_action", [{"label": "SEND"}, {"label": "PUSH"}, {"label": "SEND"}], [("SEND", 2, 2), ("PUSH", 1, 1)]),
        ("unknown_action", [{"label": None}], [("null", 1, 1)]),
        # Two rows of one user are one user's.
        ("unknown_kind", [{"label": "wave", "user_id": "u"}, {"label": "wave", "user_id": "u"}], [("wave", 2, 1)]),
        ("unknown_kind", [{"label": "x" * 100}], [("x" * LONGEST, 1, 1)]),
        # Of the actions named legal only the unknown are told.
        (
            "unknown_legal_action",
            [{"legal": ["send", "shout"]}, {"legal": ["shout", None]}],
            [("shout", 2, 2), ("null", 1, 1)],
        ),
        (
            "illegal_action",
            [{"label": "send", "legal": ["hold"]}, {"label": "send", "legal": []}],
            [("send, where legal is: ", 1, 1), ("send, where legal is: hold", 1, 1)],
        ),
        (
            "propensity_out_of_range",
            [{"propensity": 37.0}, {"propensity": float("nan"), "found": "propensity=oops"}],
            [("37", 1, 1), ("propensity=oops", 1, 1)],
        ),
        ("forced_propensity", [{"propensity": 0.5}], [("0.5", 1, 1)]),
        ("missing_decided_at", [{"found": "decided_at=soon"}, {"found": None}], [("decided_at=soon", 1, 1)]),
        ("missing_feature:relevance", [{"found": "relevance=high"}], [("relevance=high", 1, 1)]),
        # What could not be read of other columns is not what the reason is about.
        ("propensity_out_of_range", [{"propensity": 1.5, "found": "relevance=n/a"}], [("1.5", 1, 1)]),
        (
            "propensity_out_of_range",
            [{"propensity": float("nan"), "found": "propensity=a; b; relevance=n/a"}],
            [("propensity=a; b", 1, 1)],
        ),
        ("missing_feature:relevance", [{"found": "value=n/a"}], []),
        ("missing_feature:relevance", [{"found": "value=n/a; relevance=x"}], [("relevance=x", 1, 1)]),
        ("missing_feature:relevance", [{"context:relevance": float("inf"), "found": "value=n/a"}], [("inf", 1, 1)]),
        ("missing_feature:topic", [{"found": "relevance=n/a"}], []),
        ("missing_reward:value", [{"found": "propensity=x; value=n/a"}], [("value=n/a", 1, 1)]),
        ("missing_reward:value", [{"found": "my value=n/a"}], []),
        # A mapped time tells the log's own columns.
        ("missing_decided_at", [{"found": "date=1.2.24, hour=ten; relevance=x"}], [("date=1.2.24, hour=ten", 1, 1)]),
        ("missing_decided_at", [{"found": "relevance=x"}], []),
        ("missing_decided_at", [{"found": "logged_at=late"}], []),
        ("missing_logged_at", [{"found": "propensity=x; received=soon; relevance=y"}], [("received=soon", 1, 1)]),
        ("missing_logged_at", [{"found": "propensity=x; logged_at=soon"}], [("logged_at=soon", 1, 1)]),
        ("missing_logged_at", [{"found": "propensity=x; relevance=y"}], []),
        ("missing_user_id", [{"found": "relevance=high"}], []),
        ("too_late", [{"label": "send"}], []),
    ],
)
def test_the_values_that_a_reason_is_about_are_counted(
    reason: str, rows: list[dict[str, Any]], found: list[tuple[str, int, int]]
) -> None:
    assert counted(reason, *rows) == found


def test_of_a_column_of_other_things_not_every_value_is_sent() -> None:
    """But how many rows hold the others."""
    rows = [{"label": f"n{n:04d}"} for n in range(2 * SENT)]
    found = counted("unknown_action", *rows)
    assert len(found) == SENT + 1
    assert found[-1] == (None, SENT, 0)
    assert len(counted("unknown_action", *rows[:SENT])) == SENT


def test_a_count_is_told_as_exact_only_where_every_value_was_sent() -> None:
    """`push` is in 2 rows of each of two buckets; the second has as many commoner values as are sent."""
    push = [{"label": "push"}] * 2
    rows = [{"label": f"n{n % SENT:04d}"} for n in range(3 * SENT)]

    def told(*buckets: list[dict[str, Any]]) -> str:
        found = [("unknown_action", *each) for bucket in buckets for each in counted("unknown_action", *bucket)]
        return in_words({"unknown_action": 9, "unknown_kind": 9}, found, CONTRACT, Path("quarantine"))

    assert "found 'push' (10) and others;" in told(5 * push, [{"label": "other"}])
    assert "found 'push' (at least 10)" in told(5 * push, push + rows)
    assert "no value is known to stand in rows of 5 users or more, so none is named here" in told(push, push + rows)
    assert "no value stands in rows of 5 users or more, so none is named here" in told(push, push)


def test_a_value_is_named_where_enough_users_hold_it() -> None:
    def told(users: int) -> str:
        found = [("unknown_action", "SEND", 90, users)]
        return in_words({"unknown_action": 90}, found, CONTRACT, Path("quarantine"))

    assert "found 'SEND' (90);" in told(NAMED_FROM)
    assert "SEND" not in told(NAMED_FROM - 1)
    assert "none is named here; known: hold, send" in told(NAMED_FROM - 1)


@pytest.mark.parametrize(
    ("reason", "value", "told"),
    [
        ("unknown_action", "Push", "'Push'"),
        ("unknown_action", "push_2.v1-b c", "'push_2.v1-b c'"),
        ("unknown_action", "Löschen", "'Löschen'"),
        ("unknown_action", "null", "'null'"),
        ("unknown_action", "alice@example.com", "'aaaaa@aaaaaaa.aaa'"),
        ("unknown_action", "anna1987", "'aaaa9999'"),
        ("unknown_action", "0491761", "'9999999'"),
        ("unknown_action", "17", "'99'"),
        ("unknown_action", "+49 17", "'+99 99'"),
        ("unknown_action", "10.0.0.1", "'99.9.9.9'"),
        ("unknown_action", "action=Ann (home)", "'aaaaaa=aaa (aaaa)'"),
        ("unknown_kind", "x" * LONGEST, repr("a" * LONGEST)),
        ("unknown_legal_action", "a b, c", "'a a, a'"),
        ("illegal_action", "send, where legal is: hold, badge_2024", "'send, where legal is: hold, badge_2024'"),
        ("propensity_out_of_range", "1.5", "'1.5'"),
        ("propensity_out_of_range", "-37", "'-37'"),
        ("propensity_out_of_range", "nan", "'nan'"),
        ("propensity_out_of_range", "4.917612345678e+12", "'9.999999999999a+99'"),
        ("propensity_out_of_range", "propensity=0,5", "'propensity=9,9'"),
        ("propensity_out_of_range", "propensity=high", "'propensity=high'"),
        ("missing_feature:relevance", "relevance=bob@x.org", "'relevance=aaa@a.aaa'"),
        ("missing_reward:steps_202409", "steps_202409=few", "'steps_202409=few'"),
        ("missing_decided_at", "date=1.2.1987, hour=ten", "'date=9.9.9999, aaaa=aaa'"),
        ("missing_decided_at", "b@x.org=soon", "'a@a.aaa=soon'"),
    ],
)
def test_a_value_that_does_not_look_like_a_label_is_told_by_its_form(reason: str, value: str, told: str) -> None:
    """What many users hold too: where row ids were mapped to user_id, each row is a user."""
    words = in_words({reason: 6}, [(reason, value, 6, 6)], CONTRACT, Path("quarantine"))
    assert f"found {told} (6);" in words


def test_values_of_one_form_are_one() -> None:
    found = [("unknown_action", value, 6, 6) for value in ("ann@x.org", "bob@x.org", "hm")]
    words = in_words({"unknown_action": 18}, found, CONTRACT, Path("quarantine"))
    assert "found 'aaa@a.aaa' (12), 'hm' (6); known" in words


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("Ann-2, b@c.d e", "aaa-9, a@a.a a"),
        ("é中ß", "aaa"),
        # A vowel sign is no letter, and the digits are Devanagari's.
        ("कि१२", "aa99"),
        ("a\n\t–", "aaaa"),
    ],
)
def test_a_form_has_nothing_but_punctuation_of_what_it_is_of(text: str, form: str) -> None:
    assert form_of(text) == form


def test_a_log_with_other_names_for_its_actions_is_told_which(spark: SparkSession, tmp_path: Path) -> None:
    """Of 40 decisions of 40 users in two buckets 12 are `Push`, one holds an address, and the others are right."""
    rows = ["decision_id,user_id,decided_at,action,propensity,relevance,steps"]
    for n in range(40):
        action = "ann@example.org" if n == 0 else "Push" if n <= 12 else ("hold", "send")[n % 2]
        rows.append(f"d{n},person-{n},2024-01-0{1 + n % 2} 10:00:00,{action},0.5,0.{n},1")
    (tmp_path / "decisions.csv").write_text("\n".join(rows) + "\n")
    tree = {
        "name": "renamed",
        "run_dir": str(tmp_path / "run"),
        "rewards": ["sends", "column:steps"],
        "data": {"decisions": {"path": str(tmp_path / "decisions.csv")}},
        "features": {"context": ["relevance"]},
        "etl": {"buckets": 2},
    }
    with pytest.raises(QualityError) as caught:
        run_etl(spark, validate(tree, "test"))
    words, table = str(caught.value), tmp_path / "run" / "quarantine" / "decisions"
    assert "- unknown_action, 13 rows: found 'Push' (12) and others; known: hold, send; add the action" in words
    assert f"Delta table {table}, with" in words
    assert "person-" not in words
    assert "example.org" not in words
    assert DeltaTable(table).to_pyarrow_table().num_rows == 13
