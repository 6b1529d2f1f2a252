"""A raw log lake from the notification world, and the true value of policies that see the ETL's state.

Parquet, timestamps in microseconds UTC; decisions and events have one file per arrival day (`ds=`, UTC date of
logged_at):

| dataset    | columns |
|------------|---------|
| decisions  | decision_id, user_id, decided_at, action, propensity, legal_actions, policy_id, logged_at, context |
| events     | event_id, user_id, occurred_at, kind, decision_id, value (null), logged_at |
| users      | user_id, valid_from, time_zone, tenure_days |
| candidates | candidate_id, user_id, decide_at, legal_actions, context |

The context is relevance (double) and near_real_time (1 where the system sent a near-real-time notification in the 24
hours before, else 0), both null where no item waits. What the system sends of itself are events without a decision_id.
"""

import shutil
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from models.errors import InputError
from pipelines.config import Config
from pipelines.etl import features as etl
from pipelines.etl.files import format_of
from pipelines.sections import Dataset
from policies.base import Policy
from policies.behaviour import ACTIONS, KINDS, SimulatorConfig
from policies.constraints import legal_actions
from policies.simulator import Decide, Log, View, simulate, true_values

CONTEXT = ("relevance", "near_real_time")
ATTRIBUTES = ("tenure_days", "time_zone")
MARK = "_SIMULATED"
"""A file that says a dataset was simulated and may be replaced; readers skip names that begin with an underscore."""

_TIME = pa.timestamp("us", tz="UTC")
_KIND_CODES = np.array([etl.KINDS.index(kind) for kind in KINDS], np.int8)


def run_simulate(config: Config) -> dict[str, Any]:
    """Simulate the log of the config and write it to the config's datasets; returns row counts and watermark.

    Raises InputError where [simulate] is missing, the actions are not hold and send, or a dataset's place holds
    anything but an earlier simulation.
    """
    world = _world_of(config)
    datasets = {name: getattr(config.data, name) for name in ("decisions", "events", "users", "candidates")}
    places = {name: _folder(name, dataset) for name, dataset in datasets.items() if dataset is not None}
    log = simulate(world, config.seed)
    written = {name: table for name, table in tables(log).items() if name in places}
    write(written, places)
    counts = {name: table.num_rows for name, table in written.items()}
    last = [int(log.decisions["at"].max()), int(log.events["logged"].max(initial=log.start))]
    return {**counts, "watermark": (datetime.fromtimestamp(0, UTC) + timedelta(microseconds=min(last))).isoformat()}


def policy_truth(
    config: Config, policies: Sequence[Policy], seed: int, progress: bool = False
) -> dict[str, dict[str, dict[str, float | None]]]:
    """True value per user-week of `logging` and of each policy, acting on the ETL's state; see simulator.true_values.

    Raises InputError as `run_simulate`, and where the configured features are not columns of the simulated log.
    """
    world = _world_of(config)
    deciders = {policy.name: state_decide(policy, config) for policy in policies if policy.name != "logging"}
    return true_values(world, seed, deciders, progress)


def state_decide(policy: Policy, config: Config) -> Decide:
    """What a deployed policy does in the world: the ETL's kernel on the log so far, the legal actions, the policy.

    Raises InputError where a configured feature is not a column of the simulated log.
    """
    check_features(config)

    def decide(view: View) -> NDArray[np.float64]:
        known, state = view_state(view, config)
        legal, _ = legal_actions(known, view.legal, ACTIONS, config.constraints)
        return np.asarray(policy.action_probabilities(state, legal), np.float64)

    return decide


def check_features(config: Config) -> None:
    """Raise InputError where a configured feature is not a column of the simulated log."""
    wanted = config.features
    for key, names, there in (
        ("context", [*wanted.context, *wanted.context_categories], CONTEXT),
        ("attributes", [*wanted.attributes, *wanted.attribute_categories], ATTRIBUTES),
    ):
        for name in names:
            if name not in there:
                raise InputError(f"features.{key}: {name!r} is not in the simulated log (it has {', '.join(there)}).")


def view_state(view: View, config: Config) -> tuple[dict[str, NDArray[Any]], NDArray[np.float32]]:
    """The ETL's features at the reviews of one step, raw by name and as the state [n, S], from the log so far."""
    return log_state(
        {"user": view.user, "at": view.at, "relevance": view.relevance, "near_real_time": view.near_real_time},
        view.decisions(),
        view.events(),
        view.users(),
        config,
    )


def log_state(
    probes: Mapping[str, NDArray[Any]],
    decisions: Mapping[str, NDArray[Any]],
    events: Mapping[str, NDArray[Any]],
    users: Mapping[str, NDArray[Any]],
    config: Config,
) -> tuple[dict[str, NDArray[Any]], NDArray[np.float32]]:
    """The ETL's features at `probes` (user, at, context) from columns of a simulated log: raw by name, and [N, S]."""
    context = {name: probes[name] for name in CONTEXT}
    sent = decisions["action"] == 1
    sent_at = decisions["at"][sent]
    happened = etl.Happenings(
        events["user"], events["at"], events["logged"], _KIND_CODES[events["kind"]], events["day"]
    ).ordered()
    known = etl.known(
        etl.Probes(probes["user"], probes["at"], context),
        etl.Sends(decisions["user"][sent], sent_at, sent_at),
        happened,
        etl.visits(happened, round(config.etl.session_gap_minutes * 60_000_000)),
        etl.People(users["user"], users["valid_from"], users["time_zone"], {name: users[name] for name in ATTRIBUTES}),
        round(config.etl.lookback_days * etl.DAY),
        config.features.click_prior,
    )
    return known, etl.state_matrix(known, context, config.features)


