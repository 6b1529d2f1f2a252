"""Steps that tell people: the report, and the plan and the reading of an experiment."""

from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version as package_version
from typing import Any

from models.errors import QualityError
from pipelines import abtest_tables, abtesting
from pipelines import monitor as monitoring
from pipelines import summary as summaries
from pipelines.config import Config
from pipelines.etl.quality.expect import Validator
from pipelines.etl.quality.suites import CRITICAL, WARNING
from pipelines.jobs.steps import console, left_by, registry_of, session, step, step_path, write_json
from pipelines.monitor.nights import Nights
from pipelines.report import write_report

SEVERITIES = (WARNING, CRITICAL)


def report(config: Config) -> dict[str, Any]:
    """Write summary.json and report.html from what the steps left; returns the summary.

    Where `evaluate` found nothing learned, it is a report without a verdict.
    """
    with step(config, "report"):
        found = _summary(config)
        write_json(config.run_dir / "summary.json", found)
        write_report(found, config.run_dir / "report.html")
    if "verdict" in found:
        console.print(summaries.metrics_table(found))
        console.print(summaries.verdict_panel(found["verdict"]))
    console.print(f"[bold]{config.run_dir / 'report.html'}[/]  {config.run_dir / 'summary.json'}")
    return found


def _summary(config: Config) -> dict[str, Any]:
    left = {step: left_by(config, step) for step in ("etl", "evaluate")}
    only_evaluated = "lineage" in left["evaluate"]
    if not only_evaluated:
        left |= {step: left_by(config, step) for step in ("train", "promote")}
    estimated = left["evaluate"]["estimates_version"] is not None
    steps = ("simulate", *(("propensity",) if estimated else ()), *(() if only_evaluated else ("score",)))
    optional = {step: left_by(config, step) for step in steps if step_path(config, step).exists()}
    evaluation = left["evaluate"]["evaluation"]
    packages = ("tactful", "torch", "pyspark", "onnxruntime", "mlflow")
    found = {
        "name": config.name,
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "policies": summaries.policies(evaluation, config.gate.estimator),
        "rows": left["etl"]["rows"],
        "seconds": {step: each["seconds"] for step, each in sorted({**left, **optional}.items())},
        "evaluation": {**evaluation, "estimator": config.gate.estimator},
        "quality": left["etl"]["quality"],
        "lineage": {
            **left["evaluate" if only_evaluated else "train"]["lineage"],
            "watermark": left["etl"]["watermark"],
            "packages": {name: package_version(name) for name in packages},
        },
    }
    return {**found, "only_evaluated": True} if only_evaluated else _with_learning(config, found, left, optional)


def _with_learning(
    config: Config, found: dict[str, Any], left: dict[str, dict[str, Any]], optional: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    """The summary `found` with what was learned, judged, registered and scored."""
    swept = left_by(config, "sweep") if step_path(config, "sweep").exists() else None
    if swept is not None and swept["lineage"]["fingerprint"] != left["train"]["lineage"]["fingerprint"]:
        console.print("The sweep was made from other transitions and is left out of the report; run `tactful sweep`.")
        swept = None
    return {
        **found,
        "verdict": {
            **left["promote"]["verdict"],
            "estimator": config.gate.estimator,
            "metrics": {name: asdict(metric) for name, metric in config.gate.metrics.items()},
        },
        "training": {
            key: value for key, value in left["train"].items() if key not in {"lineage", "seconds", "mlflow_run"}
        },
        "scoring": {k: v for k, v in optional["score"].items() if k != "seconds"} if "score" in optional else None,
        "sweep": swept,
        "lineage": {
            **found["lineage"],
            "mlflow_run": left["train"]["mlflow_run"],
            "model_version": left["promote"]["registry"]["candidate"],
            "champion": left["promote"]["registry"]["champion"],
        },
    }


def monitor(
    config: Config, night: str | None = None, first: str | None = None, last: str | None = None
) -> dict[str, Any]:
    """Say of each night what was scored, logged and earned, and hold it to its expectations; returns their results.

    By default the newest night and those before it that are not settled. Raises InputError where there is no such
    night, QualityError, after everything is written, where a critical expectation failed.
    """
    nights = Nights.of(config)
    asked = monitoring.nights_to_monitor(config, nights, night, first, last)
    critical = []
    with step(config, "monitor") as result, session(config) as spark:
        validator, versions = Validator(), registry_of(config)
        for each in asked:
            report = monitoring.monitor_night(spark, config, nights, each, versions)
            report["expectations"] = monitoring.judge_night(validator, config, report)
            folder = monitoring.write_night(config, report)
            found = {severity: monitoring.failures(report["expectations"], severity) for severity in SEVERITIES}
            result[each] = {"settled": report["settled"], **found}
            critical += [f"{each}: {line}" for line in found[CRITICAL]]
            console.print(monitoring.in_words(report, folder), markup=False, highlight=False, soft_wrap=True)
    if critical:
        raise QualityError("\n".join(critical))
    return result


def abtest_plan(config: Config) -> dict[str, Any]:
    """Say how many users and days the experiment of [abtest] needs, from the log's own variance."""
    with step(config, "abtest_plan") as result:
        result.update(abtesting.run_plan(config))
        console.print(abtest_tables.plan_table(result), highlight=False)
    return result


def abtest_read(config: Config) -> dict[str, Any]:
    """Say what the arms of [abtest] differ in, and whether that is what evaluation had predicted."""
    with step(config, "abtest") as result:
        result.update(abtesting.run_read(config, step_path(config, "evaluate")))
        console.print(abtest_tables.read_table(result), highlight=False)
    return result
