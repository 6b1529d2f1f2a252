"""What DuckDB reads of the log: which rows are kept, and the first reason of each that is not. See etl_duckdb.py."""

import time
from typing import Any

import duckdb

from pipelines.config import Config
from pipelines.etl.features import DAY, KINDS
from pipelines.etl.marks import LONGEST_ID, Plan

Report = dict[str, Any]
Streams = list[tuple[str, dict[str, str]]]

LARGEST = 3.4028234663852886e38
"""Of float32: what the state cannot hold is missing."""
FILES = "read_parquet('{path}/**/*.parquet', hive_partitioning = false)"
DECISIONS = f"""(SELECT nullif(user_id, '') AS user_id, nullif(decision_id, '') AS id, epoch_us(decided_at) AS t,
    epoch_us(logged_at) AS logged, action, propensity, relevance FROM {FILES})"""
EVENTS = f"""(SELECT nullif(user_id, '') AS user_id, nullif(event_id, '') AS id, epoch_us(occurred_at) AS t,
    epoch_us(logged_at) AS logged, kind, nullif(decision_id, '') AS about FROM {FILES})"""
USERS = f"""(SELECT nullif(user_id, '') AS user_id, epoch_us(valid_from) AS t, time_zone, tenure_days FROM {FILES})"""
KIND = "CASE kind " + " ".join(f"WHEN '{kind}' THEN {code}" for code, kind in enumerate(KINDS)) + " END::TINYINT"


class Steps:
    """A connection that remembers how long each step took."""

    def __init__(self, threads: int) -> None:
        self.connection = duckdb.connect(config={"threads": threads})
        self.connection.execute("LOAD icu; SET TimeZone = 'UTC'")
        self.seconds: dict[str, float] = {}

    def run(self, step: str, sql: str) -> list[Any]:
        """Rows of the last statement; the time goes to `step`."""
        start = time.perf_counter()
        rows = self.connection.execute(sql).fetchall()
        self.seconds[step] = self.seconds.get(step, 0.0) + time.perf_counter() - start
        return rows

    def table(self, step: str, name: str, query: str) -> None:
        """Make the table `name` of the query's rows, in their order."""
        self.run(step, f"CREATE TABLE {name} AS {query}")

    def as_of(self, step: str, name: str, streams: Streams) -> None:
        """Make the table `name`, in the order of `probes`: running columns over all rows up to each probe's key.

        A stream is a query (key, value) and its columns, each an aggregate of its rows.
        """
        probe = len(streams)
        rows = [f"SELECT key, {c}::UTINYINT AS c, value FROM ({query})" for c, (query, _) in enumerate(streams)]
        rows.append(f"SELECT key, {probe}, NULL FROM probes")
        columns = ", ".join(
            f"{aggregate} FILTER (c = {c}) OVER run AS {column}"
            for c, (_, found) in enumerate(streams)
            for column, aggregate in found.items()
        )
        self.table(
            step,
            name,
            f"""SELECT * EXCLUDE c FROM (SELECT c, {columns} FROM (SELECT * FROM ({" UNION ALL ".join(rows)})
                ORDER BY key, c) WINDOW run AS (ROWS UNBOUNDED PRECEDING)) WHERE c = {probe}""",
        )


def _times(id_name: str, time_name: str, plan: Plan) -> tuple[str, str, str]:
    """SQL: the reason that a row's ids and times give, null where none; whether its times are fine; and a hash of
    its user and id, null without one."""
    reason = f"""CASE WHEN user_id IS NULL THEN 'missing_user_id'
        WHEN strlen(user_id) > {LONGEST_ID} THEN 'oversized_user_id' WHEN id IS NULL THEN 'missing_{id_name}'
        WHEN t IS NULL THEN 'missing_{time_name}' WHEN logged IS NULL THEN 'missing_logged_at'
        WHEN logged < t THEN 'logged_before_it_happened' WHEN logged > {plan.as_of} THEN 'clock_ahead'
        WHEN logged - t > {plan.max_lateness} THEN 'too_late' END"""
    fine = f"""coalesce(t <= logged AND logged <= {plan.as_of} AND logged - t <= {plan.max_lateness}
        AND user_id IS NOT NULL, false)"""
    return reason, fine, f"if(id IS NULL OR strlen(user_id) > {LONGEST_ID}, NULL, hash(user_id, id))"


