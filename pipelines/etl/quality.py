"""What a run must hold to go on: expectations at each boundary, quarantined shares, propensities that make sense."""

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from models.contract import Contract
from models.errors import QualityError
from pipelines.etl.features import KINDS
from pipelines.etl.schemas import transition_schema

CRITICAL, WARNING = "critical", "warning"
INVERSE_SUM = (0.8, 1.25)
STANDARD_ERRORS = 4.0
"""An inverse sum outside the range counts only this many standard errors of the mean away from 1."""

Suite = list[tuple[Any, str]]
"""Expectations, each with what to do where it fails."""


def decisions_suite(contract: Contract) -> Suite:
    """What raw decisions must be like before anything is made of them."""
    import great_expectations.expectations as gxe

    return [
        (
            gxe.ExpectTableRowCountToBeBetween(min_value=1, severity=CRITICAL),
            "check data.decisions.path: it has no rows",
        ),
        *_present({"user_id": "user_id", "row_id": "decision_id", "at": "decided_at"}, "decisions"),
        (
            gxe.ExpectColumnValuesToBeInSet(
                column="label", value_set=list(contract.actions), mostly=0.95, severity=CRITICAL
            ),
            "name every action of the log in `actions`, or map data.decisions.columns.action",
        ),
        (
            gxe.ExpectColumnValuesToBeBetween(
                column="propensity", min_value=0, max_value=1, strict_min=True, mostly=0.95, severity=CRITICAL
            ),
            "log the probability of the action taken, in (0, 1], or null where unknown",
        ),
        (
            gxe.ExpectColumnValuesToNotBeNull(column="propensity", mostly=0.5, severity=WARNING),
            "log propensities: without them nothing can be evaluated but the logging policy",
        ),
    ]


def events_suite() -> Suite:
    """What raw events must be like."""
    import great_expectations.expectations as gxe

    return [
        (gxe.ExpectTableRowCountToBeBetween(min_value=1, severity=CRITICAL), "check data.events.path: it has no rows"),
        *_present({"user_id": "user_id", "row_id": "event_id", "at": "occurred_at"}, "events"),
        (
            gxe.ExpectColumnValuesToBeInSet(column="label", value_set=list(KINDS), mostly=0.95, severity=CRITICAL),
            f"map data.events.columns.kind to {', '.join(KINDS)}, or leave other events out",
        ),
    ]


def transitions_suite(contract: Contract) -> Suite:
    """What transitions must be like before they are committed."""
    import great_expectations.expectations as gxe

    usable = "usable = true"
    return [
        (
            gxe.ExpectTableRowCountToBeBetween(min_value=1, severity=CRITICAL),
            "no decision lies before the watermark: set etl.watermark, or wait for more of the log",
        ),
        (
            gxe.ExpectTableColumnsToMatchSet(
                column_set=transition_schema(contract).names, exact_match=True, severity=CRITICAL
            ),
            "rebuild the table with --rebuild",
        ),
        *(
            (gxe.ExpectColumnValuesToNotBeNull(column=name, severity=CRITICAL), "report this: the ETL must set it")
            for name in ("user_id", "decided_at", "split", "legal", "elapsed_days")
        ),
        (
            gxe.ExpectColumnValuesToBeBetween(column="elapsed_days", min_value=0, severity=CRITICAL),
            "report this: time ran backwards",
        ),
        (
            gxe.ExpectColumnValuesToBeBetween(
                column="propensity", min_value=0, max_value=1, strict_min=True, severity=CRITICAL
            ),
            "report this: a propensity outside (0, 1] passed quarantine",
        ),
        (
            gxe.ExpectColumnValuesToNotBeNull(
                column="action", row_condition=usable, condition_parser="spark", severity=CRITICAL
            ),
            "report this: a usable row has no action",
        ),
        (
            gxe.ExpectColumnValuesToNotBeNull(
                column="propensity", row_condition=usable, condition_parser="spark", severity=WARNING
            ),
            "log propensities, or estimate them before evaluation",
        ),
    ]


def _present(columns: Mapping[str, str], dataset: str) -> Suite:
    import great_expectations.expectations as gxe

    return [
        (
            gxe.ExpectColumnValuesToNotBeNull(column=column, mostly=0.95, severity=CRITICAL),
            f"map data.{dataset}.columns.{name}: it is empty or cannot be read",
        )
        for column, name in columns.items()
    ]


