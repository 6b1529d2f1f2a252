"""Demands as Great Expectations suites on pandas profiles, their results as JSON, and Data Docs.

Great Expectations costs 3 to 5 s to import and about 20 ms an expectation, whatever the size of the log: its frames
have a row per day. Data Docs are static pages under docs/; they take their styles from a CDN, so that without a network
they are readable but plain.
"""

import json
import logging
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipelines.etl.quality.suites import Demand, show

Report = dict[str, Any]

SHOWN = 3
"""Days of a failed expectation that are named; the JSON has them all."""
SITE = "docs"


class Validator:
    """One Great Expectations context in memory: it runs suites, and builds the Data Docs of those it ran."""

    def __init__(self) -> None:
        os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
        import great_expectations as gx

        logging.getLogger("great_expectations").setLevel(logging.WARNING)
        self._context = gx.get_context(mode="ephemeral")
        self._context.variables.progress_bars = {"globally": False}
        self._source = self._context.data_sources.add_pandas("profiles")

    def run(self, name: str, frame: Any, demands: Sequence[Demand], path: Path) -> Report:
        """Hold a profile ([rows] pandas.DataFrame with `day`) to its demands; write `path` and return what it says.

        {suite, success (nothing critical failed), expectations: [{expectation, column, severity, success, observed,
        expected, days, remedy}]}, in the order of the demands.
        """
        import great_expectations as gx

        suite = gx.ExpectationSuite(name=name, expectations=[_expectation(d, n) for n, d in enumerate(demands)])
        definition = self._context.validation_definitions.add(
            gx.ValidationDefinition(
                name=name,
                data=self._source.add_dataframe_asset(name).add_batch_definition_whole_dataframe(name),
                suite=self._context.suites.add(suite),
            )
        )
        # The complete format would name the days itself, at half as much again.
        result = definition.run(batch_parameters={"dataframe": frame}, result_format="BASIC")
        # Great Expectations returns its results in an order of its own.
        found = sorted(result.results, key=lambda one: one.expectation_config.meta["order"])
        outcomes = [_outcome(one, demand, frame) for one, demand in zip(found, demands, strict=True)]
        report = {
            "suite": name,
            "success": all(one["success"] or one["severity"] != "critical" for one in outcomes),
            "expectations": outcomes,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(report, indent=1))
        return report

    def build_docs(self, folder: Path) -> Path:
        """Write the Data Docs of every suite run so far to `folder`, in place of those that lie there; the index."""
        unfinished = folder.with_name(folder.name + ".part")
        shutil.rmtree(unfinished, ignore_errors=True)
        self._context.add_data_docs_site(
            SITE,
            {
                "class_name": "SiteBuilder",
                "show_how_to_buttons": False,
                "site_index_builder": {"class_name": "DefaultSiteIndexBuilder"},
                # The page of a result shows its suite: a page of the suite alone costs as much and adds nothing.
                "site_section_builders": {"expectations": "None"},
                "store_backend": {
                    "class_name": "TupleFilesystemStoreBackend",
                    "base_directory": str(unfinished.resolve()),
                },
            },
        )
        self._context.build_data_docs(site_names=[SITE])
        shutil.rmtree(folder, ignore_errors=True)
        unfinished.replace(folder)
        return folder / "index.html"


def _expectation(demand: Demand, order: int) -> Any:
    import great_expectations.expectations as gxe

    # The description is all that the page of a result shows of these: severity and remedy stand in no other place.
    what = f"{demand.severity}: {demand.metric or 'columns'} {demand.expected}; {demand.remedy}"
    says = {"severity": demand.severity, "description": what, "meta": {"order": order}}
    if demand.columns:
        return gxe.ExpectTableColumnsToMatchSet(column_set=list(demand.columns), exact_match=False, **says)
    if demand.low is None and demand.high is None:
        return gxe.ExpectColumnToExist(column=demand.metric, **says)
    return gxe.ExpectColumnValuesToBeBetween(
        column=demand.metric, min_value=demand.low, max_value=demand.high, strict_min=demand.strict, **says
    )


def _outcome(found: Any, demand: Demand, frame: Any) -> Report:
    raised = _raised(found.exception_info)
    broken = [] if raised or found.success or demand.metric not in frame else demand.broken(frame)
    return {
        "expectation": found.expectation_config.type,
        "column": demand.metric,
        "severity": demand.severity,
        "success": bool(found.success),
        "observed": raised or _observed(broken, demand, frame),
        "expected": demand.expected,
        "days": [day for day, _ in broken],
        "remedy": demand.remedy,
    }


def _raised(info: Any) -> str | None:
    """What Great Expectations says instead of a result; its exceptions may lie one level deeper, by metric."""
    for one in (info, *(info or {}).values()):
        if isinstance(one, dict) and one.get("raised_exception"):
            return str(one["exception_message"])
    return None


def _observed(broken: Sequence[tuple[str, float]], demand: Demand, frame: Any) -> str:
    if demand.columns:
        missing = sorted(set(demand.columns) - set(frame.columns))
        return f"not measured: {', '.join(missing)}" if missing else "all measured"
    if broken:
        named = ", ".join(f"{show(value)} on {day}" for day, value in broken[:SHOWN])
        return named + (f" and {len(broken) - SHOWN} more days" if len(broken) > SHOWN else "")
    values = frame[demand.metric].dropna() if demand.metric in frame else []
    if not len(values):
        return "no value to judge"
    least, largest = show(float(min(values))), show(float(max(values)))
    return least if least == largest else f"{least} to {largest}"
