"""The steps of the road: the only file that knows sessions, paths and arguments, one function per step.

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

Beside the road: sweep leaves sweep/NAME/, MLflow runs and steps/sweep.json, which pick reads; abtest plan and abtest
read leave steps/abtest_plan.json and steps/abtest.json; vacuum removes files of the tables, forget erases users from
them and leaves forgotten.json.
"""

import hashlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Any, Literal

import torch
from pyspark.sql import SparkSession
from rich.console import Console

from models import artifact, distributed, table
from models.contract import SPLITS
from models.errors import InputError, TactfulError
from models.registry import Registry
from models.stream import sampled
from models.train import Learned
from models.train import train as fit_policies
from models.training import BEHAVIOUR, TrainConfig
from pipelines import abtest_tables, abtesting, erase, explaining
from pipelines import summary as summaries
from pipelines import sweep as sweeps
from pipelines import vacuum as retention
from pipelines.config import Config
from pipelines.estimation import check_known, in_words, run_propensity, transitions_to_evaluate, transitions_to_train
from pipelines.etl.flow import explained, run_etl
from pipelines.etl.quality import make_thresholds
from pipelines.etl.window import day_number
from pipelines.evaluating import named_policies, reads_logs
from pipelines.evaluating_spark import Log, evaluate_by_spark
from pipelines.night import run_scoring
from pipelines.report import write_report
from pipelines.report.text import ALONE
from pipelines.session import spark_session
from pipelines.simulate import policy_truth, run_simulate
from policies.base import Policy
from policies.baselines import Mixture, fit_baselines
from policies.evaluate import evaluate as evaluate_policies
from policies.gate import judge
from policies.propensity import logged_calibration
from policies.q_policy import QPolicy, deployed_probabilities
from policies.selection import Slope
from policies.sweep import WEIGHTED, compare
from policies.sweep import pick as pick_member

# Into a file or a pipe a table is as wide as it needs, not as narrow as the eighty columns of nobody's terminal.
console = Console(width=None if sys.stdout.isatty() else 160)

TRUTH_SEED = 1_000_003
"""Added to the run's seed for the world whose truth is told."""


# What a step leaves behind


def _step_path(config: Config, step: str) -> Path:
    return config.run_dir / "steps" / f"{step}.json"


@contextmanager
def _step(config: Config, step: str) -> Iterator[dict[str, Any]]:
    """Collect a step's result and write it with its duration, only when the step succeeded."""
    console.rule(f"[bold]{step}", align="left")
    started = time.perf_counter()
    result: dict[str, Any] = {}
    # What an earlier run left is no result of this one, should it fail.
    _step_path(config, step).unlink(missing_ok=True)
    yield result
    result["seconds"] = round(time.perf_counter() - started, 3)
    _write_json(_step_path(config, step), result)
    console.print(f"[dim]{step}: {result['seconds']:.1f} s[/]")


def _write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(value, indent=2, allow_nan=False))
    # A reader sees the old file or the new one, never half of one.
    partial.replace(path)


def _left_by(config: Config, step: str) -> dict[str, Any]:
    """The result of an earlier step; InputError naming the command that makes it where it is absent."""
    path = _step_path(config, step)
    if not path.exists():
        raise InputError(f"{path}: not there; run `tactful {step}` with this configuration first.")
    return dict(json.loads(path.read_text()))


@contextmanager
def _spark(config: Config) -> Iterator[SparkSession]:
    """A session, stopped at the end by whoever started it."""
    running = SparkSession.getActiveSession()
    spark = running or spark_session(config.spark, f"tactful {config.name}")
    try:
        yield spark
    finally:
        if running is None:
            spark.stop()


def _policy_folder(config: Config, name: str) -> Path:
    return config.run_dir / "policies" / name


def _commit() -> str | None:
    """The commit of the working tree, where it is one."""
    here = Path(__file__).parent
    found = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=False)
    return found.stdout.strip() or None


# The steps


def simulate(config: Config) -> dict[str, Any]:
    """Write the simulated world's raw log to the paths of `data`."""
    if config.simulate is None:
        raise InputError(f"{config.name}: the configuration has no [simulate]; add it, or start with `tactful etl`.")
    with _step(config, "simulate") as result:
        result.update(run_simulate(config))
    return result


