"""Steps after which something acts: promote and score."""

import json
import logging
from dataclasses import asdict
from typing import Any

from models.errors import InputError
from models.training import BEHAVIOUR
from pipelines import freeze as brake
from pipelines import summary as summaries
from pipelines.config import Config
from pipelines.jobs.judging import artifacts_of, fingerprints_of
from pipelines.jobs.steps import console, left_by, policy_folder, registry_of, session, step, step_path
from pipelines.night import run_frozen, run_scoring
from policies.gate import judge

logger = logging.getLogger("tactful.score")


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
    """Decide for every candidate of the night with the registry's champion; hold them all while frozen."""
    if config.data.candidates is None:
        raise InputError("data.candidates: missing; say where tonight's candidates lie, or do without `tactful score`.")
    with step(config, "score") as result:
        if (found := brake.frozen(config)) is not None:
            logger.warning("%s: every candidate is held until `tactful unfreeze`.", brake.in_words(found))
            with session(config) as spark:
                result.update(run_frozen(spark, config))
            return result
        folder, version = registry_of(config).load("champion")
        with session(config) as spark:
            result.update(run_scoring(spark, config, folder, version))
    return result


def freeze(config: Config, reason: str = "") -> dict[str, str]:
    """Make every score hold until `unfreeze`; returns since when, by whom and why."""
    found = brake.freeze(config, reason)
    console.print(f"{brake.in_words(found)}; every score holds until `tactful unfreeze`.", markup=False)
    return found


def unfreeze(config: Config) -> dict[str, str] | None:
    """Let the champion decide again; returns what was lifted, None where nothing was frozen."""
    found = brake.unfreeze(config)
    said = "nothing was frozen" if found is None else f"lifted: {brake.in_words(found)}"
    console.print(f"{said}; the champion decides.", markup=False)
    return found
