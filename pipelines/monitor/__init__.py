"""What was scored against what was logged and earned, night by night: figures, expectations, a page.

run_dir/monitor/NIGHT holds:

| file              | is |
|-------------------|----|
| monitor.json      | every figure of the night, see `monitor_night` |
| expectations.json | the same held to bounds, as Great Expectations found |
| monitor.html      | both for people; one file that loads nothing |

A night is looked at again until it is settled: its log has reached its last valid_until, and the transitions of its
decisions are there. User ids are in none of it.
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
from pyspark.sql import DataFrame, Row, SparkSession
from pyspark.sql import functions as F

from models.errors import InputError
from models.registry import Registry
from pipelines import reading
from pipelines.config import Config
from pipelines.etl.features import DAY
from pipelines.etl.flow import explained
from pipelines.etl.plans import text_of
from pipelines.etl.quality.expect import Validator
from pipelines.etl.quality.suites import CRITICAL, WARNING
from pipelines.monitor import earnings, matching, shifts
from pipelines.monitor.expectations import FROZEN, SUITE, demands
from pipelines.monitor.nights import NAMELESS, Model, Nights, earlier_reports, manifest_of, model_of
from pipelines.monitor.page import write_page
from policies.draws import Draws
from policies.ope.diagnostics import FEW_CLUSTERS

Report = dict[str, Any]


def nights_to_monitor(
    config: Config, nights: Nights, night: str | None, first: str | None, last: str | None
) -> list[str]:
    """The nights that were asked for; by default the newest and those before it that are not settled, within
    `monitor.window_nights`.

    Raises InputError where a night and a range are named, a range without its first, or as `Nights.between` does.
    """
    if night is not None and (first is not None or last is not None):
        raise InputError("monitor: --night with --from or --to; name one night, or the first and the last.")
    if night is not None:
        return nights.between(night, night)
    if first is not None:
        return nights.between(first, last or first)
    if last is not None:
        raise InputError(f"--to {last}: without --from; name the first night too.")
    newest = list(nights.paths)[-1]
    recent = [each for each in nights.around(newest, config.monitor.window_nights - 1) if each < newest]
    settled = {report["night"] for report in earlier_reports(config, recent) if report["settled"]}
    return [*(each for each in recent if each not in settled), newest]


def monitor_night(spark: SparkSession, config: Config, nights: Nights, night: str, versions: Registry) -> Report:
    """Everything that can be said of a night by now, ready for JSON; counts and sums only come to the driver.

    Raises InputError where the log cannot be read as mapped, or the night has no row with a time.
    """
    policy, version = nights.facts(night)
    model = model_of(versions, version)
    with explained(), ExitStack() as held:

        def kept(rows: DataFrame) -> DataFrame:
            held.callback(rows.cache().unpersist)
            return rows

        scores = kept(matching.scored_rows(spark, nights.table, [night]))
        span = matching.span_of(scores)
        # Nights that far away can have decided in the same time.
        others = nights.around(night, 1 + (span.last - span.first) // DAY)
        rest = matching.scored_rows(spark, nights.table, others) if others else scores.limit(0)
        log = kept(matching.logged_rows(spark, config, span))
        answered = kept(matching.answers(scores, log, rest))
        firsts = matching.ranked(answered)
        end = matching.log_end(log)
        fates = kept(matching.scored_fates(scores, log, firsts, end))
        logged = matching.logged_fates(answered, firsts, scores, rest, span).groupBy("fate").count().collect()
        rows = _rows(matching.counted(fates), logged)
        draws = _draws(matching.drawn(fates, config.actions), config.actions)
        users = _distinct(scores)
        answers = fates.where("fate = 'matched'").select("user_id", "answer_id")
        transitions = earnings.transition_rows(spark, config, span.first, span.last)
        mine = None if transitions is None else kept(earnings.ours(transitions, answers))
        drift = _drift(config, nights, night, model, mine, users)
        window = nights.window(night, config.monitor.window_nights)
        earned = _earned(spark, config, nights, window, model)
    before = [each for each in nights.around(night, config.monitor.window_nights) if each < night]
    usual = [each["action_rate"] for each in earlier_reports(config, before) if not each["rows"]["by_rule"].get(FROZEN)]
    return {
        "night": night,
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "name": config.name,
        "policy": policy,
        "policy_version": version,
        "model": {}
        if model is None
        else {key: model.artifact.lineage.get(key) for key in ("learner", "window", "data_version")},
        "decides": [text_of(span.first), text_of(span.last)],
        "log_end": None if end is None else text_of(end),
        "settled": end is not None and end >= span.last and not drift["waits"],
        "users": users,
        **rows,
        "draws": draws,
        "action_rate": _rates(draws, rows, config.actions, usual),
        "drift": drift,
        "earned": {**earned, "nights": window},
        "manifest": manifest_of(config, night),
    }


def _rows(counts: Sequence[Row], logged: Sequence[Row]) -> Report:
    """Counts of rows by fate, by action and by rule; and how far what was done is what was scored."""
    fates = dict.fromkeys(matching.SCORED_FATES, 0)
    by_action: dict[str, int] = {}
    by_rule: dict[str, int] = {}
    lost: dict[str, int] = {}
    met: dict[str, int] = {}
    pairs: dict[tuple[str, str], int] = {}
    told = dict.fromkeys(("same", "missing", "differs"), 0)
    for row in sorted(counts, key=str):
        n, action = row["count"], row["action"]
        fates[row["fate"]] += n
        by_action[action] = by_action.get(action, 0) + n
        by_rule[row["rule"] or "policy"] = by_rule.get(row["rule"] or "policy", 0) + n
        if row["fate"] == "never_logged":
            lost[action] = lost.get(action, 0) + n
        if row["fate"] == "matched":
            met[action] = met.get(action, 0) + n
        if row["fate"] == "matched" and row["propensity_is"] is None:
            pair = action, str(row["answer"])
            pairs[pair] = pairs.get(pair, 0) + n
        if row["propensity_is"] is not None:
            told[row["propensity_is"]] += n
    of_log = {**dict.fromkeys(matching.LOGGED_FATES, 0), **{row["fate"]: row["count"] for row in logged}}
    return {
        "rows": {
            "scored": sum(fates.values()),
            "fates": fates,
            "by_action": by_action,
            "by_rule": by_rule,
            "never_logged_by_action": lost,
            "matched_by_action": met,
            "logged": sum(of_log.values()),
            "logged_fates": of_log,
        },
        "agreement": {
            "otherwise": sum(pairs.values()),
            "pairs": [{"scored": scored, "logged": done, "rows": n} for (scored, done), n in pairs.items()],
            "propensity_same": told["same"],
            "propensity_missing": told["missing"],
            "propensity_differs": told["differs"],
        },
    }


def _draws(sums: Sequence[Row], actions: Sequence[str]) -> Report:
    """`scored` of all rows, `answered` of matched ones: action -> {whole, bins} of sums over draws."""
    found: Report = {}
    for family, taken in (("scored", "scored"), ("answered", "answered")):
        mine = [row for row in sums if family == "scored" or row["fate"] == "matched"]
        found[family] = {}
        for place, action in enumerate(actions):
            bins = [Draws() for _ in range(matching.BINS)]
            for row in (row for row in mine if row["place"] == place):
                bins[row["bin"]] += Draws(row["n"], row[taken], row["expected"], row["variance"])
            whole = sum(bins, Draws())
            found[family][action] = {
                "whole": _sums(whole),
                "z": whole.z,
                "p": whole.p_value,
                "bins": [{"bin": b, **_sums(each), "z": each.z} for b, each in enumerate(bins) if each.n],
            }
    return found


def _sums(draws: Draws) -> Report:
    return {"n": draws.n, "taken": draws.taken, "expected": draws.expected, "variance": draws.variance}


def _rates(
    draws: Report, rows: Report, actions: Sequence[str], earlier: Sequence[Mapping[str, Any]]
) -> dict[str, Report]:
    """Per action over all scored rows: the share that was scored, that the probabilities expected, and that of earlier
    nights; and over matched rows the share that was done."""
    found = {}
    counted = rows["rows"]
    done: dict[str, int] = {}
    matched = counted["fates"]["matched"]
    for pair in rows["agreement"]["pairs"]:
        done[pair["logged"]] = done.get(pair["logged"], 0) + pair["rows"]
        done[pair["scored"]] = done.get(pair["scored"], 0) - pair["rows"]
    by_action = counted["matched_by_action"]
    for action in actions:
        whole = draws["scored"][action]["whole"]
        # What was certain came out as it had to: its rows are among those of the action, and no draw.
        certain = counted["by_action"].get(action, 0) - whole["taken"]
        n = counted["scored"]
        found[action] = {
            "scored": counted["by_action"].get(action, 0) / n if n else None,
            "expected": (whole["expected"] + certain) / n if n else None,
            "done": (by_action.get(action, 0) + done.get(action, 0)) / matched if matched else None,
            "history": [
                rate[action]["expected"] for rate in earlier if rate.get(action, {}).get("expected") is not None
            ],
        }
    return found


def _drift(
    config: Config, nights: Nights, night: str, model: Model | None, states: DataFrame | None, users: int
) -> Report:
    """Values of the night at once; features once there are `states`, transitions of its decisions.

    `left_out` says what could not be compared and why, `waits` whether that will come.
    """
    left_out: dict[str, str] = {}
    found: Report = {"values": None, "features": None, "left_out": left_out, "reference": None, "waits": False}
    if model is None:
        return {**found, "left_out": dict.fromkeys((shifts.VALUES, shifts.STATES), NAMELESS)}
    try:
        reference = shifts.reference_of(config, model.artifact)
    except InputError as error:
        return {**found, "left_out": dict.fromkeys((shifts.VALUES, shifts.STATES), str(error))}
    alphas = (config.monitor.false_alarm, config.monitor.critical_alarm)
    version = model.artifact.lineage.get("data_version")
    found["reference"] = {"rows": reference.rows, "users": reference.users, "version": version}
    counts = shifts.counted_here(
        reference.bins[shifts.VALUES], nights.values(night, shifts.value_columns(model.artifact))
    )
    if shifts.rows_in(counts):
        found["values"] = shifts.described(reference, shifts.VALUES, counts, users, alphas)
    else:
        left_out[shifts.VALUES] = "the model judged no row of the night"
    people = 0 if states is None else _distinct(states)
    if states is None or not people:
        left_out[shifts.STATES] = "no transition of the night's decisions is there yet; `tactful etl` makes them"
        return {**found, "waits": True}
    counts = shifts.counted_there(states, reference.bins[shifts.STATES])
    found["features"] = shifts.described(reference, shifts.STATES, counts, people, alphas)
    return found


def _distinct(rows: DataFrame) -> int:
    """Users in `rows`."""
    found = rows.agg(F.count_distinct("user_id").alias("users")).first()
    return 0 if found is None else int(found["users"])


def _earned(spark: SparkSession, config: Config, nights: Nights, window: Sequence[str], model: Model | None) -> Report:
    """What the nights of the window, all of one version, earned, against what was predicted of it."""
    scores = matching.scored_rows(spark, nights.table, window)
    span = matching.span_of(scores)
    log = matching.logged_rows(spark, config, span)
    firsts = matching.ranked(matching.answers(scores, log, scores.limit(0)))
    answers = firsts.where("rank = 1 and place = 0").select("user_id", F.col("row_id").alias("answer_id"))
    transitions = earnings.transition_rows(spark, config, span.first)
    found = None
    if transitions is not None:
        learned = reading.learned_rewards(config, None if model is None else model.artifact.lineage, deployed=True)
        found = earnings.earned(earnings.with_learned(transitions, config, learned), answers, config)
    return earnings.compared(found, earnings.prediction(config, model), config, FEW_CLUSTERS)


def folder_of(config: Config, night: str) -> Path:
    """Where what is said of a night lies."""
    return config.run_dir / "monitor" / night


def judge_night(validator: Validator, config: Config, report: Report) -> Report:
    """Hold a night to its expectations; writes expectations.json and returns what it says."""
    measures, wanted = demands(report, config)
    frame = pd.DataFrame([{"day": report["night"], **measures}])
    name = f"{SUITE}_{report['night']}"
    return validator.run(name, frame, wanted, folder_of(config, report["night"]) / "expectations.json")


def failures(suite: Mapping[str, Any], severity: str) -> list[str]:
    """A line per failed expectation of a severity: what, found, expected, remedy."""
    return [
        f"{one['column']} is {one['observed']}, expected {one['expected']}; {one['remedy'].rstrip('.')}."
        for one in suite["expectations"]
        if not one["success"] and one["severity"] == severity
    ]


def write_night(config: Config, report: Report) -> Path:
    """Write monitor.json and monitor.html of a night; returns its folder."""
    folder = folder_of(config, report["night"])
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = folder / "monitor.part"
    unfinished.write_text(json.dumps(report, indent=1, allow_nan=False))
    unfinished.replace(folder / "monitor.json")
    write_page(report, folder / "monitor.html")
    return folder


def in_words(report: Mapping[str, Any], folder: Path) -> str:
    """A night in a few lines, for the terminal: what failed, and where the page is."""
    fates = report["rows"]["fates"]
    lines = [
        f"{report['night']}: {report['rows']['scored']} scored by version {report['policy_version']}, "
        + ", ".join(f"{n} {fate.replace('_', ' ')}" for fate, n in fates.items() if n)
    ]
    for severity in (CRITICAL, WARNING):
        lines += [f"  {severity}: {line}" for line in failures(report["expectations"], severity)]
    return "\n".join([*lines, f"  {folder / 'monitor.html'}"])
