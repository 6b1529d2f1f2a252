"""What the scored decisions earned, from the transitions that the ETL made of them, against what was predicted."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from deltalake import DeltaTable
from pyspark.sql import Column, DataFrame, SparkSession, Window
from pyspark.sql import functions as F
from pyspark.sql.types import DoubleType, StructField, StructType

from models.contract import REWARD_PREFIX, Contract
from models.rewards.learned import LearnedRewards
from models.table import beside_rows
from models.training import BEHAVIOUR
from pipelines.config import Config
from pipelines.etl import store
from pipelines.etl.blocks import Batches
from pipelines.etl.features import DAY, HOUR
from pipelines.etl.plans import text_of
from pipelines.etl.sources import quoted
from pipelines.monitor.nights import NAMELESS, Model
from policies.baselines import LoggingPolicy
from policies.earned import Moments, against
from policies.rowset import CTR

WEEK = 7.0


@dataclass(frozen=True)
class Earned:
    """Sums over the users whom the nights of a window scored."""

    moments: dict[str, Moments]
    """By component and, where there are clicks and sends, ctr."""
    users: int
    decisions: int
    silent: int
    """Rows without a decision that follow a scored one of their user."""
    open_clicks: int
    """Decisions whose click window is not over."""
    days: float
    """From the first of these decisions to the end of what is known of them."""


def transition_rows(spark: SparkSession, config: Config, first: int, last: int | None = None) -> DataFrame | None:
    """The usable transitions decided from `first` to `last` (us); None where there is no table, or no such day."""
    table = store.opened(config.transitions_path)
    if table is None:
        return None
    paths = _paths(table, _day(first), None if last is None else _day(last))
    if not paths:
        return None
    rows = spark.read.parquet(*paths).withColumn("at", F.unix_micros("decided_at")).where(F.col("at") >= first)
    return rows.where("usable" if last is None else (F.col("usable") & (F.col("at") <= last)))


def _day(moment: int) -> str:
    """The UTC date of a time in us."""
    return text_of(moment)[:10]


def _paths(table: DeltaTable, first: str, last: str | None) -> list[str]:
    inside = [p for p, part in store.files(table) if first <= part["ds"] and (last is None or part["ds"] <= last)]
    return [str(store.place(table, path)) for path in inside]


def ours(transitions: DataFrame, answers: DataFrame) -> DataFrame:
    """The transitions of the decisions in `answers` (user_id, answer_id), which a scored row had led to."""
    return transitions.where("not silent").join(_keys(answers), _is_ours(), "left_semi")


def _is_ours() -> Column:
    return (F.col("user_id") == F.col("their_user")) & (F.col("decision_id") == F.col("their_decision"))


def _keys(answers: DataFrame) -> DataFrame:
    return answers.select(F.col("user_id").alias("their_user"), F.col("answer_id").alias("their_decision")).distinct()


def with_learned(transitions: DataFrame, config: Config, learned: LearnedRewards | None) -> DataFrame:
    """The usable transitions, all of each user's from some time on, with a column for each learned reward.

    The silent rows after a closed account are taken in by the row that closed it, and earn nothing of their own.
    """
    if learned is None:
        return transitions
    names, place = [stored.name for stored in learned.stored], str(config.transitions_path)

    def extend(batches: Batches) -> Batches:
        found = list(batches)
        rows = pa.Table.from_batches(found) if found else None
        if rows is None or not rows.num_rows:
            return
        # Whole users are here, whichever bucket they are of.
        whole = rows.append_column("bucket", pa.repeat(0, rows.num_rows))
        table, ordered, kept = beside_rows(whole, learned.logged, place)
        extended = learned(table)
        for name in names:
            column = np.zeros(ordered.num_rows)
            column[kept] = extended.reward[:, extended.contract.rewards.index(name)]
            ordered = ordered.append_column(REWARD_PREFIX + name, pa.array(column))
        yield from ordered.drop_columns(["bucket"]).to_batches()

    added = [StructField(REWARD_PREFIX + name, DoubleType()) for name in names]
    return transitions.repartition("user_id").mapInArrow(extend, StructType([*transitions.schema.fields, *added]))


def earned(transitions: DataFrame, answers: DataFrame, config: Config) -> Earned | None:
    """What the decisions in `answers` earned, and the silent rows after the first of them; None where there are none.

    Per user sums of each component, of weeks and of decisions, then their moments: one row comes back.
    """
    contract, per_week = config.contract, config.evaluate.per == "week"
    marked = transitions.join(_keys(answers), _is_ours(), "left").withColumn(
        "mine", F.col("their_user").isNotNull() & ~F.col("silent")
    )
    since = F.min(F.when(F.col("mine"), F.col("at"))).over(Window.partitionBy("user_id"))
    rows = marked.withColumn("since", since).where(F.col("mine") | (F.col("silent") & (F.col("at") >= F.col("since"))))
    if not per_week:
        rows = rows.where("mine")
    rows = rows.withColumn("ends", F.col("at") + F.round(F.col("elapsed_days") * DAY).cast("long")).cache()
    try:
        span = rows.agg(F.min("since").alias("first"), F.max("ends").alias("last")).first()
        if span is None or span["first"] is None:
            return None
        window = round(config.etl.click_window_hours * HOUR)
        still_open = F.col("mine") & (F.col("at") + window > span["last"])
        users = rows.groupBy("user_id").agg(
            *(F.sum(quoted(REWARD_PREFIX + name)).alias(f"y{k}") for k, name in enumerate(contract.rewards)),
            (F.sum("elapsed_days") / WEEK).alias("weeks"),
            F.sum(F.col("mine").cast("long")).alias("decisions"),
            F.sum(F.col("silent").cast("long")).alias("silent"),
            F.sum(still_open.cast("long")).alias("open"),
        )
        pairs = _pairs(contract, "weeks" if per_week else "decisions")
        sums = [
            F.sum(expression).alias(f"{name}_{place}")
            for place, (y, d) in enumerate(pairs.values())
            for name, expression in _moments(F.col(y), F.col(d)).items()
        ]
        counts = [F.count("*").alias("users"), *(F.sum(name).alias(name) for name in ("decisions", "silent", "open"))]
        found = users.agg(*counts, *sums).first()
    finally:
        rows.unpersist()
    assert found is not None, "an aggregate without groups is one row"
    moments = {
        metric: Moments(found["users"], *(float(found[f"{name}_{place}"]) for name in ("y", "d", "yy", "yd", "dd")))
        for place, metric in enumerate(pairs)
    }
    days = (span["last"] - span["first"]) / DAY
    return Earned(moments, found["users"], found["decisions"], found["silent"], found["open"], days)


def _pairs(contract: Contract, divisor: str) -> dict[str, tuple[str, str]]:
    """Metric -> the user's two totals whose ratio it is."""
    pairs = {name: (f"y{k}", divisor) for k, name in enumerate(contract.rewards)}
    if {"clicks", "sends"} <= set(pairs):
        pairs[CTR] = (pairs["clicks"][0], pairs["sends"][0])
    return pairs


