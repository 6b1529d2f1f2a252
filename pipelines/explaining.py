"""One user's decisions, read from the transitions and explained: for a terminal, and as JSON that says the same."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Group
from rich.table import Table
from rich.text import Text

from models.artifact import Artifact
from models.contract import STATE_PREFIX
from models.errors import InputError
from pipelines.config import Config
from pipelines.etl import store
from pipelines.etl.hashing import bucket_of, xxhash64
from pipelines.etl.settings import changes, check_settings
from policies.constraints import legal_actions
from policies.explain import Explanation, explain, in_words, number

PLAIN = ("decision_id", "decided_at", "action", "legal", "usable", "silent", "reason")
NAMED = 3
"""Decisions that an error names."""
MEANING = "Expected from this decision on: the action now, then the policy as deployed; what comes later counts less.\n"


def explain_user(
    config: Config,
    artifact: Artifact,
    user: str,
    decision: str | None = None,
    last: int = 1,
    version: str | None = None,
) -> dict[str, Any]:
    """The newest `last` usable decisions of `user` that offered a choice, or `decision`, explained; ready for JSON.

    Where none offered a choice, the newest usable ones. Values are raw units; of what the policy chooses by there are
    shares alone. `version` is the champion's in the registry, None for a policy that is not called from there.

    Raises InputError where there is no table or one of another configuration, where the artifact was made for other
    actions, features or states, for an unknown user, for one without a usable decision, for a decision that is not
    theirs or not usable, and for a `last` below 1.
    """
    _check(artifact, config)
    rows, read = _rows_of(config, user)
    chosen = _chosen(rows, user, decision, last)
    return {
        "user": user,
        "policy": artifact.lineage.get("learner"),
        "champion": version,
        "fingerprint": artifact.fingerprint,
        "transitions_version": read,
        "units": {name: artifact.contract.units.get(name, name) for name in artifact.contract.rewards},
        "weights": dict(artifact.weights),
        "decisions": [_told(row, _explained(row, artifact, config)) for row in chosen],
    }


def _check(artifact: Artifact, config: Config) -> None:
    remedy = "train a policy with this configuration, or explain with the policy's"
    for what in ("actions", "features"):
        theirs, ours = getattr(artifact.contract, what), getattr(config.contract, what)
        if theirs != ours:
            raise InputError(
                f"the policy was made for {what} {', '.join(theirs)}, the transitions have {', '.join(ours)}; {remedy}."
            )
    theirs = artifact.lineage.get("etl_hash")
    if theirs != config.etl_hash():
        raise InputError(
            f"the policy learned from states of another ETL configuration ({changes(config, theirs)}); {remedy}."
        )


def _rows_of(config: Config, user: str) -> tuple[list[dict[str, Any]], int]:
    """The user's rows of the newest transitions, the newest first, and their version."""
    path = config.transitions_path
    table = store.opened(path)
    if table is None:
        raise InputError(f"{path}: no transitions table; run the ETL first (`tactful etl CONFIG`).")
    # Also what says that the user's bucket is found by today's number of buckets.
    check_settings(config)
    dataset = table.to_pyarrow_dataset()
    bucket = int(bucket_of(xxhash64(pa.array([user])), config.etl.buckets)[0])
    columns = [*PLAIN, *(STATE_PREFIX + name for name in config.contract.features)]
    rows = dataset.to_table(columns=columns, filter=(pc.field("bucket") == bucket) & (pc.field("user_id") == user))
    if not rows.num_rows:
        ids = dataset.head(1, columns=["user_id"])["user_id"].to_pylist()
        raise InputError(
            f"user {user!r}: no row in version {table.version()} of {path}"
            f"{f', whose ids look like {ids[0]!r}' if ids else ', which is empty'}; give an id as the log has it."
        )
    order = [("decided_at", "descending"), ("decision_id", "descending")]
    return rows.sort_by(order).to_pylist(), int(table.version())


def _chosen(rows: list[dict[str, Any]], user: str, decision: str | None, last: int) -> list[dict[str, Any]]:
    if last < 1:
        raise InputError(f"--last {last}: at least one decision is needed.")
    usable = [row for row in rows if row["usable"]]
    decided = [row for row in usable if not row["silent"]]
    if decision is None:
        if not decided:
            why = Counter(row["reason"] or "silent" for row in rows).most_common(NAMED)
            raise InputError(
                f"user {user!r}: {len(rows)} rows, none a usable decision "
                f"({', '.join(f'{reason}: {count}' for reason, count in why)}); look at quarantine/ for the remedies, "
                "or name another user."
            )
        return ([row for row in decided if sum(row["legal"]) > 1] or decided)[:last]
    named = [row for row in rows if row["decision_id"] == decision]
    others = ", ".join(row["decision_id"] for row in decided[:NAMED]) or "none"
    if not named:
        raise InputError(
            f"--decision {decision}: not among the {len(rows)} rows of user {user!r}; their newest usable decisions: "
            f"{others}."
        )
    found = [row for row in named if row["usable"]]
    if not found:
        raise InputError(
            f"--decision {decision}: not usable ({named[0]['reason']}), so that its state is not known; the newest "
            f"usable ones of user {user!r}: {others}."
        )
    return found[:1]


