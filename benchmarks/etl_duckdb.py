"""The transitions table by DuckDB: the same columns from the same files, by the fastest form that was found.

A rival for speed and a third implementation for truth. It reads the log of etl_log.py: hold and send, `relevance` and
`tenure_days`, no legal_actions, no policy_id, no constraint but consent. `bucket` and `split` are hashes that DuckDB
does not have. Writes transitions and quarantine as Parquet (zstd) partitioned by `ds`.

(user, time) is one integer key, user * span + time. A row comes into view of the probes at one key and leaves a window
at another; all of these and the probes themselves are sorted by key once per source, and each probe takes the running
counts: what came less what left. No partition by user is needed, since the rows of earlier users have come and gone.

Forms tried, CPU seconds at 500,000 decisions and 2,000,000 events, the least of two or more runs; * is the one kept:

| step                                  | form                                                             | CPU s |
|---------------------------------------|------------------------------------------------------------------|-------|
| counts in windows and last rows:      | * union with the probes, one sort a source, running counts       | 0.87  |
| 11 streams of sends, clicks, visits   | the same with one sort for all sources                           | 0.91  |
|                                       | one ASOF join per probe on the key, by position, in any order    | 1.27  |
|                                       | the same, sorted again, since threads end in any order           | 1.52  |
|                                       | one ASOF join per source onto its running counts                 | 1.43  |
|                                       | union, windows partitioned by user (visits alone)                | 1.80  |
| sessions                              | * four lags over the sorted rows, a join for the few undecided   | 0.31  |
|                                       | one lag, then the join                                           | 0.45  |
|                                       | least `logged` in a RANGE window                                 | 1.11  |
| reasons of events                     | * narrow table, hashes that occur twice, suspects read again     | 1.47  |
|                                       | one wide table, no second read: as fast, but all texts in memory | 1.38  |
|                                       | row_number over (user, id) of every row                          | 1.78  |
| writing by day                        | * PARTITION_BY                                                   | 1.65  |
|                                       | one COPY a day                                                   | 1.68  |
"""

import shutil
from pathlib import Path

from benchmarks.etl_duckdb_marks import LARGEST, Report, Steps, count, mark
from pipelines.config import Config
from pipelines.etl.features import ACCOUNT_CLOSED, CLICK, DAY, DISABLE, ENABLE, HOUR, PAGE_VIEW, SESSION_START
from pipelines.etl.marks import Plan
from pipelines.etl.plans import make_plan
from pipelines.etl.plans import watermark as watermark_of
from pipelines.etl.rewards import WEEK

QUARTER = HOUR // 4
LAGS = 4
"""Rows looked back at for the one that explains a page view, before the few still undecided are joined."""

FORM = "(FORMAT parquet, COMPRESSION zstd, PARTITION_BY (ds))"


def run_duckdb(config: Config, out: Path, threads: int = 2) -> Report:
    """Write out/transitions and out/quarantine; returns `rows` (counts per dataset), `watermark` (us) and `seconds`.

    Raises OverflowError where (user, time) does not fit an integer of 64 bits.
    """
    shutil.rmtree(out, ignore_errors=True)
    (out / "quarantine").mkdir(parents=True)
    steps = Steps(threads)
    mark(steps, config, make_plan(config, 0, 0))
    counts = count(steps)
    latest, log_start = steps.run("plan", "SELECT min(logged), min(t) FROM good")[0]
    plan = make_plan(config, watermark_of(config, latest), log_start)
    make_keys(steps, plan)
    make_rows(steps, plan)
    make_visits(steps, plan)
    make_state(steps, plan)
    join(steps)
    write(steps, out, plan)
    steps.connection.close()
    return {"rows": counts, "watermark": plan.watermark, "seconds": {k: round(v, 3) for k, v in steps.seconds.items()}}