def etl(config: Config, rebuild: bool = False, first: str | None = None, last: str | None = None) -> dict[str, Any]:
    """Turn the raw log into transitions and check the data on the way; with `first`, what arrived from then to `last`.

    Raises InputError where the days are no dates, or in the wrong order.
    """
    if first is None and last is not None:
        raise InputError(f"--to {last}: without --from; name the first arrival day too.")
    days = None if first is None else (day_number(first, "--from"), day_number(last or first, "--to"))
    if days is not None and days[0] > days[1]:
        raise InputError(f"--from {first} lies after --to {last}; name the first day first.")
    with _step(config, "etl") as result, _spark(config) as spark:
        result.update(run_etl(spark, config, rebuild=rebuild, days=days))
    return result


def quality(config: Config) -> dict[str, Any]:
    """Make thresholds from the profiles that the ETL left of the reference period."""
    with _step(config, "quality") as result:
        made = make_thresholds(config.quality, config.run_dir / "quality")
        result["reference"] = [str(day) for day in made.reference]
        result["metrics"] = {name: len(bounds) for name, bounds in made.datasets.items()}
        result["left_out"] = made.left_out
    return result


def propensity(config: Config) -> dict[str, Any]:
    """Estimate the propensities that the log lacks, as a new version of the table of estimates."""
    with _step(config, "propensity") as result:
        result.update(run_propensity(config))
        console.print(in_words(result))
    return result


def train(config: Config) -> dict[str, Any]:
    """Learn every policy of `train.learners` and the behaviour network, export each, and log the run to MLflow.

    Under `torchrun` every process takes its share of each minibatch; the first one leaves the results.
    """
    with distributed.group() as processes:
        if processes.rank == 0:
            return _train(config, processes)
        _fit(config, processes)
        return {}


def train_by_spark(config: Config, file: Path, overrides: list[str], processes: int) -> None:
    """`tactful train` in so many processes that Spark's TorchDistributor starts: on this machine where the master is
    local, else as tasks of one barrier stage, whose Python needs the whole of this project.

    Raises TactfulError where one of them failed: torchrun does not say with which exit code.
    """
    from pyspark.ml.torch.distributor import TorchDistributor

    settings = [word for pair in overrides for word in ("--set", pair)]
    _step_path(config, "train").unlink(missing_ok=True)
    with _spark(config):
        distributor = TorchDistributor(processes, config.spark.master.startswith("local"), use_gpu=False)
        with suppress(RuntimeError):
            distributor.run(str(Path(__file__).with_name("cli.py")), "train", str(file), *settings)
    # Spark's wrapper around torchrun may end well though a process did not.
    if not _step_path(config, "train").exists():
        raise TactfulError(f"{file}: training in {processes} processes failed; what a process printed above says why.")


def _fit(config: Config, processes: distributed.Group) -> tuple[table.Transitions, dict[str, Learned]]:
    """What training read all at once, and what it learned."""
    transitions, shards = _log(config)
    return transitions, _learn(config, config.learning, transitions, shards, _checkpoint(config), processes)


def _log(config: Config) -> tuple[table.Transitions, table.Shards | None]:
    """What training reads all at once and, where that is not everything, the buckets that stream."""
    if not config.learning.stream_rows:
        return transitions_to_train(config), None
    shards = table.Shards.of(config.transitions_path, config.contract)
    return sampled(shards, config.learning.stream_rows, config.seed), shards


def _learn(
    config: Config,
    settings: TrainConfig,
    transitions: table.Transitions,
    shards: table.Shards | None,
    checkpoint: Path,
    processes: distributed.Group | None = None,
) -> dict[str, Learned]:
    return fit_policies(
        transitions,
        settings,
        config.seed,
        partial(deployed_probabilities, decision=_decision(config), is_send=config.contract.is_send),
        assess_of=lambda cloned: Slope.of(transitions, cloned, config.evaluate.per),
        checkpoint=checkpoint,
        group=processes,
        shards=shards,
    )


def _checkpoint(config: Config, step: str = "learn") -> Path:
    return config.run_dir / "checkpoints" / f"{step}.safetensors"