def _moments(y: Any, d: Any) -> dict[str, Any]:
    y, d = y.cast("double"), d.cast("double")
    return {"y": y, "d": d, "yy": y * y, "yd": y * d, "dd": d * d}


def prediction(config: Config, model: Model | None) -> dict[str, Any]:
    """What evaluation had said of the policy that scored: {policy, confidence, estimates, left_out}.

    By what the registry keeps beside the version, or else the run's newest evaluation where that judged this very
    artifact. Of the cloned logging policy, the log's own mean. `left_out` says why there is none.
    """
    none: dict[str, Any] = {"policy": None, "estimates": {}, "confidence": config.evaluate.confidence}
    if model is None:
        return {**none, "left_out": NAMELESS}
    evaluation, name = _evaluated(config, model)
    estimator = "on_policy" if name == LoggingPolicy().name else config.gate.estimator
    found = evaluation.get("policies", {}).get(name, {})
    if estimator not in found.get("estimates", {}):
        return {**none, "left_out": "there is no evaluation of the version that scored"}
    if estimator in found.get("withheld", {}):
        return {**none, "left_out": f"evaluation withheld it: {found['withheld'][estimator]}"}
    if evaluation["per"] != config.evaluate.per:
        return {**none, "left_out": f"the evaluation is per {evaluation['per']}, evaluate.per is another by now"}
    estimates, confidence = found["estimates"][estimator], evaluation["confidence"]
    return {"policy": name, "confidence": confidence, "estimates": estimates, "left_out": None}


def _evaluated(config: Config, model: Model) -> tuple[Mapping[str, Any], str | None]:
    """The evaluation that speaks of a version, and what it calls it."""
    learner = str(model.artifact.lineage.get("learner"))
    if model.evaluation is not None:
        return model.evaluation, learner
    path = config.run_dir / "steps" / "evaluate.json"
    if not path.exists():
        return {}, None
    left = json.loads(path.read_text())
    named = {fingerprint: name for name, fingerprint in left.get("judged", {}).items()}
    return left["evaluation"], named.get(
        model.artifact.fingerprint, LoggingPolicy().name if learner == BEHAVIOUR else None
    )


def compared(found: Earned | None, predicted: Mapping[str, Any], config: Config, users_needed: int) -> dict[str, Any]:
    """Realised against predicted, per metric, and whether the window is long enough to judge by; ready for JSON."""
    if found is None:
        why = "no transition of a scored decision is there yet: run `tactful etl` over the days after the night"
        return {"left_out": why, "judged": False, "metrics": {}}
    alarm = config.monitor.false_alarm / max(len(found.moments), 1)
    short = []
    if config.evaluate.per == "week" and found.days < config.monitor.min_days:
        short.append(f"{found.days:.1f} days are known, monitor.min_days is {config.monitor.min_days:g}")
    if found.users < users_needed:
        short.append(f"{found.users} users are fewer than {users_needed}, of whom no normal interval holds")
    metrics = {
        name: against(each, predicted["estimates"].get(name), predicted["confidence"], alarm)
        for name, each in found.moments.items()
    }
    return {
        "left_out": predicted["left_out"],
        "too_short": "; ".join(short) or None,
        "judged": not short and predicted["left_out"] is None,
        "policy": predicted["policy"],
        "confidence": predicted["confidence"],
        "unit": "per user-week" if config.evaluate.per == "week" else "per decision",
        "users": found.users,
        "decisions": found.decisions,
        "silent": found.silent,
        "open_clicks": found.open_clicks,
        "days": found.days,
        "metrics": metrics,
    }