def make_keys(steps: Steps, plan: Plan) -> None:
    """Macros key(u, t) with t clamped to the span, user_of(key), time_of(key), shown(t, logged), gone(t, logged, w).

    The span begins early enough for what is clamped to its first moment (sends that came too late) to be forgotten,
    and ends after the watermark: what is clamped there is never seen.
    """
    timed = f"u IS NOT NULL AND (logged IS NULL OR logged - t BETWEEN 0 AND {plan.max_lateness})"
    first, users = steps.run("plan", f"SELECT min(t), (SELECT count(*) FROM ids) FROM d WHERE {timed}")[0]
    origin = min(plan.log_start, first - plan.lookback - 1)
    span = plan.watermark - origin + 2
    if 2 * (users + 1) * span >= 2**63:
        raise OverflowError(f"{users} users over {span} us do not fit one key; split the log by users.")
    steps.run(
        "plan",
        f"""CREATE MACRO key(u, t) AS u::BIGINT * {span} + least(greatest(t - {origin}, 0), {span - 1});
        CREATE MACRO user_of(key) AS key // {span};
        CREATE MACRO time_of(key) AS key % {span} + {origin};
        CREATE MACRO shown(t, logged) AS greatest(t + 1, logged);
        CREATE MACRO gone(t, logged, width) AS greatest(t + width + 1, logged)""",
    )


def make_rows(steps: Steps, plan: Plan) -> None:
    """Table `r`: decisions and silent rows by user, time, id, after each user's last a `sentinel` at the watermark;
    and `probes`, their keys."""
    # Of rows that claim one id at one time the unusable come first, so that the kept one keeps its interval.
    steps.table(
        "rows",
        "b",
        f"""SELECT * FROM decision WHERE u IS NOT NULL AND t < {plan.watermark}
            AND (logged IS NULL OR logged - t BETWEEN 0 AND {plan.max_lateness})
        ORDER BY key(u, t), coalesce(id, ''), reason IS NULL, logged NULLS FIRST""",
    )
    steps.table(
        "rows",
        "r",
        f"""WITH followed AS (SELECT *, lead(u) OVER () IS DISTINCT FROM u AS last, lead(t) OVER () AS later FROM b),
            spaced AS (SELECT *, greatest((if(last, {plan.watermark}, later) - t - 1) // {plan.max_gap}, 0) AS gaps
                FROM followed),
            filled AS (SELECT *, unnest(range((1 + gaps + last::INT)::BIGINT)) AS nth FROM spaced)
        SELECT u, user_id, if(nth > gaps, {plan.watermark}, t + nth * {plan.max_gap}) AS t, nth > gaps AS sentinel,
            nth > 0 AS silent, nth > 0 OR reason IS NULL AS usable, if(nth = 0, id, NULL) AS id,
            if(nth = 0, action, 'hold') AS action, if(nth = 0, propensity, 1) AS propensity,
            if(nth = 0, relevance, NULL) AS relevance, if(nth = 0, reason, NULL) AS reason FROM filled""",
    )
    steps.table("rows", "probes", "SELECT key(u, t) AS key FROM r")


def make_visits(steps: Steps, plan: Plan) -> None:
    """Table `visit` (u, t, logged, key) in the order of keys: session starts, and page views that nothing explains.

    A page view is explained by a row before it, at most a session's gap away and logged no later. Looking back a few
    rows decides nearly all; the others are joined with the rows of their own and of the last stretch of that length.
    """
    gap = plan.session_gap
    steps.table(
        "visits",
        "shows",
        f"""SELECT key(u, t) AS key, logged, kind FROM event
        WHERE kind IN ({SESSION_START}, {PAGE_VIEW}) AND u IS NOT NULL AND t <= {plan.watermark} ORDER BY ALL""",
    )
    near = "user_of(key) = user_of(lag(key, {0}) OVER ()) AND key - lag(key, {0}) OVER () <= " + str(gap)
    explained = " OR ".join(f"({near.format(n)} AND lag(logged, {n}) OVER () <= logged)" for n in range(1, LAGS + 1))
    steps.table(
        "visits",
        "decided",
        f"""SELECT *, row_number() OVER () AS n, CASE WHEN kind = {SESSION_START} THEN true WHEN {explained} THEN false
            WHEN NOT coalesce({near.format(LAGS + 1)}, false) THEN true END AS starts FROM shows""",
    )
    pairs = "SELECT x.n FROM decided x JOIN decided y ON x.starts IS NULL AND user_of(x.key) = user_of(y.key)"
    before = f"y.n < x.n AND y.logged <= x.logged AND x.key - y.key <= {gap}"
    stretches = (f"{pairs} AND x.key // {gap} = y.key // {gap} {more} AND {before}" for more in ("", "+ 1"))
    steps.table("visits", "explained", " UNION ".join(stretches))
    steps.table(
        "visits",
        "visit",
        """SELECT user_of(key) AS u, time_of(key) AS t, logged, key FROM decided
        WHERE starts OR (starts IS NULL AND n NOT IN (FROM explained)) ORDER BY key""",
    )
    steps.run("visits", "DROP TABLE shows; DROP TABLE decided")