def _train(config: Config, processes: distributed.Group) -> dict[str, Any]:
    with _step(config, "train") as result:
        transitions, learned = _fit(config, processes)
        if config.gate.candidate not in learned:
            raise InputError(
                f"gate.candidate: every seed of {config.gate.candidate!r} diverged, as the log of this step says; "
                "lower its learning rate, or name another candidate."
            )
        lineage = _lineage(config, transitions)
        folders = {name: _policy_folder(config, name) for name in learned}
        for name, member in learned.items():
            artifact.export(member, folders[name], _decision(config, name), lineage)
        curves = {name: member.curves for name, member in learned.items()}
        result["mlflow_run"] = _registry(config).log_run(
            config.name,
            params={**config.model_dump(mode="json", include={"seed", "train", "policy", "features"})},
            curves=curves,
            folders={f"policies/{name}": folder for name, folder in folders.items()},
            tags={name: str(value) for name, value in lineage.items()},
        )
        result["curves"] = curves
        result["weights"] = dict(config.learning.weights)
        result["learners"] = {name: asdict(learner) for name, learner in config.learning.named.items()}
        result["members"] = len(config.learning.learners) * config.learning.seeds
        fitted = {name: each for name, each in learned.items() if name != BEHAVIOUR}
        result["agreement"] = {name: each.agreement for name, each in fitted.items()}
        result["kept"] = {name: each.kept for name, each in fitted.items()}
        result["gains"] = {name: list(each.gains) for name, each in fitted.items()}
        result["stopped"] = {name: list(each.stopped) for name, each in fitted.items() if each.stopped}
        result["lineage"] = lineage
    # Only a run that was cut short has something to go on from.
    _checkpoint(config).unlink(missing_ok=True)
    return result


def _lineage(config: Config, transitions: table.Transitions) -> dict[str, Any]:
    """What a policy was learned from, or what was evaluated without learning."""
    return {
        "data_version": transitions.version,
        "estimates_version": transitions.estimates_version,
        "fingerprint": transitions.fingerprint,
        "window": _window(transitions),
        "config_hash": _config_hash(config),
        "etl_hash": config.etl_hash(),
        "commit": _commit(),
        "seed": config.seed,
    }


def sweep(config: Config) -> dict[str, Any]:
    """Learn a member for every weighting of [sweep], evaluate each on the validation split, log each to MLflow."""
    if config.sweep is None:
        raise InputError(f"{config.name}: the configuration has no [sweep]; add one, see docs/sweep.md.")
    transitions, shards = _log(config)
    check_known(config, transitions)
    population = config.sweep.population(config.learning, config.gate.candidate)
    torch.set_num_threads(config.learning.threads)
    with _step(config, "sweep") as result:
        learned = _learn(config, population, transitions, shards, _checkpoint(config, "sweep"))
        del learned[BEHAVIOUR]
        lineage = _lineage(config, transitions)
        root = config.run_dir / "sweep"
        # An earlier sweep may have had more members.
        shutil.rmtree(root, ignore_errors=True)
        for name, member in learned.items():
            artifact.export(member, root / name, _decision(config), lineage)
        policies = [QPolicy(artifact.load(root / name), name) for name in learned]
        objectives = config.sweep.front(config.contract.rewards)
        result.update(
            compare(
                transitions,
                policies,
                config.evaluate,
                objectives,
                config.learning.weights,
                config.gate.estimator,
                config.sweep.min_ess,
                config.seed,
            )
        )
        learner = config.sweep.learner or config.gate.candidate
        result |= {
            "learner": learner,
            "swept": list(config.sweep.components),
            "alphas": list(config.sweep.alpha),
            "seeds": population.seeds,
            "train_seeds": config.learning.seeds,
            "diverged": [name for name in population.learners if name not in learned],
            "lineage": lineage,
        }
        for name, each in population.named.items():
            if name in learned:
                weights = dict(each.weights or {})
                result["members"][name] |= {
                    "weights": weights,
                    "alpha": each.alpha,
                    "toml": sweeps.toml_of(config, learner, weights, each.alpha),
                    "kept": learned[name].kept,
                    "agreement": learned[name].agreement,
                }
        result["mlflow_run"] = _log_sweep(config, result, {name: learned[name].curves for name in learned})
        console.print(sweeps.members_table(result))
    # Only a run that was cut short has something to go on from.
    _checkpoint(config, "sweep").unlink(missing_ok=True)
    return result