def _explained(row: Mapping[str, Any], artifact: Artifact, config: Config) -> Explanation:
    known = {name: row[STATE_PREFIX + name] for name in artifact.contract.features}
    state = np.array([np.nan if value is None else value for value in known.values()], dtype=np.float32)
    legal = np.array(row["legal"], dtype=np.bool_)
    return explain(artifact, state, legal, "" if legal.sum() > 1 else _rule(known, config))


def _rule(known: Mapping[str, float | None], config: Config) -> str:
    """The first configured limit that took away every send, as far as the state shows it; else empty."""
    # What the state does not show takes nothing away.
    facts = {"notifications_on": 1.0, "sends_24h": 0.0, "sends_7d": 0.0, "hours_since_send": math.inf}
    facts |= {name: value for name, value in known.items() if name in facts and value is not None}
    sine, cosine = known.get("hour_sin"), known.get("hour_cos")
    facts["local_hour"] = math.nan
    if sine is not None and cosine is not None:
        # float32 moved 22:00 to one side or the other.
        facts["local_hour"] = round(math.atan2(sine, cosine) / (2 * math.pi) % 1 * 24, 4) % 24
    actions = config.contract.actions
    everything = np.ones((1, len(actions)), dtype=np.bool_)
    _, rule = legal_actions(
        {name: np.array([value]) for name, value in facts.items()}, everything, actions, config.constraints
    )
    return str(rule[0])


def _told(row: Mapping[str, Any], found: Explanation) -> dict[str, Any]:
    contract = found.contract
    actions, rewards = contract.actions, contract.rewards

    def per(names: Sequence[str], numbers: Any) -> dict[str, float]:
        return {name: float(each) for name, each in zip(names, numbers, strict=True)}

    compared = None
    if found.pair is not None:
        of, against = found.pair
        compared = {
            "of": actions[of],
            "against": actions[against],
            "difference": per(rewards, found.difference),
            "weighted": per(rewards, found.weighted),
            "total": float(found.weighted.sum()),
            "tips": found.tips,
        }
    return {
        "decision_id": row["decision_id"],
        "decided_at": row["decided_at"].isoformat(),
        "logged_action": row["action"],
        "legal": [name for name, may in zip(actions, found.legal, strict=True) if may],
        "rule": found.rule or None,
        "probabilities": per(actions, found.probabilities),
        "logging_policy": per(actions, found.logging),
        "rollout_share": found.share,
        "preferred": actions[found.preferred],
        "values": {name: per(rewards, each) for name, each in zip(actions, found.values, strict=True)},
        "compared": compared,
        "agrees": found.agrees,
        "average_user": actions[found.average],
        "features": [
            {
                "feature": each.feature,
                "columns": list(each.columns),
                "here": each.here,
                "average": each.average or None,
                "towards": each.towards,
                "share": each.share,
            }
            for each in found.movements
        ],
        "unattributed": found.unattributed,
        "words": in_words(found),
    }


# For a terminal.


def in_tables(found: Mapping[str, Any]) -> Group:
    """What `explain_user` found: per decision the sentences and the values."""
    place = f"version {found['champion']}, the champion" if found["champion"] else "as trained"
    parts: list[Any] = [Text(f"policy {found['policy']}, {place}, fingerprint {found['fingerprint'][:12]}\n")]
    for each in found["decisions"]:
        when = each["decided_at"][:16].replace("T", " ")
        head = f"{found['user']}, decision {each['decision_id']}, {when} UTC; the log chose {each['logged_action']}"
        parts += [Text(head, style="bold"), *map(Text, each["words"]), _values(found, each), Text(MEANING, style="dim")]
    return Group(*parts)


def _values(found: Mapping[str, Any], each: Mapping[str, Any]) -> Table:
    """Per component the value of each action, raw units, and what makes up the difference."""
    compared, weights = each["compared"], found["weights"]
    table = Table(title="What each action is worth", title_justify="left")
    table.add_column("component")
    for action in each["values"]:
        table.add_column(Text(action if action in each["legal"] else f"{action} (not legal)"), justify="right")
    if compared:
        table.add_column(Text(f"{compared['of']} against {compared['against']}"), justify="right")
        table.add_column("weight", justify="right")
        table.add_column("weighted", justify="right")
    for name, unit in found["units"].items():
        cells = [number(values[name]) for values in each["values"].values()]
        if compared:
            difference, weighted = compared["difference"][name], compared["weighted"][name]
            cells += [number(difference, sign=True), number(weights[name]), number(weighted, sign=True)]
        table.add_row(Text(name if unit == name else f"{name}, {unit}"), *cells)
    if compared:
        blank = [""] * (len(each["values"]) + 2)
        table.add_section()
        table.add_row("in all", *blank, number(compared["total"], sign=True))
    return table
