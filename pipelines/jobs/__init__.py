"""The steps of the road: the only place that knows sessions, paths and arguments, one function per step.

Each step reads what the steps before it left in the run's folder and leaves its own result there:

| step     | reads                         | leaves |
|----------|-------------------------------|--------|
| simulate | nothing                       | the raw datasets of the configuration |
| etl      | the raw datasets              | transitions/, quarantine/, quality/, steps/etl.json |
| quality  | quality/profiles/             | quality/thresholds.json, steps/quality.json |
| propensity | transitions/                | propensities/ where the log lacks them, steps/propensity.json |
| train    | transitions/, propensities/   | policies/NAME/, an MLflow run, steps/train.json |
| evaluate | the same, policies/, other logs | tried.json, steps/evaluate.json |
| promote  | steps/evaluate.json, policies/| registry versions and aliases, steps/promote.json |
| score    | raw datasets, the registry    | scores/, steps/score.json |
| report   | steps/*.json                  | report.html, summary.json |
| monitor  | scores/, decisions, transitions/, the registry, steps/evaluate.json | monitor/NIGHT/, steps/monitor.json |

Beside the road: ready looks whether raw days have arrived and leaves nothing; sweep leaves sweep/NAME/, MLflow runs and
steps/sweep.json, which pick reads; abtest plan and abtest read leave steps/abtest_plan.json and steps/abtest.json;
handover writes a scored night to a file for the sender; `promote --version` and rollback leave entries in the
registry's journal; freeze leaves frozen.json, which score obeys until unfreeze removes it; vacuum removes files of the
tables, forget erases users from them and leaves forgotten.json.
"""

from typing import Any

from models import table
from pipelines.config import Config
from pipelines.etl.checks import check_inputs
from pipelines.etl.schemas import CANDIDATES, USERS
from pipelines.evaluating import check_logs
from pipelines.jobs.acting import freeze, handover, promote, promote_version, rollback, score, unfreeze
from pipelines.jobs.data import etl, forget, propensity, quality, ready, simulate, vacuum
from pipelines.jobs.judging import evaluate, explain
from pipelines.jobs.learning import pick, sweep, train, train_by_spark
from pipelines.jobs.reporting import abtest_plan, abtest_read, monitor, report
from pipelines.jobs.steps import session, warn_unpromotable
from policies.gate import check_guarded

__all__ = [
    "abtest_plan",
    "abtest_read",
    "etl",
    "evaluate",
    "explain",
    "forget",
    "freeze",
    "handover",
    "monitor",
    "pick",
    "promote",
    "promote_version",
    "propensity",
    "quality",
    "ready",
    "report",
    "rollback",
    "run",
    "score",
    "simulate",
    "sweep",
    "train",
    "train_by_spark",
    "unfreeze",
    "vacuum",
]


def run(config: Config, rebuild: bool = False) -> dict[str, Any]:
    """Every step in order, on one Spark session; a log without candidates is not scored.

    Without [train] nothing is learned, judged or scored: the road is ETL, evaluation and report. Raises InputError
    where a verdict would have nothing to guard or a dataset is not where it should be, before anything is done.
    """
    if config.train is not None:
        check_guarded(config.gate)
        warn_unpromotable(config)
    if config.simulate is None:
        check_inputs(config, range(USERS + 1) if config.train is None else range(CANDIDATES + 1))
    check_logs(config)
    with session(config):
        if config.simulate is not None:
            simulate(config)
        etl(config, rebuild=rebuild)
        if table.count_unknown(config.transitions_path):
            propensity(config)
        if config.train is not None:
            train(config)
        # Where there is a verdict, the report ends with a table of its own.
        evaluate(config, show=config.train is None)
        if config.train is not None:
            promote(config)
        if config.train is not None and config.data.candidates is not None:
            score(config)
    return report(config)
