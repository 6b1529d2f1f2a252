"""What a run found, in sentences that are written from its numbers."""

from collections.abc import Mapping
from typing import Any

from benchmarks.study.members import KINDS
from benchmarks.study.truth import UTILITY

HARMFUL_BAR, IMPROVING_BAR = 0.05, 0.5
"""At most so many of the harmful may be promoted, at least so many of the improving at the largest log."""
HEADLINE = ("weekly_active_days", "ctr", "visits", "sends")
"""The paper's: WAU, CTR, visits and volume."""
WORDS = {
    "weekly_active_days": "WAU",
    "ctr": "CTR",
    "sends": "volume",
    UTILITY: "utility",
    "ddqn": "Double DQN",
    "ddqn_cql": "Double DQN + CQL",
}


def word(name: str) -> str:
    return WORDS.get(name, name)


def percent(value: float | None, digits: int = 1, signed: bool = True) -> str:
    if value is None:
        return "none"
    return f"{100 * value:{'+' if signed else ''}.{digits}f}%".replace("-", "−")


def findings(details: Mapping[str, Any]) -> list[str]:
    """One sentence or two for each part of the study."""
    return [
        _beaten(details),
        _ranked(details),
        *_cells(details["headline"]),
        _promoted(details),
        _gate(details["gate"]),
    ]


def _beaten(details: Mapping[str, Any]) -> str:
    each = [
        f"{found['beat']} of {details['policies']} {word(kind)} policies beat the logging policy in utility "
        f"({found['surely']} by more than 1.96 standard errors; {found['harmless']} of those that beat it harm no "
        f"guarded metric)"
        for kind, found in details["halves"].items()
    ]
    return f"{'; '.join(each)}. In LinkedIn's simulator 38 of 128 Double DQN policies did."


def _ranked(details: Mapping[str, Any]) -> str:
    found = details["estimators"]
    rank = {name: each["rank_correlation"].get(UTILITY) for name, each in found.items()}
    spread = {name: each["standard_deviation"].get(UTILITY) for name, each in found.items()}
    known = sorted((value, name) for name, value in rank.items() if value is not None)
    close = sorted((value, name) for name, value in spread.items() if value is not None)
    if not known or not close:
        return "Too few policies to rank by their estimates."
    (worst, last), (best, first) = known[0], known[-1]
    minus = "−"
    return (
        f"By estimated utility on the test split `{first}` ranks the policies best (Spearman "
        f"{f'{best:.2f}'.replace('-', minus)}), `{last}` worst ({f'{worst:.2f}'.replace('-', minus)}); the error of "
        f"`{close[0][1]}` spreads least ({percent(close[0][0], signed=False)} of the logging policy's utility), that "
        f"of `{close[-1][1]}` most ({percent(close[-1][0], signed=False)})."
    )


def _cells(found: Mapping[str, Any]) -> list[str]:
    """Of the cells of the headline, in how many the interval lies below, across and above 0."""
    cells = [by_learner for by_epsilon in found.values() for by_learner in by_epsilon.values()]
    lines = []
    for metric in HEADLINE:
        parts = []
        for kind in KINDS:
            bounds = [(each[kind][metric]["low"], each[kind][metric]["high"]) for each in cells]
            known = [(low, high) for low, high in bounds if low is not None]
            down, up = sum(high < 0 for _, high in known), sum(low > 0 for low, _ in known)
            parts.append(f"with {word(kind)} down in {down}, up in {up}")
        lines.append(f"{word(metric)}, of {len(cells)} pairs of log size and exploration: {'; '.join(parts)}.")
    return lines


def _promoted(details: Mapping[str, Any]) -> str:
    parts = []
    for kind, each in details["halves"].items():
        gate = each["gate"]["alone"]
        parts.append(
            f"{gate['PROMOTE']} {word(kind)} policies as they are ({gate['promoted_harmful']} of them harmful) and "
            f"{gate['some_share']} with some share of the decisions"
        )
    among = sum(each["gate"]["among"]["PROMOTE"] for each in details["halves"].values())
    return (
        f"On the log's own test split the gate would promote {'; '.join(parts)}, each judged as the only try. "
        f"Had all shared the confidence, it would promote {among}."
    )


def _gate(found: Mapping[str, Any]) -> str:
    return (
        f"{found['harmful_candidates']} of {found['candidates']} candidates truly harm: "
        f"{found['harmful_promoted']} of {found['harmful']} verdicts on them were promotions "
        f"({_held(found['harmful_promoted'], found['harmful'], HARMFUL_BAR, least=False)}). "
        f"{found['improving_candidates']} truly improve by twice the margin: at the largest log "
        f"{found['improving_promoted']} of {found['improving']} were "
        f"({_held(found['improving_promoted'], found['improving'], IMPROVING_BAR, least=True)})."
    )


def _held(promoted: int, given: int, bar: float, least: bool) -> str:
    """The share, and whether it meets its bar."""
    if not given:
        return "no such candidate"
    share = promoted / given
    met = "met" if (share >= bar if least else share <= bar) else "missed"
    side = "at least" if least else "at most"
    return f"{percent(share, signed=False)}, {side} {percent(bar, 0, signed=False)} wanted: {met}"