def _log_sweep(config: Config, found: dict[str, Any], curves: dict[str, list[dict[str, float]]]) -> str:
    """One run for the sweep and one under it for each member; returns the first's id."""
    registry = _registry(config)
    tags = {name: str(value) for name, value in found["lineage"].items()}
    params = config.model_dump(mode="json", include={"seed", "train", "policy", "features", "sweep"})
    parent = registry.log_run(f"{config.name} sweep", params, {}, {}, tags)
    for name, member in found["members"].items():
        registry.log_run(
            name,
            {
                **{f"weights.{component}": weight for component, weight in member["weights"].items()},
                "alpha": member["alpha"],
                "seed": config.seed,
                "seeds": found["seeds"],
                "learner": found["learner"],
            },
            {"learning": curves[name]},
            {"policy": config.run_dir / "sweep" / name},
            {**tags, "front": str(member["front"]).lower(), "rows": found["rows"], "estimator": found["estimator"]},
            sweeps.run_figures(found, name),
            parent,
        )
    return parent


def pick(
    config: Config,
    most: float,
    relative: bool = False,
    maximise: str = WEIGHTED,
    bound: Literal["high", "estimate"] = "high",
) -> str:
    """Say which member of the sweep meets a budget of sends, and the lines of configuration that it is; its name."""
    found = _left_by(config, "sweep")
    name = pick_member(found, most, relative, maximise, bound)
    console.print(sweeps.picked(found, name), markup=False, highlight=False, soft_wrap=True)
    return name


def _registry(config: Config) -> Registry:
    uri = config.mlflow.tracking_uri or f"sqlite:///{config.run_dir.resolve() / 'mlflow.db'}"
    return Registry(uri, config.mlflow.model, config.mlflow.experiment)


def _decision(config: Config, name: str = "") -> dict[str, float]:
    """How an artifact's outputs become probabilities; the cloned logging policy acts as itself."""
    if name == BEHAVIOUR:
        return {"rollout_share": 0.0, "exploration": 0.0, "lambda": 0.0}
    return {"rollout_share": config.policy.rollout_share, "exploration": config.policy.exploration, "lambda": 0.0}


def _window(transitions: table.Transitions) -> list[str]:
    return table.span(transitions.decided_at.min(), transitions.decided_at.max())


def _config_hash(config: Config) -> str:
    return hashlib.sha256(config.model_dump_json().encode()).hexdigest()[:16]


def evaluate(config: Config, by_spark: bool = False) -> dict[str, Any]:
    """Every policy by every estimator, on the data it was learned from; of a simulated log the true values beside.

    Where nothing was trained, the policies of [evaluate.policies] on the newest transitions, and a table of them.
    `by_spark` takes the users of one bucket at a time, on as many executors as there are, instead of all here at once.
    """
    trained = _trained(config)
    lineage = trained["lineage"] if trained else None
    if not by_spark:
        transitions = transitions_to_evaluate(config, lineage)

        def here(policies: list[Any], **judged: Any) -> dict[str, Any]:
            return evaluate_policies(transitions, policies, config.evaluate, config.gate, config.seed, **judged)

        return _evaluate(config, trained, transitions, here, _tested(transitions))
    with _spark(config) as spark, explained():
        log = Log.of(spark, config, lineage)
        sample = log.sample()
        folders = {each.fingerprint: _policy_folder(config, name) for name, each in _learned_artifacts(config, trained)}

        def on_spark(policies: list[Any], **judged: Any) -> dict[str, Any]:
            return evaluate_by_spark(log, sample, policies, folders, **judged)

        return _evaluate(config, trained, sample, on_spark, log.tested, log.lineage())


