"""Steps that say what a policy is worth and why: evaluate and explain."""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch

from models import artifact, table
from models.contract import SPLITS
from models.errors import InputError
from models.training import BEHAVIOUR
from pipelines import explaining
from pipelines import summary as summaries
from pipelines.config import Config
from pipelines.estimation import transitions_to_evaluate
from pipelines.etl.flow import explained
from pipelines.evaluating import check_logs, named_policies, reads_logs
from pipelines.evaluating_spark import Log, evaluate_by_spark
from pipelines.jobs.steps import (
    console,
    left_by,
    lineage_of,
    policy_folder,
    registry_there,
    session,
    step,
    step_path,
    warn_unguarded,
    write_json,
)
from pipelines.reading import LEARNED_VERSIONS
from pipelines.report.text import ALONE
from pipelines.rewards import watching
from pipelines.simulate import policy_truth
from policies.base import Policy
from policies.baselines import Mixture, fit_baselines
from policies.evaluate import evaluate as evaluate_policies
from policies.propensity import logged_calibration
from policies.q_policy import QPolicy

ALONG = 5
"""Prices at which a range is judged, its ends among them."""
TRUTH_SEED = 1_000_003
"""Added to the run's seed for the world whose truth is told."""


def evaluate(config: Config, by_spark: bool = False, show: bool = True) -> dict[str, Any]:
    """Every policy by every estimator, on the data it was learned from; of a simulated log the true values beside.

    Where nothing was trained, the policies of [evaluate.policies] on the newest transitions. `show` prints a table.
    `by_spark` takes the users of one bucket at a time, on as many executors as there are, instead of all here at once.
    """
    trained = _trained(config)
    lineage = trained["lineage"] if trained else None
    if trained:
        warn_unguarded(config)
    check_logs(config)
    if not by_spark:
        transitions = transitions_to_evaluate(config, lineage)

        def here(policies: list[Any], **judged: Any) -> dict[str, Any]:
            return evaluate_policies(transitions, policies, config.evaluate, config.gate, config.seed, **judged)

        return _told(_evaluate(config, trained, transitions, here, _tested(transitions)), show)
    with session(config) as spark, explained():
        log = Log.of(spark, config, lineage)
        sample = log.sample()
        folders = {each.fingerprint: policy_folder(config, name) for name, each in _learned_artifacts(config, trained)}

        def on_spark(policies: list[Any], **judged: Any) -> dict[str, Any]:
            return evaluate_by_spark(log, sample, policies, folders, **judged)

        return _told(_evaluate(config, trained, sample, on_spark, log.tested, log.lineage()), show)


def _told(result: dict[str, Any], show: bool) -> dict[str, Any]:
    for part in summaries.evaluation_tables(result["evaluation"]) if show else ():
        console.print(part, highlight=False)
    return result


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
    with step(config, "evaluate") as result:
        policies: list[Any] = _named_policies(config)
        if deployed:
            baselines, result["baselines"] = _baselines(config, transitions, deployed[config.gate.candidate])
            policies += [*baselines, *_learned_policies(deployed)]
        along = along_range(deployed[config.gate.candidate], config.gate.candidate) if deployed else []
        tried = _candidates_tried(config, tested, deployed) if deployed and tested else 1
        prices = {each.name: each.price for each in along}
        rewards = watching.trained_on(config, trained["lineage"]) if trained and deployed else {}
        returns = watching.returns_of(config, rewards)
        found = how([*policies, *along], tried=tried, alone=alone, along=prices, returns=returns)
        if rewards:
            candidate = next(each for each in policies if each.name == config.gate.candidate)
            found["learned_rewards"] = watching.told_of(rewards, transitions, candidate)
        if trained is not None:
            found["seeds"] = _seeds(config, trained)
        # The world's true values are per user-week.
        if config.simulate is not None and config.evaluate.per == "week":
            # Other users than the log's: the truth is about the world, not about this sample of it.
            truths = policy_truth(config, policies, config.seed + TRUTH_SEED, progress=True)
            for name, policy in found["policies"].items():
                policy["truth"] = truths[name]
        result.update(
            {"evaluation": found, "tried": tried, "judged": fingerprints_of(deployed), "gate": asdict(config.gate)}
        )
        lineage = {**lineage_of(config, transitions), **(whole or {})}
        result["estimates_version"] = lineage["estimates_version"]
        if LEARNED_VERSIONS in lineage:
            result[LEARNED_VERSIONS] = lineage[LEARNED_VERSIONS]
        result["logged_propensities"] = logged_calibration(transitions)
        if trained is None:
            result["lineage"] = lineage
    return result


