"""Steps after which something acts: promote and score."""

import json
from dataclasses import asdict
from typing import Any

from models.errors import InputError
from models.training import BEHAVIOUR
from pipelines import summary as summaries
from pipelines.config import Config
from pipelines.jobs.judging import artifacts_of, fingerprints_of
from pipelines.jobs.steps import console, left_by, policy_folder, registry_of, session, step, step_path
from pipelines.night import run_scoring
from policies.gate import judge


def promote(config: Config) -> dict[str, Any]:
    """Judge the candidate, register it, and make it champion where the verdict is PROMOTE; returns the verdict."""
    left = left_by(config, "evaluate")
    deployed = artifacts_of(config)
    for what, then, now in (
        ("the policies are not those", left["judged"], fingerprints_of(deployed)),
        ("the rules in [gate] are not those", left["gate"], json.loads(json.dumps(asdict(config.gate)))),
    ):
        if then != now:
            raise InputError(
                f"{step_path(config, 'evaluate')}: {what} that were evaluated; run `tactful evaluate` again, so that "
                "what is promoted is what was judged."
            )
    with step(config, "promote") as result:
        verdict = judge(left["evaluation"], config.gate, left["tried"])
        verdict["rollout_share"] = deployed[config.gate.candidate].decision["rollout_share"]
        result["verdict"] = verdict
        result["registry"] = _register(config, verdict)
        console.print(summaries.verdict_panel(verdict))
    return verdict


def _register(config: Config, verdict: dict[str, Any]) -> dict[str, Any]:
    """Register the candidate, as champion if promoted; the first champion is the logging policy, cloned."""
    versions = registry_of(config)
    trained = left_by(config, "train")
    lineage = trained["lineage"]
    tags = {"data_fingerprint": lineage["fingerprint"], "commit": lineage["commit"] or "unknown"}
    if versions.alias("champion") is None:
        first = versions.register(
            policy_folder(config, BEHAVIOUR), {**tags, "policy": BEHAVIOUR, "verdict": "FIRST CHAMPION"}
        )
        versions.set_alias("champion", first)
    candidate = config.gate.candidate
    version = versions.register(
        policy_folder(config, candidate), {**tags, "policy": candidate, "verdict": verdict["verdict"]}
    )
    versions.set_alias("challenger", version)
    if verdict["verdict"] == "PROMOTE":
        versions.set_alias("champion", version)
    return {"candidate": version, "champion": versions.alias("champion"), "challenger": version}


def score(config: Config) -> dict[str, Any]:
    """Decide for every candidate of the night with the registry's champion."""
    if config.data.candidates is None:
        raise InputError("data.candidates: missing; say where tonight's candidates lie, or do without `tactful score`.")
    with step(config, "score") as result:
        folder, version = registry_of(config).load("champion")
        with session(config) as spark:
            result.update(run_scoring(spark, config, folder, version))
    return result