def make_state(steps: Steps, plan: Plan) -> None:
    """Tables `sends`, `acts` and `visits`: what was known at each probe, and what each had earned until then."""
    steps.table(
        "state",
        "send",
        f"""SELECT u, id, t, logged FROM decision WHERE u IS NOT NULL AND action = 'send' AND logged >= t
        AND logged <= {plan.as_of} AND reason IS DISTINCT FROM 'conflicting_duplicate'""",
    )
    steps.table("state", "click", f"SELECT u, t, logged, about FROM event WHERE kind = {CLICK} AND u IS NOT NULL")
    widths = {"24h": min(DAY, plan.lookback), "7d": min(WEEK, plan.lookback), "28d": plan.lookback}

    def gone(name: str, label: str) -> tuple[str, dict[str, str]]:
        query = f"SELECT key(u, gone(t, logged, {widths[label]})) AS key, NULL AS value FROM {name}"
        return query, {f"{name}s_gone_{label}": "count(*)"}

    def shown(name: str) -> tuple[str, dict[str, str]]:
        query = f"SELECT key(u, shown(t, logged)) AS key, key(u, t) AS value FROM {name}"
        return query, {f"{name}s_shown": "count(*)", f"last_{name}": "max(value)"}

    def at_once(condition: str, column: str) -> tuple[str, dict[str, str]]:
        return f"SELECT key(u, t) AS key, NULL AS value FROM {condition}", {column: "count(*)"}

    # A send stays unseen until a visit at or after it is known: the earliest such moment, by a minimum from behind. A
    # user's own keys are smaller than those of all users after it, so theirs never shine through.
    steps.table(
        "state",
        "reset",
        """SELECT key, min(known) OVER (ROWS UNBOUNDED PRECEDING) AS known
        FROM (SELECT key, key(u, shown(t, logged)) AS known FROM visit ORDER BY key DESC)
        QUALIFY lead(key) OVER () IS DISTINCT FROM key""",
    )
    forgotten = f"key(u, gone(t, logged, {plan.lookback}))"
    unseen = f"""SELECT NULL AS value, greatest(key(u, shown(t, logged)),
            if(user_of(known) = u, least({forgotten}, known), {forgotten})) AS key
        FROM (SELECT *, key(u, t) AS sent FROM send) s ASOF LEFT JOIN reset ON s.sent <= reset.key"""
    windows = [gone("send", label) for label in widths]
    steps.as_of("state", "sends", [shown("send"), *windows, (unseen, {"sends_seen": "count(*)"})])

    # Of several sends of one id the last before the click counts; one that came too late opens no window.
    steps.table(
        "state",
        "paid",
        f"""WITH clicked AS (SELECT u, t, about, row_number() OVER () AS n FROM click WHERE about IS NOT NULL)
        SELECT c.u, any_value(c.t) AS t, any_value(about) AS about, max(s.t) AS sent FROM clicked c
        JOIN send s ON s.u = c.u AND s.id = about AND s.t <= c.t AND s.logged - s.t <= {plan.max_lateness}
        GROUP BY n, c.u HAVING any_value(c.t) - max(s.t) <= {plan.click_window}""",
    )
    # In the order of what is known: the last one known is the largest so far.
    steps.table(
        "state",
        "person",
        """SELECT u AS whose, t AS since, row_number() OVER () AS n, coalesce(time_zone, 'UTC') AS zone,
            tenure_days AS tenure
        FROM (FROM u_marked JOIN ids USING (user_id) WHERE reason IS NULL ORDER BY u, t)""",
    )
    changes = f"""SELECT key(u, shown(t, logged)) AS key, 2 * key(u, t) + (kind = {DISABLE})::INT AS value FROM event
        WHERE kind IN ({DISABLE}, {ENABLE}) AND u IS NOT NULL"""
    happened = "event WHERE u IS NOT NULL AND kind = "
    steps.as_of(
        "state",
        "acts",
        [
            shown("click"),
            *(gone("click", label) for label in widths),
            at_once("paid", "clicks"),
            (changes, {"consent": "max(value)"}),
            at_once(f"{happened}{DISABLE}", "off"),
            at_once(f"{happened}{ACCOUNT_CLOSED}", "closed"),
            ("SELECT key(whose, since + 1) AS key, n AS value FROM person", {"person": "max(value)"}),
        ],
    )

    # Moments within a week of a visit, up to each visit; the rest since the last one is added at the probe.
    active = f"""SELECT key, (sum(until) OVER (ROWS UNBOUNDED PRECEDING))::BIGINT - until AS value
        FROM (SELECT key, if(lead(u) OVER () = u, least(lead(key) OVER () - key, {WEEK}), 0) AS until FROM visit)"""
    steps.as_of(
        "state",
        "visits",
        [
            shown("visit"),
            gone("visit", "24h"),
            gone("visit", "7d"),
            ("SELECT key, key AS value FROM visit", {"visits": "count(*)", "latest": "max(value)"}),
            (active, {"active": "max(value)"}),
        ],
    )


