"""Steps after which something acts: promote, roll back and score."""

import json
import logging
import tempfile
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from models import artifact
from models.errors import InputError
from models.registry.champion import find_champion
from models.registry.promotions import State
from models.registry.versions import EVALUATION, VERDICT
from models.training import BEHAVIOUR
from pipelines import summary as summaries
from pipelines.config import Config
from pipelines.etl.checks import check_inputs
from pipelines.etl.schemas import CANDIDATES
from pipelines.jobs.judging import artifacts_of, fingerprints_of
from pipelines.jobs.steps import console, left_by, policy_folder, registry_of, registry_there, session, step, step_path
from pipelines.reading import LEARNED_VERSIONS
from pipelines.scoring import freeze as brake
from pipelines.scoring import manifest
from pipelines.scoring.handover import HandedOver, hand_over
from pipelines.scoring.night import run_frozen, run_scoring
from policies.gate import check_guarded, judge

logger = logging.getLogger("tactful.score")


def promote(config: Config) -> dict[str, Any]:
    """Judge the candidate, register it, and make it champion where the verdict is PROMOTE; returns the verdict.

    Raises InputError where nothing is guarded, and where something else was evaluated than stands there now.
    """
    if config.train is not None:
        check_guarded(config.gate)
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
        result["registry"] = _register(config, verdict, left["evaluation"])
        console.print(summaries.verdict_panel(verdict))
    return verdict


def _register(config: Config, verdict: dict[str, Any], evaluation: dict[str, Any]) -> dict[str, Any]:
    """Register the candidate, as champion if promoted; the first champion is the logging policy, cloned."""
    registry = registry_of(config)
    if registry.state().champion is None:
        tags = {"policy": BEHAVIOUR, "verdict": "FIRST CHAMPION"}
        registry.begin(registry.register(policy_folder(config, BEHAVIOUR), tags))
    candidate = config.gate.candidate
    folder = policy_folder(config, candidate)
    judged = artifact.load(folder)
    lineage = {key: judged.lineage.get(key) for key in ("data_version", "estimates_version", "window", "commit")}
    if LEARNED_VERSIONS in judged.lineage:
        lineage[LEARNED_VERSIONS] = judged.lineage[LEARNED_VERSIONS]
    on = {"fingerprint": judged.fingerprint, "data_fingerprint": judged.lineage.get("fingerprint"), **lineage}
    version = registry.register(
        folder,
        {"policy": candidate, "verdict": verdict["verdict"]},
        judged={VERDICT: {**verdict, "judged": on}, EVALUATION: evaluation},
    )
    promoted = verdict["verdict"] == "PROMOTE"
    state = registry.promote(version, challenger=True) if promoted else registry.challenge(version)
    return {"candidate": version, **state.aliases()}


def promote_version(config: Config, version: str, override: str | None = None) -> dict[str, Any]:
    """Make a registered version champion; returns the verdict: PROMOTE, or REFUSE with the reason.

    Refused where no PROMOTE verdict was made on that very version and its data, unless `override` says why it is to act
    all the same; the reason is kept in the registry's journal. Raises InputError where the reason is empty, and as
    `Registry.fetch`.
    """
    if override is not None and not override.strip():
        raise InputError("--override: empty; say why this version is to act without a verdict, it is kept.")
    registry = registry_there(config)
    with tempfile.TemporaryDirectory() as temporary:
        unjudged = registry.fetch(version, Path(temporary)).unjudged()
    if unjudged and override is None:
        words = (
            f"version {version} is not promoted: {unjudged}. `tactful evaluate` and `tactful promote` judge a policy; "
            "--override REASON promotes it all the same, and keeps the reason."
        )
        return _told({"verdict": "REFUSE", "candidate": f"version {version}", "reasons": [words]})
    state = registry.promote(version, reason=(override or "").strip())
    reasons = [f"champion is version {state.champion}, before it {state.previous or 'none'}"]
    named = f"version {version}"
    if unjudged:
        named += ", by hand and without a verdict"
        reasons.append(f"overridden, as {unjudged}: {override}")
    return _told({"verdict": "PROMOTE", "candidate": named, "reasons": reasons})


def _told(verdict: dict[str, Any]) -> dict[str, Any]:
    console.print(summaries.verdict_panel(verdict))
    return verdict


def rollback(config: Config, reason: str = "") -> State:
    """Make the champion before this one champion again; returns what is champion and previous now.

    Raises as `Registry.rollback`.
    """
    state = registry_there(config).rollback(reason.strip())
    console.print(f"champion is version {state.champion} again, before it was {state.previous}", highlight=False)
    return state


def score(config: Config) -> dict[str, Any]:
    """Decide for every candidate of the night with the registry's champion, or the one checked last; hold while frozen.

    See `models.registry.champion.find_champion` for when the registry does not answer.
    """
    if config.data.candidates is None:
        raise InputError("data.candidates: missing; say where tonight's candidates lie, or do without `tactful score`.")
    with step(config, "score") as result:
        if (stopped := brake.frozen(config)) is not None:
            logger.warning("%s: every candidate is held until `tactful unfreeze`.", brake.in_words(stopped))
            check_inputs(config, range(CANDIDATES, CANDIDATES + 1))
            with session(config) as spark:
                return _scored(config, result, run_frozen(spark, config))
        check_inputs(config, range(CANDIDATES + 1))
        champion = find_champion(registry_there(config), config.run_dir / "champion", datetime.now(UTC))
        checked = champion.checked_at.isoformat(timespec="seconds")
        with session(config) as spark:
            found = run_scoring(spark, config, champion.folder, champion.version, champion.stale, checked)
        return _scored(config, result, found)


def _scored(config: Config, result: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    result.update(found)
    console.print(manifest.in_words(found, config.run_dir / "scores"), markup=False, highlight=False, soft_wrap=True)
    return result


def handover(config: Config, file: Path, night: str | None = None, expired: bool = False) -> HandedOver:
    """Write a scored night as one file for the sender; see `pipelines.scoring.handover.hand_over`."""
    found = hand_over(config, file, night, expired)
    console.print(found.in_words(), markup=False, highlight=False, soft_wrap=True)
    return found


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