def _evaluate(
    config: Config,
    trained: dict[str, Any] | None,
    transitions: table.Transitions,
    how: Callable[..., dict[str, Any]],
    tested: list[str] | None,
    whole: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """`transitions` are the log or, where `whole` says what its lineage is, a sample of it; `tested` as `_tested`."""
    deployed = dict(_learned_artifacts(config, trained))
    mixed = bool(deployed) and deployed[config.gate.candidate].decision["rollout_share"] < 1
    alone = config.gate.candidate + ALONE if mixed else None
    # Left alone torch takes every core, and beside anything else that runs it then waits more than it works.
    torch.set_num_threads(config.train.threads if config.train else 1)
    with _step(config, "evaluate") as result:
        policies: list[Any] = _named_policies(config)
        if deployed:
            baselines, result["baselines"] = _baselines(config, transitions, deployed[config.gate.candidate])
            policies += [*baselines, *_learned_policies(deployed)]
        tried = _candidates_tried(config, tested, deployed) if deployed and tested else 1
        found = how(policies, tried=tried, alone=alone)
        if trained is not None:
            found["seeds"] = _seeds(config, trained)
        # The world's true values are per user-week.
        if config.simulate is not None and config.evaluate.per == "week":
            # Other users than the log's: the truth is about the world, not about this sample of it.
            truths = policy_truth(config, policies, config.seed + TRUTH_SEED, progress=True)
            for name, policy in found["policies"].items():
                policy["truth"] = truths[name]
        result.update(
            {"evaluation": found, "tried": tried, "judged": _fingerprints(deployed), "gate": asdict(config.gate)}
        )
        lineage = {**_lineage(config, transitions), **(whole or {})}
        result["estimates_version"] = lineage["estimates_version"]
        result["logged_propensities"] = logged_calibration(transitions)
        if trained is None:
            result["lineage"] = lineage
    if trained is None:
        for part in summaries.evaluation_tables(found):
            console.print(part, highlight=False)
    return result


def _learned_artifacts(config: Config, trained: dict[str, Any] | None) -> Iterable[tuple[str, artifact.Artifact]]:
    return _artifacts(config).items() if trained else ()


def _tested(transitions: table.Transitions) -> list[str] | None:
    """First and last decision of the test users, ISO; None where there are none, whom evaluation then asks for."""
    at = transitions.decided_at[transitions.split == SPLITS.index("test")]
    return table.span(at.min(), at.max()) if len(at) else None


def _seeds(config: Config, trained: dict[str, Any]) -> dict[str, Any]:
    """What the seeds of the candidate's learner say of each other, as training left it.

    Raises InputError where an earlier version trained, which left less.
    """
    name = config.gate.candidate
    for key in ("agreement", "gains"):
        if name not in trained.get(key, {}):
            raise InputError(
                f"{_step_path(config, 'train')}: it has no `{key}` of {name}, as an earlier version left it; run "
                "`tactful train` again."
            )
    return {
        "agreement": trained["agreement"][name],
        "gains": trained["gains"][name],
        "stopped": trained.get("stopped", {}).get(name, []),
    }


def _trained(config: Config) -> dict[str, Any] | None:
    """What `train` left; None where nothing was trained and there are other policies to evaluate.

    Raises InputError where there are none: the policies are then to be learned first.
    """
    if config.train is None or (config.evaluate.policies and not _step_path(config, "train").exists()):
        return None
    return _left_by(config, "train")


def _named_policies(config: Config) -> list[Policy]:
    if not reads_logs(config):
        return named_policies(config)
    with _spark(config) as spark:
        return named_policies(config, spark)


def _artifacts(config: Config) -> dict[str, artifact.Artifact]:
    """Each learned policy as it lies in the run's folder, by name."""
    learners = config.learning.learners
    trained = _left_by(config, "train")["agreement"]
    return {name: artifact.load(_policy_folder(config, name)) for name in learners if name in trained}


def _fingerprints(artifacts: dict[str, artifact.Artifact]) -> dict[str, str]:
    return {name: loaded.fingerprint for name, loaded in artifacts.items()}


def _learned_policies(artifacts: dict[str, artifact.Artifact]) -> list[QPolicy]:
    """Each learned policy as it would be deployed and, where that is a mixture, as it would be alone."""
    found = []
    for name, loaded in artifacts.items():
        found.append(QPolicy(loaded, name))
        if loaded.decision["rollout_share"] < 1:
            found.append(QPolicy(loaded, name + ALONE, share=1.0))
    return found


def _baselines(
    config: Config, transitions: table.Transitions, candidate: artifact.Artifact
) -> tuple[list[Any], dict[str, Any]]:
    """The policies to compare with, each at the candidate's rollout share and, where that is below 1, alone; and what
    was fitted."""
    settings = config.evaluate
    fitted, facts = fit_baselines(transitions, settings.baselines, config.seed, settings.baseline_send_rate)
    for absent in (found["left_out"] for found in facts.values() if "left_out" in found):
        console.print(f"Not compared with {absent}", markup=False, highlight=False, soft_wrap=True)
    share = candidate.decision["rollout_share"]
    if share == 1:
        return list(fitted), facts
    clone = QPolicy(candidate, BEHAVIOUR, share=0.0)
    pairs = ((Mixture(each, clone, share), replace(each, name=each.name + ALONE)) for each in fitted)
    return [policy for pair in pairs for policy in pair], facts


def _candidates_tried(config: Config, window: list[str], artifacts: dict[str, artifact.Artifact]) -> int:
    """How many learned policies were judged on decisions of one time, these and those of earlier runs: all whose window
    overlaps `window`, the first and last decision of the test users.

    So a log that grows or rolls keeps counting, whoever joins or leaves it and however it is split, and a period that
    nobody has looked at starts anew. A policy is known by its graph and how it acts: judged again it is no other try,
    and counts in every period that it was judged in. Raises InputError where the record has no times.
    """
    path = config.run_dir / "tried.json"
    record: Any = json.loads(path.read_text()) if path.exists() else []
    if isinstance(record, dict):
        raise InputError(
            f"{path}: an earlier version left it, without the times that its {sum(map(len, record.values()))} "
            "candidates were judged on; move it away, which begins the count anew: honest where no decision that they "
            "were judged on is judged on again, else divide 1 - gate.confidence by their number yourself."
        )
    first, last = window
    tried = {(each["candidate"], each["first"], each["last"]) for each in record}
    for name, loaded in artifacts.items():
        graph = (_policy_folder(config, name) / artifact.GRAPH).read_bytes()
        acts = json.dumps(loaded.decision, sort_keys=True).encode()
        tried.add((hashlib.sha256(graph + acts).hexdigest(), first, last))
    _write_json(path, [dict(zip(("candidate", "first", "last"), each, strict=True)) for each in sorted(tried)])
    return len({candidate for candidate, begins, ends in tried if begins <= last and first <= ends})


def promote(config: Config) -> dict[str, Any]:
    """Judge the candidate, register it, and make it champion where the verdict is PROMOTE; returns the verdict."""
    left = _left_by(config, "evaluate")
    deployed = _artifacts(config)
    for what, then, now in (
        ("the policies are not those", left["judged"], _fingerprints(deployed)),
        ("the rules in [gate] are not those", left["gate"], json.loads(json.dumps(asdict(config.gate)))),
    ):
        if then != now:
            raise InputError(
                f"{_step_path(config, 'evaluate')}: {what} that were evaluated; run `tactful evaluate` again, so that "
                "what is promoted is what was judged."
            )
    with _step(config, "promote") as result:
        verdict = judge(left["evaluation"], config.gate, left["tried"])
        verdict["rollout_share"] = deployed[config.gate.candidate].decision["rollout_share"]
        result["verdict"] = verdict
        result["registry"] = _register(config, verdict)
        console.print(summaries.verdict_panel(verdict))
    return verdict


def _register(config: Config, verdict: dict[str, Any]) -> dict[str, Any]:
    """Register the candidate, as champion if promoted; the first champion is the logging policy, cloned."""
    versions = _registry(config)
    trained = _left_by(config, "train")
    lineage = trained["lineage"]
    tags = {"data_fingerprint": lineage["fingerprint"], "commit": lineage["commit"] or "unknown"}
    if versions.alias("champion") is None:
        first = versions.register(
            _policy_folder(config, BEHAVIOUR), {**tags, "policy": BEHAVIOUR, "verdict": "FIRST CHAMPION"}
        )
        versions.set_alias("champion", first)
    candidate = config.gate.candidate
    version = versions.register(
        _policy_folder(config, candidate), {**tags, "policy": candidate, "verdict": verdict["verdict"]}
    )
    versions.set_alias("challenger", version)
    if verdict["verdict"] == "PROMOTE":
        versions.set_alias("champion", version)
    return {"candidate": version, "champion": versions.alias("champion"), "challenger": version}


def score(config: Config) -> dict[str, Any]:
    """Decide for every candidate of the night with the registry's champion."""
    if config.data.candidates is None:
        raise InputError("data.candidates: missing; say where tonight's candidates lie, or do without `tactful score`.")
    with _step(config, "score") as result:
        folder, version = _registry(config).load("champion")
        with _spark(config) as spark:
            result.update(run_scoring(spark, config, folder, version))
    return result


def report(config: Config) -> dict[str, Any]:
    """Write summary.json and report.html from what the steps left; returns the summary.

    Where `evaluate` found nothing learned, it is a report without a verdict.
    """
    with _step(config, "report"):
        found = _summary(config)
        _write_json(config.run_dir / "summary.json", found)
        write_report(found, config.run_dir / "report.html")
    if "verdict" in found:
        console.print(summaries.metrics_table(found))
        console.print(summaries.verdict_panel(found["verdict"]))
    console.print(f"[bold]{config.run_dir / 'report.html'}[/]  {config.run_dir / 'summary.json'}")
    return found


def _summary(config: Config) -> dict[str, Any]:
    left = {step: _left_by(config, step) for step in ("etl", "evaluate")}
    only_evaluated = "lineage" in left["evaluate"]
    if not only_evaluated:
        left |= {step: _left_by(config, step) for step in ("train", "promote")}
    estimated = left["evaluate"]["estimates_version"] is not None
    steps = ("simulate", *(("propensity",) if estimated else ()), *(() if only_evaluated else ("score",)))
    optional = {step: _left_by(config, step) for step in steps if _step_path(config, step).exists()}
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
    swept = _left_by(config, "sweep") if _step_path(config, "sweep").exists() else None
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


def abtest_plan(config: Config) -> dict[str, Any]:
    """Say how many users and days the experiment of [abtest] needs, from the log's own variance."""
    with _step(config, "abtest_plan") as result:
        result.update(abtesting.run_plan(config))
        console.print(abtest_tables.plan_table(result), highlight=False)
    return result


def abtest_read(config: Config) -> dict[str, Any]:
    """Say what the arms of [abtest] differ in, and whether that is what evaluation had predicted."""
    with _step(config, "abtest") as result:
        result.update(abtesting.run_read(config, _step_path(config, "evaluate")))
        console.print(abtest_tables.read_table(result), highlight=False)
    return result


def vacuum(config: Config, dry_run: bool = False) -> dict[str, retention.Removed]:
    """Remove the files that no kept version of a table needs."""
    found = retention.vacuum(config, _lineages(config), dry_run)
    console.print(retention.in_words(found, dry_run), highlight=False)
    return found


def _lineages(config: Config) -> list[dict[str, Any]]:
    """What the newest policies were learned from, and those that the registry's aliases name."""
    path = _step_path(config, "train")
    found = [json.loads(path.read_text())["lineage"]] if path.exists() else []
    # A registry that was never used is not made by looking into it.
    if config.mlflow.tracking_uri is not None or (config.run_dir / "mlflow.db").exists():
        versions = _registry(config)
        named = [alias for alias in ("champion", "challenger") if versions.alias(alias) is not None]
        found += [artifact.load(versions.load(alias)[0]).lineage for alias in named]
    return found


def forget(config: Config, ids: list[str]) -> erase.Forgotten:
    """Erase users from every version of every table, and keep them out of those to come."""
    found = erase.forget(config, ids)
    console.print(erase.in_words(found, config), markup=False, highlight=False, soft_wrap=True)
    return found


def explain(
    config: Config,
    user: str,
    decision: str | None = None,
    last: int = 1,
    policy: str | None = None,
    as_json: bool = False,
) -> dict[str, Any]:
    """Print why the champion, or the trained `policy`, chooses as it does for a user; returns what it printed.

    Raises InputError where there is no such policy, and as `explain_user` does.
    """
    known = sorted(folder.name for folder in (config.run_dir / "policies").glob("*"))
    if policy is not None and policy not in known:
        found = ", ".join(known) or "none"
        raise InputError(f"--policy {policy}: no such policy (found: {found}); name one, or run `tactful train` first.")
    folder, version = _registry(config).load("champion") if policy is None else (_policy_folder(config, policy), None)
    told = explaining.explain_user(config, artifact.load(folder), user, decision, last, version)
    if as_json:
        print(json.dumps(told, indent=2, allow_nan=False))
    else:
        console.print(explaining.in_tables(told), highlight=False)
    return told


def run(config: Config, rebuild: bool = False) -> dict[str, Any]:
    """Every step in order, on one Spark session; a log without candidates is not scored.

    Without [train] nothing is learned, judged or scored: the road is ETL, evaluation and report.
    """
    with _spark(config):
        if config.simulate is not None:
            simulate(config)
        etl(config, rebuild=rebuild)
        if table.count_unknown(config.transitions_path):
            propensity(config)
        if config.train is not None:
            train(config)
        evaluate(config)
        if config.train is not None:
            promote(config)
        if config.train is not None and config.data.candidates is not None:
            score(config)
    return report(config)
