"""The verdict as the report words it: one sentence, the share of traffic certified, reasons and checks."""

from collections.abc import Mapping
from typing import Any

from models.errors import InputError
from pipelines.report import svg as pictures
from pipelines.report.svg import Part
from pipelines.report.text import METRICS, Range, known, percent, policy_name, tidy, words

TONES = {"PROMOTE": "good", "REFUSE": "bad", "INCONCLUSIVE": "open"}
PASSED = {True: ("good", "held"), False: ("bad", "not held"), None: ("open", "could not be shown")}
CHECKS = {
    "ess": "Effective sample size",
    "propensities": "Logged propensities",
    "estimators": "Agreement of the estimators",
    "segments": "Segments harmed",
    "seeds": "Agreement of the seeds",
}


def verdict_view(verdict: Mapping[str, Any]) -> dict[str, Any]:
    """The word and its tone, the sentence, the certified share, the reasons and the checks of `policies.gate.judge`.

    Raises InputError where the verdict is none of PROMOTE, REFUSE and INCONCLUSIVE.
    """
    word = verdict.get("verdict")
    if word not in TONES:
        raise InputError(f"verdict: found {word!r}; one of {', '.join(TONES)} is needed: run `tactful promote`.")
    share = known(verdict.get("largest_share")) or 0.0
    confidence = known(verdict.get("confidence"))
    asked = known(verdict.get("rollout_share"))
    reasons = [_told(str(reason)) for reason in verdict.get("reasons") or []]
    checks = [_check(check, reasons) for check in verdict.get("checks") or []]
    parts = [Part("certified", share, "good"), Part("not certified", 1 - share, "track")]
    return {
        "word": str(word).capitalize(),
        "tone": TONES[str(word)],
        "sentence": sentence(verdict),
        "reasons": reasons,
        "checks": checks,
        "held": sum(check["tone"] == "good" for check in checks),
        "share": percent(share),
        "asked": None if asked is None or asked >= 1 else percent(asked),
        "share_words": _share_words(share),
        "share_bar": pictures.stacked(parts, f"{percent(share)} of traffic certified", height=8),
        "confidence": None if confidence is None else _level(confidence),
        "tried": verdict.get("tried"),
        "learned": [_learned(name, told) for name, told in (verdict.get("learned_rewards") or {}).items()],
    }


def _learned(name: str, told: Mapping[str, Any]) -> dict[str, Any]:
    """A learned reward: the gain over logging in it and in what was written by hand, and how far the policy is."""
    gains = {name: told["learned"], **told["hand_written"]}
    called = {name: f"{words(name)} (learned)", "written": "Hand-written return"}
    far = told["distance"]
    share = None if far["ess"] is None or not far["decisions"] else far["ess"] / far["decisions"]
    outside = known(far["outside"])
    return {
        "name": words(name),
        "kind": told["kind"],
        "version": told["version"],
        "rows": [
            {"name": called.get(key) or METRICS.get(key) or words(key), "texts": Range.of(gain).texts(sign=True)}
            for key, gain in gains.items()
        ],
        "overlap": percent(share),
        "outside": None if outside is None else percent(outside),
        "learned_rows": far["learned_rows"],
    }


def sentence(verdict: Mapping[str, Any]) -> str:
    """Why, in one plain sentence."""
    candidate = policy_name(str(verdict.get("candidate") or "the candidate"))
    confidence = known(verdict.get("confidence"))
    start = "The log" if confidence is None else f"With {_level(confidence)} confidence, the log"
    if verdict["verdict"] == "PROMOTE":
        return f"{start} shows that {candidate} is an improvement and keeps every guarded metric within its margin."
    if verdict["verdict"] == "REFUSE":
        return f"{start} shows that {candidate} would harm a guarded metric beyond its margin."
    return f"{start} is not enough to promote {candidate}, and does not show that it harms beyond a margin either."


def _level(confidence: float) -> str:
    return f"{100 * confidence:.4g}%"


def _share_words(share: float) -> str:
    if share <= 0:
        return "No rollout share could be certified: even the smallest tried does not pass every check."
    if share >= 1:
        return "Every check holds even if the candidate's own choices decide for everybody."
    part, rest = percent(share), percent(1 - share)
    return f"Its own choices may decide for up to {part} of traffic, the logging policy for the other {rest}."


def _told(reason: str) -> str:
    """A reason with the metric it opens with called by its name."""
    head, colon, rest = tidy(reason).partition(":")
    if colon and head.replace("_", "").isalnum():
        return f"{METRICS.get(head) or words(head)}:{rest}"
    return head[:1].upper() + head[1:] + colon + rest


def _check(check: Mapping[str, Any], told: list[str]) -> dict[str, Any]:
    """One row of the checks; a reason already told above is not told twice."""
    passed = check.get("passed")
    tone, said = PASSED[passed if isinstance(passed, bool) else None]
    name, reason = str(check.get("name") or ""), _told(str(check.get("reason") or ""))
    return {
        "name": CHECKS.get(name) or METRICS.get(name) or words(name),
        "tone": tone,
        "said": said,
        "found": _found(check.get("found"), str(check.get("needed"))),
        "needed": tidy(check.get("needed")),
        "reason": "" if reason in told else reason,
    }


def _found(found: object, needed: str) -> str:
    """What a check found: bounds of a relative difference in per cent, a share as the need is stated, else as it is."""
    if isinstance(found, Mapping):
        if "relative" in found:
            worst = known(found.get("worst"))
            text = percent(found["relative"], 1, sign=True)
            if worst is None:
                return f"{text}, no bound"
            return f"{text}, at worst {percent(abs(worst), 1)} {'better' if worst >= 0 else 'worse'}"
        return ", ".join(f"{METRICS.get(str(key), key)}: {_found(value, needed)}" for key, value in found.items())
    if "%" in needed and isinstance(found, float) and 0 <= found <= 1:
        return percent(found, 2)
    return tidy(found)