def join(steps: Steps) -> None:
    """Table `wide`: the rows, what was known at each, and what its interval earned, by position."""
    since = f"if(user_of(latest) = user_of(key), least(key - latest, {WEEK}), 0)"
    totals = {name: name for name in ("clicks", "visits", "off", "closed")} | {"active": "active"}
    earned = ", ".join(f"lead({total}) OVER () - {total} AS {name}" for name, total in totals.items())
    steps.table(
        "join",
        "earned",
        f"""SELECT lead(t) OVER () - t AS length, lead(sentinel OR NOT usable) OVER () AS cut, {earned}
        FROM (SELECT t, sentinel, usable, clicks, visits, off, closed,
                coalesce(active, 0) + coalesce({since}, 0) AS active
            FROM r POSITIONAL JOIN probes POSITIONAL JOIN acts POSITIONAL JOIN visits)""",
    )
    steps.table(
        "join",
        "wide",
        """SELECT r.*, earned.*, sends.*, acts.* EXCLUDE (clicks, off, closed),
            visits.* EXCLUDE (visits, latest, active)
        FROM r POSITIONAL JOIN earned POSITIONAL JOIN sends POSITIONAL JOIN acts POSITIONAL JOIN visits""",
    )
    steps.table("join", "answered", "SELECT DISTINCT u, about, sent FROM paid")


