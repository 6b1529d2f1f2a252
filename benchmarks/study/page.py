"""docs/study.md, its tables renewed from a run; and the same in a terminal."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from benchmarks.study.findings import HEADLINE, findings, percent, word
from benchmarks.study.promotion import VERDICTS
from benchmarks.study.truth import UTILITY
from models.errors import InputError

COMPONENTS = ("sends", "clicks", "visits", "weekly_active_days", "ctr", UTILITY)
"""Of the estimators' tables; disables are too rare for a log's test split to say much."""
Rows = list[Sequence[str]]


def tables(details: Mapping[str, Any]) -> dict[str, Rows]:
    """Each table of the page by its name, the first row its head."""
    return {
        "settings": _settings(details),
        "halves": _halves(details),
        "estimators": _estimators(details["estimators"]),
        "by share": _by_share(details["by_share"]),
        "headline": _headline(details["headline"]),
        "gate": _gate(details["gate"]),
    }


def _settings(details: Mapping[str, Any]) -> Rows:
    given = details["settings"]
    world = given["config"]["simulate"]
    minutes = {name: f"{seconds / 60:.1f} min" for name, seconds in details["seconds_by_part"].items()}
    return [
        ("what", "size"),
        ("members of each half; diverged", f"{given['members']}; {len(details['stopped'])}"),
        (
            "the log they learn from",
            f"{world['users']:,} users, {world['days']} days, exploration {world['epsilon']:g}",
        ),
        ("users behind each truth; of the headline", f"{world['truth_users']:,}; {given['headline_truth']:,}"),
        ("updates; of the headline", f"{given['config']['train']['steps']:,}; {given['headline_steps']:,}"),
        ("headline, seeds a cell", f"{given['seeds']}"),
        ("gate: candidates; logs", f"{details['gate']['candidates']}; {details['gate']['logs']}"),
        ("threads", f"{details['threads']}"),
        ("time", f"{details['seconds'] / 60:.1f} min ({', '.join(f'{k} {v}' for k, v in minutes.items())})"),
    ]


def _halves(details: Mapping[str, Any]) -> Rows:
    found = details["halves"]
    lines: list[tuple[str, Any]] = [
        ("members with a policy", lambda each: f"{each['alive']}"),
        ("beat the logging policy", lambda each: f"{each['beat']}"),
        ("… by more than 1.96 standard errors", lambda each: f"{each['surely']}"),
        ("worse by more than 1.96 standard errors", lambda each: f"{each['surely_not']}"),
        ("beat it and harm no guarded metric", lambda each: f"{each['harmless']}"),
        ("fell silent: less than a tenth of its volume", lambda each: f"{each['silent']}"),
        (
            "change in utility, mean and spread over members",
            lambda each: f"{percent(each['gain'])}, {percent(each['gain_spread'], signed=False)}",
        ),
    ]
    for key, label in (("alone", "as the only try"), ("among", "sharing the confidence")):
        lines += [
            (
                f"gate, {label}: " + ", ".join(each.lower() for each in VERDICTS),
                lambda each, key=key: ", ".join(str(each["gate"][key][verdict]) for verdict in VERDICTS),
            ),
            (
                "… granted some share; its mean",
                lambda each, key=key: (
                    f"{each['gate'][key]['some_share']}; {percent(each['gate'][key]['mean_share'], 0, signed=False)}"
                ),
            ),
        ]
    return [("", *map(word, found)), *((label, *(of(each) for each in found.values())) for label, of in lines)]


def _estimators(found: Mapping[str, Any]) -> Rows:
    def cell(each: Mapping[str, Any], name: str) -> str:
        rank = each["rank_correlation"][name]
        spread = percent(each["standard_deviation"][name], signed=False)
        return f"{percent(each['bias'][name])}, {spread}, {'none' if rank is None else f'{rank:.2f}'.replace('-', '−')}"

    shown = [name for name in COMPONENTS if all(name in each["bias"] for each in found.values())]
    return [
        ("estimator", *map(word, shown)),
        *((estimator, *(cell(each, name) for name in shown)) for estimator, each in found.items()),
    ]


def _by_share(found: Mapping[str, Any]) -> Rows:
    shown = ("sends", "clicks", "weekly_active_days")
    rows: Rows = [("share", "estimator", *map(word, shown))]
    for share, by_estimator in found.items():
        for estimator, by_name in by_estimator.items():
            each = [by_name[name] for name in shown]
            rows.append(
                (
                    share,
                    estimator,
                    *(
                        f"{percent(e['bias'], 2)} ± {percent(e['bias_error'], 2, signed=False)}, "
                        f"{percent(e['standard_deviation'], 1, signed=False)}"
                        for e in each
                    ),
                )
            )
    return rows


def _headline(found: Mapping[str, Any]) -> Rows:
    rows: Rows = [("users", "exploration", "learner", *map(word, HEADLINE), "seeds")]
    for users, by_epsilon in found.items():
        for epsilon, by_learner in by_epsilon.items():
            for learner in (name for name in by_learner if name != "without"):
                each = by_learner[learner]
                rows.append(
                    (
                        f"{int(users):,}",
                        epsilon,
                        word(learner),
                        *(_with_interval(each[name]) for name in HEADLINE),
                        f"{each['sends']['seeds']}",
                    )
                )
    return rows


def _with_interval(each: Mapping[str, Any]) -> str:
    if each["low"] is None:
        return percent(each["mean"])
    return f"{percent(each['mean'])} ({percent(each['low'])} to {percent(each['high'])})"


def _gate(found: Mapping[str, Any]) -> Rows:
    rows: Rows = [("users", "logs", *(f"{group}: {verdict.lower()}" for group in GROUPS for verdict in VERDICTS))]
    for users, each in found["growth"].items():
        shares = (percent(each[group][verdict], 1, signed=False) for group in GROUPS for verdict in VERDICTS)
        rows.append((f"{int(users):,}", f"{each['logs']}", *shares))
    return rows


GROUPS = ("harmful", "improving")


def fill(page: Path, details: Mapping[str, Any]) -> None:
    """Put each table, and the findings, between their marks. Raises InputError as `put`."""
    blocks = {name: markdown(rows) for name, rows in tables(details).items()}
    put(page, blocks | {"findings": "\n".join(f"- {each}" for each in findings(details))})


def put(page: Path, blocks: Mapping[str, str]) -> None:
    """Put each block between its marks, `<!-- NAME -->` and `<!-- end -->`.

    Raises InputError where the page is not there, or lacks the marks of a block.
    """
    if not page.exists():
        raise InputError(f"{page}: no such page; name the folder of the documents.")
    text = page.read_text()
    for name, block in blocks.items():
        pattern = re.compile(f"<!-- {name} -->.*?<!-- end -->", re.S)
        if not pattern.search(text):
            raise InputError(f"{page}: has no `<!-- {name} -->` ... `<!-- end -->`; put them where the table belongs.")
        filled = f"<!-- {name} -->\n{block}\n<!-- end -->"
        # Not `sub`, which would read a backslash in the table.
        text = filled.join(pattern.split(text))
    page.write_text(text)


def markdown(rows: Rows) -> str:
    head, *body = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([head, "|" + "---|" * len(rows[0]), *body])


def shown(details: Mapping[str, Any]) -> Table:
    """The halves, for a terminal."""
    head, *body = _halves(details)
    table = Table(*head)
    for row in body:
        table.add_row(*row)
    return table