def mark(steps: Steps, config: Config, plan: Plan) -> None:
    """Views `decision` (kept, and those with a reason but for exact duplicates) and `event` (kept).

    Rows that some rule may catch are few: rules on the row alone, or a (user, id) whose hash occurs twice. Only they
    are read with all their columns, and only they are sorted to find which of them was logged first.
    """
    data = config.data
    assert data.events is not None
    assert data.users is not None
    decisions, events = DECISIONS.format(path=data.decisions.path), EVENTS.format(path=data.events.path)
    whose = f"SELECT DISTINCT user_id FROM {decisions} WHERE strlen(user_id) <= {LONGEST_ID}"
    steps.table("read", "ids", f"SELECT user_id, (row_number() OVER () - 1)::INT AS u FROM ({whose})")

    early, fine, h = _times("event_id", "occurred_at", plan)
    columns = f"u, t, logged, {h} AS h, {fine} AS fine, if(kind = 'click', about, NULL) AS about, {KIND} AS kind"
    steps.table("read", "e", f"SELECT {columns} FROM {events} LEFT JOIN ids USING (user_id)")
    steps.table("mark", "e_twice", "SELECT h FROM e WHERE fine AND h IS NOT NULL GROUP BY h HAVING count(*) > 1")
    suspects = f"""SELECT *, {KIND} AS code FROM {events}
        WHERE NOT {fine} OR {h} IS NULL OR {KIND} IS NULL OR {h} IN (FROM e_twice)"""
    unknown = "CASE WHEN code IS NULL THEN 'unknown_kind' END"
    steps.table("mark", "e_marked", _marked(suspects, early, "row(t, kind, about)", unknown, plan))
    steps.run(
        "mark",
        """CREATE VIEW event AS SELECT u, t, logged, kind, about FROM e
        WHERE fine AND h IS NOT NULL AND kind IS NOT NULL AND h NOT IN (FROM e_twice)
        UNION ALL SELECT u, t, logged, code, about FROM e_marked LEFT JOIN ids USING (user_id) WHERE reason IS NULL""",
    )

    early, fine, h = _times("decision_id", "decided_at", plan)
    columns = f"u, user_id, id, t, logged, action, propensity, relevance, {h} AS h, {fine} AS fine"
    steps.table("read", "d", f"SELECT {columns} FROM {decisions} LEFT JOIN ids USING (user_id)")
    steps.table("mark", "d_twice", "SELECT h FROM d WHERE fine AND h IS NOT NULL GROUP BY h HAVING count(*) > 1")
    rules = f"""CASE WHEN action IS NULL OR action NOT IN ('hold', 'send') THEN 'unknown_action'
        WHEN propensity IS NOT NULL AND NOT (propensity > 0 AND propensity <= 1) THEN 'propensity_out_of_range'
        WHEN relevance IS NULL OR NOT abs(relevance) <= {LARGEST} THEN 'missing_feature:relevance' END"""
    suspects = f"""SELECT * EXCLUDE (h, fine) FROM d
        WHERE NOT fine OR h IS NULL OR {rules} IS NOT NULL OR h IN (FROM d_twice)"""
    steps.table("mark", "d_marked", _marked(suspects, early, "row(t, action, propensity, relevance)", rules, plan))
    steps.run(
        "mark",
        f"""CREATE VIEW decision AS SELECT * EXCLUDE (h, fine), NULL::VARCHAR AS reason FROM d
        WHERE fine AND h IS NOT NULL AND {rules} IS NULL AND h NOT IN (FROM d_twice)
        UNION ALL SELECT * FROM d_marked WHERE reason IS DISTINCT FROM 'exact_duplicate'""",
    )
    rules = f"""CASE WHEN user_id IS NULL THEN 'missing_user_id'
        WHEN strlen(user_id) > {LONGEST_ID} THEN 'oversized_user_id' WHEN t IS NULL THEN 'missing_valid_from' END"""
    steps.table("mark", "u_marked", f"SELECT *, {rules} AS reason FROM {USERS.format(path=data.users.path)}")
    each = " UNION ALL ".join(f"SELECT max(logged) AS logged, min(t) AS t FROM {name} WHERE fine" for name in "de")
    steps.table("plan", "good", each)


def _marked(suspects: str, early: str, content: str, rules: str, plan: Plan) -> str:
    """SQL: the suspects with their first reason: times, duplicates (of rows whose times are fine), then `rules`.

    Of copies logged at one moment a hash that DuckDB does not have decides: the log has none.
    """
    return f"""SELECT * EXCLUDE (early, copies, differs), CASE WHEN early IS NOT NULL THEN early
            WHEN copies > 1 THEN if(differs, 'conflicting_duplicate', 'exact_duplicate') ELSE {rules} END AS reason
        FROM (SELECT *, count(*) OVER same AS copies,
                {content} IS DISTINCT FROM first_value({content}) OVER same AS differs
            FROM (SELECT *, {early} AS early FROM ({suspects}))
            WINDOW same AS (PARTITION BY early IS NULL, user_id, id ORDER BY logged
                RANGE BETWEEN {plan.max_lateness} PRECEDING AND CURRENT ROW))"""


def count(steps: Steps) -> Report:
    """Per dataset: read, kept, exact_duplicates, by_reason, and kept_by_day (arrival day since the epoch -> rows)."""
    counts: Report = {}
    for name, rows, kept in (("decisions", "d", "decision WHERE reason IS NULL"), ("events", "e", "event")):
        found = steps.run("count", f"SELECT reason, count(*) FROM {rows}_marked WHERE reason IS NOT NULL GROUP BY 1")
        days = steps.run("count", f"SELECT logged // {DAY} AS day, count(*) FROM {kept} GROUP BY 1 ORDER BY 1")
        reasons, read = dict(sorted(found)), steps.run("count", f"SELECT count(*) FROM {rows}")[0][0]
        counts[name] = {
            "read": read,
            "kept": sum(number for _, number in days),
            "exact_duplicates": reasons.pop("exact_duplicate", 0),
            "by_reason": reasons,
            "kept_by_day": {int(day): number for day, number in days},
        }
        assert read == counts[name]["kept"] + counts[name]["exact_duplicates"] + sum(reasons.values()), counts[name]
    return counts