def write(steps: Steps, out: Path, plan: Plan) -> None:
    """out/transitions and out/quarantine. Offsets from UTC are looked up once per zone and quarter of an hour."""
    quarters = f"range((SELECT min(t) FROM r) // {QUARTER}, {plan.watermark} // {QUARTER} + 1)"
    steps.table(
        "write",
        "clock",
        f"""SELECT zone, quarter, epoch_us(timezone(zone, make_timestamptz(quarter * {QUARTER}))) - quarter * {QUARTER}
            AS ahead FROM (SELECT DISTINCT zone FROM person), {quarters} AS q(quarter)""",
    )
    a, b = plan.features.click_prior
    recent = ", ".join(
        f"if(user_of({last}) = u AND time_of({last}) >= t - {plan.lookback}, t - time_of({last}), NULL) AS since_{name}"
        for name, last in (("send", "last_send"), ("visit", "last_visit"))
    )
    counted = [f"{name}_{width}" for name in ("sends", "clicks", "visits") for width in ("24h", "7d")]
    within = {name: "{}_shown - {}_gone_{}".format(*(name.split("_")[:1] * 2), name.split("_")[1]) for name in counted}
    state = within | {
        "notifications_on": "allowed",
        "badge": "sends_shown - sends_seen",
        **{f"hours_since_{name}": f"coalesce(since_{name}, {plan.lookback}) / {HOUR}" for name in ("send", "visit")},
        **{f"{name}_never": f"since_{name} IS NULL" for name in ("send", "visit")},
        "click_rate_28d": f"(clicks_shown - clicks_gone_28d + {a}) / (sends_shown - sends_gone_28d + {b})",
        **{f"hour_{turn}": f"{turn}(2 * pi() * (local % {DAY} / {DAY}))" for turn in ("sin", "cos")},
        **{f"weekday_{turn}": f"{turn}(2 * pi() * ((local // {DAY} + 3) % 7 / 7))" for turn in ("sin", "cos")},
        "candidate_missing": f"NOT coalesce(abs(relevance) <= {LARGEST}, false)",
        "relevance": f"if(abs(relevance) <= {LARGEST}, relevance, NULL)",
        "tenure_days": f"if(abs(tenure) <= {LARGEST}, tenure, NULL)",
    }
    rewards = {
        "sends": "(action = 'send')",
        "clicks": "clicks",
        "visits": "visits",
        "weekly_active_days": f"(active / {DAY})",
        "disables": "(off > 0)",
    }
    columns = [f"({sql})::FLOAT AS state_{name}" for name, sql in state.items()]
    columns += [f"if(usable, {sql}::DOUBLE, NULL) AS reward_{name}" for name, sql in rewards.items()]
    settled = f"usable AND NOT silent AND action = 'send' AND t + {plan.click_window} <= {plan.watermark}"
    rows = f"""SELECT user_id, if(silent, 'silent:' || user_id || ':' || t, id) AS decision_id,
            make_timestamptz(t) AS decided_at, strftime(make_timestamp(t), '%Y-%m-%d') AS ds,
            if(action IN ('hold', 'send'), action, NULL) AS action, [true, allowed AND NOT silent] AS legal,
            if(usable, propensity, NULL) AS propensity,
            CASE WHEN silent THEN 'certain' WHEN usable AND propensity IS NOT NULL THEN 'logged' END
                AS propensity_source,
            NULL::VARCHAR AS policy_id, {", ".join(columns)}, length / {DAY} AS elapsed_days,
            usable AND closed > 0 AS terminal, usable AND cut AND closed = 0 AS truncated, silent,
            t < {plan.log_start + plan.warmup} AS warm_up, usable,
            if({settled}, (answered.u IS NOT NULL)::INT, NULL) AS clicks_attributed, reason
        FROM (SELECT wide.*, coalesce(user_of(consent // 2) <> u OR consent % 2 = 0, true) AS allowed,
                tenure, t + coalesce(ahead, 0) AS local, {recent}
            FROM wide LEFT JOIN person ON person.n = wide.person AND whose = u
            LEFT JOIN clock ON clock.zone = person.zone AND quarter = t // {QUARTER} WHERE NOT sentinel) w
        LEFT JOIN answered ON answered.u = w.u AND answered.about = w.id AND answered.sent = w.t"""
    steps.run("write", f"COPY ({rows}) TO '{out}/transitions' {FORM}")
    for name, table, when in (("decisions", "d", "logged"), ("events", "e", "logged"), ("users", "u", "t")):
        day = f"coalesce(strftime(make_timestamp({when}), '%Y-%m-%d'), 'unknown') AS ds"
        caught = f"SELECT *, {day} FROM {table}_marked WHERE reason <> 'exact_duplicate'"
        steps.run("write", f"COPY ({caught}) TO '{out}/quarantine/{name}' {FORM}")