def tables(log: Log, policy_id: str = "logging") -> dict[str, pa.Table]:
    """The raw datasets of a log as Arrow tables, columns as at the top of this file, each in order of arrival."""
    decisions, events, users, candidates = log.decisions, log.events, log.users, log.candidates
    return {
        "decisions": pa.table(
            {
                "decision_id": _decision_id(decisions["user"], decisions["day"]),
                "user_id": _user_id(decisions["user"]),
                "decided_at": _time(decisions["at"]),
                "action": pa.array(ACTIONS).take(pa.array(decisions["action"])),
                "propensity": decisions["propensity"],
                "legal_actions": _legal(decisions["send_legal"]),
                "policy_id": pa.repeat(policy_id, len(decisions["user"])),
                "logged_at": _time(decisions["at"]),
                **_context(decisions),
            }
        ).sort_by([("logged_at", "ascending"), ("decision_id", "ascending")]),
        "events": pa.table(
            {
                "event_id": _code("e", np.arange(len(events["user"])), 9),
                "user_id": _user_id(events["user"]),
                "occurred_at": _time(events["at"]),
                "kind": pa.array(KINDS).take(pa.array(events["kind"])),
                "decision_id": pc.if_else(
                    pa.array(events["day"] >= 0),
                    _decision_id(events["user"], events["day"]),
                    pa.scalar(None, pa.string()),
                ),
                "value": pa.nulls(len(events["user"]), pa.float64()),
                "logged_at": _time(events["logged"]),
            }
        ).sort_by([("logged_at", "ascending"), ("event_id", "ascending")]),
        "users": pa.table(
            {
                "user_id": _user_id(users["user"]),
                "valid_from": _time(users["valid_from"]),
                "time_zone": pa.array(users["time_zone"], pa.string()),
                "tenure_days": users["tenure_days"],
            }
        ),
        "candidates": pa.table(
            {
                "candidate_id": _code("c", candidates["user"], 7),
                "user_id": _user_id(candidates["user"]),
                "decide_at": _time(candidates["at"]),
                "legal_actions": _legal(candidates["send_legal"]),
                **_context(candidates),
            }
        ),
    }


def _world_of(config: Config) -> SimulatorConfig:
    if config.simulate is None:
        raise InputError("simulate: missing; add a [simulate] section, or take the log from elsewhere.")
    if tuple(config.actions) != ACTIONS:
        raise InputError(f"actions is {config.actions}; the simulated world knows {list(ACTIONS)}.")
    return config.simulate


def _folder(name: str, dataset: Dataset) -> Path:
    if (dataset.format or format_of(dataset.path.name) or "parquet") != "parquet":
        raise InputError(f"data.{name}.path is {dataset.path}; a simulated dataset is a Parquet folder: name a folder.")
    return dataset.path


def write(found: Mapping[str, pa.Table], places: Mapping[str, Path]) -> None:
    """All of them or, where one place is taken, none."""
    for place in places.values():
        if place.exists() and not (place / MARK).exists():
            raise InputError(f"{place} holds something that was not simulated; move it away or choose another path.")
    for name, table in found.items():
        _write_dataset(table, places[name])


def _write_dataset(table: pa.Table, place: Path) -> None:
    """One file, or one file per arrival day where there is one; the folder is swapped in when it is whole."""
    staging = place.with_name(place.name + ".writing")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    (staging / MARK).touch()
    if "logged_at" in table.column_names:
        day = pc.strftime(table["logged_at"], "%Y-%m-%d")
        for ds in pc.unique(day).to_pylist():
            (staging / f"ds={ds}").mkdir()
            pq.write_table(table.filter(pc.equal(day, ds)), staging / f"ds={ds}" / "part-0.parquet", compression="zstd")
    else:
        pq.write_table(table, staging / "part-0.parquet", compression="zstd")
    shutil.rmtree(place, ignore_errors=True)
    staging.rename(place)


def _code(letter: str, number: NDArray[np.int64], width: int) -> pa.Array:
    digits = pc.utf8_lpad(pc.cast(pa.array(number), pa.string()), width, "0")
    return pc.binary_join_element_wise(letter, digits, "")


def _user_id(user: NDArray[np.int64]) -> pa.Array:
    return _code("u", user, 7)


def _decision_id(user: NDArray[np.int64], day: NDArray[np.int64]) -> pa.Array:
    return pc.binary_join_element_wise(_code("d", user, 7), _code("", day, 3), "-")


def _time(moment: NDArray[np.int64]) -> pa.Array:
    return pa.array(moment, pa.int64()).cast(_TIME)


def _legal(send_legal: NDArray[np.bool_]) -> pa.Array:
    both = pa.array([[ACTIONS[0]], list(ACTIONS)], pa.list_(pa.string()))
    return both.take(pa.array(send_legal.astype(np.int64)))


def _context(rows: Mapping[str, NDArray[Any]]) -> dict[str, pa.Array]:
    return {
        "relevance": pa.array(rows["relevance"], from_pandas=True),
        "near_real_time": pa.array(rows["near_real_time"], from_pandas=True).cast(pa.int32()),
    }