def _trained(config: Config) -> dict[str, Any] | None:
    """What `train` left; None where nothing was trained and there are other policies to evaluate.

    Raises InputError where there are none: the policies are then to be learned first.
    """
    if config.train is None or (config.evaluate.policies and not step_path(config, "train").exists()):
        return None
    return left_by(config, "train")


def _named_policies(config: Config) -> list[Policy]:
    if not reads_logs(config):
        return named_policies(config)
    with session(config) as spark:
        return named_policies(config, spark)


def _learned_artifacts(config: Config, trained: dict[str, Any] | None) -> Iterable[tuple[str, artifact.Artifact]]:
    return artifacts_of(config).items() if trained else ()


def artifacts_of(config: Config) -> dict[str, artifact.Artifact]:
    """Each learned policy as it lies in the run's folder, by name."""
    learners = config.learning.learners
    trained = left_by(config, "train")["agreement"]
    return {name: artifact.load(policy_folder(config, name)) for name in learners if name in trained}


def fingerprints_of(artifacts: dict[str, artifact.Artifact]) -> dict[str, str]:
    return {name: loaded.fingerprint for name, loaded in artifacts.items()}


def _learned_policies(artifacts: dict[str, artifact.Artifact]) -> list[QPolicy]:
    """Each learned policy as it would be deployed and, where that is a mixture, as it would be alone."""
    found = []
    for name, loaded in artifacts.items():
        found.append(QPolicy(loaded, name))
        if loaded.decision["rollout_share"] < 1:
            found.append(QPolicy(loaded, name + ALONE, share=1.0))
    return found


def along_range(loaded: artifact.Artifact, name: str) -> list[QPolicy]:
    """The candidate at other prices than its own: the ends of the range that scoring may move it in, and between them.

    Nothing where the range is lambda alone.
    """
    low, price, high = (loaded.decision[key] for key in ("lambda_low", "lambda", "lambda_high"))
    places = np.linspace(0, 1, ALONG)
    names = ["low", *(f"{place:g}" for place in places[1:-1]), "high"]
    prices = [low, *(low + place * (high - low) for place in places[1:-1]), high]
    found = {called: float(each) for called, each in zip(names, prices, strict=True)} if low < high else {}
    return [QPolicy(loaded, f"{name}@{called}", price=each) for called, each in found.items() if each != price]


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


def _seeds(config: Config, trained: dict[str, Any]) -> dict[str, Any]:
    """What the seeds of the candidate's learner say of each other, as training left it.

    Raises InputError where an earlier version trained, which left less.
    """
    name = config.gate.candidate
    for key in ("agreement", "gains"):
        if name not in trained.get(key, {}):
            raise InputError(
                f"{step_path(config, 'train')}: it has no `{key}` of {name}, as an earlier version left it; run "
                "`tactful train` again."
            )
    return {
        "agreement": trained["agreement"][name],
        "gains": trained["gains"][name],
        "stopped": trained.get("stopped", {}).get(name, []),
    }


def _tested(transitions: table.Transitions) -> list[str] | None:
    """First and last decision of the test users, ISO; None where there are none, whom evaluation then asks for."""
    at = transitions.decided_at[transitions.split == SPLITS.index("test")]
    return table.span(at.min(), at.max()) if len(at) else None


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
        graph = (policy_folder(config, name) / artifact.GRAPH).read_bytes()
        acts = json.dumps(_acts(loaded.decision), sort_keys=True).encode()
        tried.add((hashlib.sha256(graph + acts).hexdigest(), first, last))
    write_json(path, [dict(zip(("candidate", "first", "last"), each, strict=True)) for each in sorted(tried)])
    return len({candidate for candidate, begins, ends in tried if begins <= last and first <= ends})


def _acts(decision: Mapping[str, float]) -> dict[str, float]:
    """A decision as versions without a range recorded it, where its range is lambda alone."""
    wide = len({decision[key] for key in ("lambda", *artifact.RANGE) if key in decision}) > 1
    return {key: value for key, value in decision.items() if wide or key not in artifact.RANGE}


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
    named = (policy_folder(config, policy), None) if policy is not None else None
    folder, version = named or registry_there(config).load("champion")
    told = explaining.explain_user(config, artifact.load(folder), user, decision, last, version)
    if as_json:
        print(json.dumps(told, indent=2, allow_nan=False))
    else:
        console.print(explaining.in_tables(told), highlight=False)
    return told
