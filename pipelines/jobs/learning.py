"""Steps that learn: train, in one process or several, sweep, and pick from a sweep."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch

from models import artifact, distributed, table
from models.errors import InputError, TactfulError
from models.stream import sampled
from models.train import Learned
from models.train import train as fit_policies
from models.training import BEHAVIOUR, TrainConfig
from pipelines import reading
from pipelines import sweep as sweeps
from pipelines.config import Config
from pipelines.estimation import check_known, transitions_to_train
from pipelines.etl.units import feature_units
from pipelines.jobs.steps import (
    checkpoint_of,
    console,
    decision_of,
    left_by,
    lineage_of,
    policy_folder,
    registry_of,
    session,
    step,
    step_path,
    warn_unpromotable,
)
from policies.q_policy import QPolicy
from policies.selection import Slope
from policies.sweep import WEIGHTED, compare
from policies.sweep import pick as pick_member
from policies.volume import Budget, Deployed


def train(config: Config) -> dict[str, Any]:
    """Learn every policy of `train.learners` and the behaviour network, export each, and log the run to MLflow.

    Under `torchrun` every process takes its share of each minibatch; the first one leaves the results.
    """
    with distributed.group(config.learning.device) as processes:
        if processes.rank == 0:
            warn_unpromotable(config)
            return _train(config, processes)
        _fit(config, reading.learning(config)[0], processes)
        return {}


def train_by_spark(config: Config, file: Path, overrides: list[str], processes: int) -> None:
    """`tactful train` in so many processes that Spark's TorchDistributor starts: on this machine where the master is
    local, else as tasks of one barrier stage, whose Python needs the whole of this project.

    Raises TactfulError where one of them failed: torchrun does not say with which exit code.
    """
    from pyspark.ml.torch.distributor import TorchDistributor

    settings = [word for pair in overrides for word in ("--set", pair)]
    failed = f"{file}: training in {processes} processes failed; what a process printed above says why."
    step_path(config, "train").unlink(missing_ok=True)
    with session(config):
        distributor = TorchDistributor(processes, config.spark.master.startswith("local"), use_gpu=False)
        try:
            distributor.run(str(Path(__file__).parents[1] / "cli.py"), "train", str(file), *settings)
        except RuntimeError:
            # Whatever the first process has written.
            raise TactfulError(failed) from None
    # Spark's wrapper around torchrun ends well though a process did not: then nothing is written, see `_fit`.
    if not step_path(config, "train").exists():
        raise TactfulError(failed)


def _train(config: Config, processes: distributed.Group) -> dict[str, Any]:
    with step(config, "train") as result:
        settings, weights_from = reading.learning(config)
        transitions, learned = _fit(config, settings, processes)
        if config.gate.candidate not in learned:
            raise InputError(
                f"gate.candidate: every seed of {config.gate.candidate!r} diverged, as the log of this step says; "
                "lower its learning rate, or name another candidate."
            )
        lineage = lineage_of(config, transitions, weights_from)
        folders = {name: policy_folder(config, name) for name in learned}
        volumes, units = _volumes(config, transitions, learned), feature_units(config.features)
        for name, member in learned.items():
            artifact.export(member, folders[name], _decision(config, member), lineage, units)
        curves = {name: member.curves for name, member in learned.items()}
        result["mlflow_run"] = registry_of(config).log_run(
            config.name,
            params=_params(config),
            curves=curves,
            folders={f"policies/{name}": folder for name, folder in folders.items()},
            tags={name: str(value) for name, value in lineage.items()},
        )
        result["curves"] = curves
        result["weights"] = dict(settings.weights)
        learners = config.learning.named.items()
        result["learners"] = {name: {**asdict(learner), "alpha": learner.penalised} for name, learner in learners}
        result["members"] = len(config.learning.learners) * config.learning.seeds
        fitted = {name: each for name, each in learned.items() if name != BEHAVIOUR}
        result["agreement"] = {name: each.agreement for name, each in fitted.items()}
        result["kept"] = {name: each.kept for name, each in fitted.items()}
        result["gains"] = {name: list(each.gains) for name, each in fitted.items()}
        result["stopped"] = {name: list(each.stopped) for name, each in fitted.items() if each.stopped}
        result["volumes"] = volumes
        result["lineage"] = lineage
    # Only a run that was cut short has something to go on from.
    checkpoint_of(config).unlink(missing_ok=True)
    return result


def _params(config: Config, *more: str) -> dict[str, Any]:
    """What MLflow keeps of the configuration: of a learner given as a table, the alpha in force where it gives none."""
    found = config.model_dump(mode="json", include={"seed", "train", "policy", "features", *more})
    given = found["train"]["learners"]
    for name, learner in config.learning.named.items():
        if isinstance(given[name], dict):
            given[name]["alpha"] = learner.penalised
    return found


def _budget(config: Config, transitions: table.Transitions) -> Budget | None:
    policy = config.policy
    if policy.volume is None:
        return None
    return Budget.of(transitions, config.evaluate.per, decision_of(config), policy.volume, policy.volume_range)


def _decision(config: Config, member: Learned) -> Mapping[str, float]:
    """As it was deployed when it was valued."""
    return member.act.decision if isinstance(member.act, Deployed) else decision_of(config, member.name)


def _volumes(config: Config, transitions: table.Transitions, learned: Mapping[str, Learned]) -> dict[str, Any]:
    """What the price of each policy does on the validation split; empty without a volume.

    Raises InputError where the candidate cannot have the volume; of others it is told.
    """
    budget = _budget(config, transitions)
    if budget is None:
        return {}
    found = {name: dict(each.act.facts) for name, each in learned.items() if isinstance(each.act, Deployed)}
    for name, facts in found.items():
        price = facts["lambda"]
        told = f"{name}: lambda {price['lambda']:.4g}, expected sends {price['expected']:.3f} of the log's"
        console.print(told, markup=False, highlight=False, soft_wrap=True)
        try:
            budget.check(name, facts)
        except InputError as error:
            if name == config.gate.candidate:
                raise
            console.print(str(error), style="yellow", markup=False, highlight=False, soft_wrap=True)
    return found


def _fit(
    config: Config, settings: TrainConfig, processes: distributed.Group
) -> tuple[table.Transitions, dict[str, Learned]]:
    """What training read all at once, and what it learned, once every process has: else nothing may be exported."""
    transitions, shards = _log(config)
    learned = _learn(config, settings, transitions, shards, checkpoint_of(config), processes)
    processes.meet()
    return transitions, learned


def _log(config: Config) -> tuple[table.Transitions, table.Shards | None]:
    """What training reads all at once and, where that is not everything, the buckets that stream."""
    if not config.learning.stream_rows:
        return transitions_to_train(config), None
    shards = reading.shards(config)
    return sampled(shards, config.learning.stream_rows, config.seed), shards


def _learn(
    config: Config,
    settings: TrainConfig,
    transitions: table.Transitions,
    shards: table.Shards | None,
    checkpoint: Path,
    processes: distributed.Group | None = None,
) -> dict[str, Learned]:
    budget = _budget(config, transitions)
    return fit_policies(
        transitions,
        settings,
        config.seed,
        Deployed(decision_of(config), config.contract.is_send),
        assess_of=lambda cloned: Slope.of(transitions, cloned, config.evaluate.per),
        checkpoint=checkpoint,
        group=processes,
        shards=shards,
        deploy=None if budget is None else budget.deployed,
        judged_by=json.dumps([config.policy.model_dump(mode="json"), config.evaluate.per]),
    )


def sweep(config: Config) -> dict[str, Any]:
    """Learn a member for every weighting of [sweep], evaluate each on the validation split, log each to MLflow."""
    if config.sweep is None:
        raise InputError(f"{config.name}: the configuration has no [sweep]; add one, see docs/sweep.md.")
    distributed.check_alone("sweep")
    transitions, shards = _log(config)
    check_known(config, transitions)
    settings, weights_from = reading.learning(config)
    population = config.sweep.population(settings, config.gate.candidate)
    torch.set_num_threads(config.learning.threads)
    with step(config, "sweep") as result:
        learned = _learn(config, population, transitions, shards, checkpoint_of(config, "sweep"))
        del learned[BEHAVIOUR]
        lineage = lineage_of(config, transitions, weights_from)
        root = config.run_dir / "sweep"
        # An earlier sweep may have had more members.
        shutil.rmtree(root, ignore_errors=True)
        for name, member in learned.items():
            artifact.export(member, root / name, _decision(config, member), lineage, feature_units(config.features))
        policies = [QPolicy(artifact.load(root / name), name) for name in learned]
        objectives = config.sweep.front(config.contract.rewards)
        result.update(
            compare(
                transitions,
                policies,
                config.evaluate,
                objectives,
                settings.weights,
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
                    "alpha": each.penalised,
                    "toml": sweeps.toml_of(config, learner, weights, each.penalised),
                    "kept": learned[name].kept,
                    "agreement": learned[name].agreement,
                    "decision": dict(_decision(config, learned[name])),
                }
        result["mlflow_run"] = _log_sweep(config, result, {name: learned[name].curves for name in learned})
        console.print(sweeps.members_table(result))
    # Only a run that was cut short has something to go on from.
    checkpoint_of(config, "sweep").unlink(missing_ok=True)
    return result


def _log_sweep(config: Config, found: dict[str, Any], curves: dict[str, list[dict[str, float]]]) -> str:
    """One run for the sweep and one under it for each member; returns the first's id."""
    registry = registry_of(config)
    tags = {name: str(value) for name, value in found["lineage"].items()}
    parent = registry.log_run(f"{config.name} sweep", _params(config, "sweep"), {}, {}, tags)
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
    found = left_by(config, "sweep")
    name = pick_member(found, most, relative, maximise, bound)
    console.print(sweeps.picked(found, name), markup=False, highlight=False, soft_wrap=True)
    return name