def check(frame: DataFrame, name: str, suite: Suite, folder: Path) -> dict[str, Any]:
    """Run a suite with Great Expectations, write `folder`/`name`.json and return what it says.

    Raises QualityError naming each critical expectation that failed, its column, what was observed and the remedy.
    """
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
    import great_expectations as gx

    logging.getLogger("great_expectations").setLevel(logging.WARNING)
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False}
    source = context.data_sources.add_spark(name, persist=False)
    batch = source.add_dataframe_asset(name).add_batch_definition_whole_dataframe(name)
    expectations = gx.ExpectationSuite(name=name, expectations=[expectation for expectation, _ in suite])
    result = batch.get_batch({"dataframe": frame}).validate(expectations, result_format="BASIC")
    remedies = {_key(expectation.expectation_type, _column(expectation)): remedy for expectation, remedy in suite}
    outcomes = []
    for found in result.results:
        config = found.expectation_config
        column = config.kwargs.get("column")
        outcomes.append(
            {
                "expectation": config.type,
                "column": column,
                "severity": str(getattr(config.severity, "value", config.severity)),
                "success": bool(found.success),
                "observed": _observed(found),
                "remedy": remedies[_key(config.type, column)],
            }
        )
    report = {"suite": name, "success": bool(result.success), "expectations": outcomes}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(report, indent=1, default=str))
    failed = [o for o in outcomes if not o["success"] and o["severity"] == CRITICAL]
    if failed:
        raise QualityError("\n".join(_explain(name, outcome) for outcome in failed))
    return report


def _key(kind: str, column: str | None) -> tuple[str, str | None]:
    return kind, column


def _column(expectation: Any) -> str | None:
    return getattr(expectation, "column", None)


def _observed(found: Any) -> str:
    if found.exception_info and found.exception_info.get("raised_exception"):
        return str(found.exception_info.get("exception_message"))
    result = found.result
    if "unexpected_count" in result:
        examples = ", ".join(str(value) for value in result.get("partial_unexpected_list", [])[:3])
        share = result.get("unexpected_percent") or 0.0
        return f"{result['unexpected_count']} of {result['element_count']} rows ({share:.1f}%): {examples}".rstrip(": ")
    return str(result.get("observed_value", ""))


def _explain(name: str, outcome: Mapping[str, Any]) -> str:
    column = f" of {outcome['column']!r}" if outcome["column"] else ""
    return f"{name}: {outcome['expectation']}{column} failed: found {outcome['observed']}; {outcome['remedy']}."


def check_quarantined(name: str, counts: Mapping[str, Any], most: float) -> None:
    """Raise QualityError, with reasons and counts, where a larger share than `most` of a dataset is quarantined."""
    read, by_reason = counts["read"], counts["by_reason"]
    caught = sum(by_reason.values())
    if caught > most * read:
        reasons = ", ".join(f"{name} {count}" for name, count in sorted(by_reason.items(), key=lambda item: -item[1]))
        raise QualityError(
            f"{name}: {caught} of {read} rows ({caught / read:.1%}) are quarantined, more than "
            f"etl.max_quarantined = {most:.1%}: {reasons}; the rows and the remedies are in "
            f"quarantine/{name}; mend the log, or raise it."
        )


def check_propensities(decisions: DataFrame, contract: Contract) -> dict[str, float]:
    """The propensities over rows with a choice (more than one action legal by the log) and a known propensity.

    c = mean |legal| / mean(1 / p) is what the propensities of a row's legal actions sum to on average, since
    E[1 / mu(a)] = |legal|. Returns rows, and c (`inverse_sum`, 1 if the propensities are right).
    Raises QualityError for a deterministic log, and for c outside [0.8, 1.25] by more than 4 standard errors.
    """
    options = F.coalesce(F.array_size(F.array_distinct("legal")), F.lit(len(contract.actions)))
    choice = decisions.where(F.col("propensity").isNotNull()).select("propensity", options.alias("options"))
    inverse = 1 / F.col("propensity")
    row = (
        choice.where("options > 1")
        .agg(
            F.count("*").alias("rows"),
            F.min("propensity").alias("least"),
            F.avg("options").alias("options"),
            F.avg(inverse).alias("inverse"),
            F.stddev(inverse).alias("spread"),
        )
        .first()
    )
    if row is None or not row["rows"]:
        return {"rows": 0}
    if row["least"] >= 1:
        raise QualityError(
            f"decisions: all {row['rows']} choices were logged with propensity 1: the logging policy never explored, "
            "so no other policy can be judged from this log; let it explore (2% at random is enough), or log its true "
            "propensities."
        )
    ratio = row["inverse"] / row["options"]
    error = (row["spread"] or 0.0) / row["options"] / row["rows"] ** 0.5
    total = 1 / ratio
    if not INVERSE_SUM[0] <= total <= INVERSE_SUM[1] and abs(ratio - 1) > STANDARD_ERRORS * error:
        raise QualityError(
            f"decisions: the propensities over the legal actions sum to about {total:.2f}, not 1 "
            f"({row['rows']} rows with a choice); log the probability of the action taken, and in legal_actions "
            "only what the policy could take."
        )
    return {"rows": int(row["rows"]), "inverse_sum": float(total)}
