"""A registered policy over the candidates of the night, by Arrow batches.

The `scores` Delta table, partitioned by `night`; one commit per run replaces the night whole:

| column                      | type           | meaning |
|-----------------------------|----------------|---------|
| night                       | string         | UTC date of the night's earliest decide_at, partition |
| candidate_id, user_id       | string         | what could be sent, to whom |
| decide_at                   | timestamp (us) | when the decision holds from, UTC |
| valid_until                 | timestamp (us) | decide_at + score.valid_hours: do not act on the row after it |
| action                      | string         | what to do |
| propensity                  | double         | probability of that action: tomorrow's log needs it |
| probabilities               | array<double>  | [A] of every action, in the order of the configured actions |
| legal                       | array<boolean> | [A] |
| value_<action>_<component>  | double         | unpenalised fitted Q of the policy, raw units, discounted; null where the model was not asked |
| rule                        | string         | null where the policy decided; else consent, quiet_hours, max_sends_24h, max_sends_7d, min_gap, only_legal_action, or why the model could not judge (missing_feature:NAME, missing_user_id, missing_decide_at, unknown_legal_action, no_legal_action) |
| policy, policy_version      | string         | learner and registry version |
"""  # noqa: E501

import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from models import artifact
from models.contract import Contract
from models.errors import InputError
from pipelines.etl import decisions as log
from pipelines.etl import staging
from pipelines.etl.blocks import Batches, from_blocks
from pipelines.etl.buckets import RESULT
from pipelines.etl.features import Probes, is_missing, known, state_matrix
from pipelines.etl.hashing import xxhash64
from pipelines.etl.history import mark, read_history
from pipelines.etl.marks import Plan, ints, is_null
from pipelines.etl.schemas import CANDIDATES, Layout
from policies.constraints import legal_actions
from policies.q_policy import QPolicy

ONLY_LEGAL_ACTION = "only_legal_action"


@dataclass(frozen=True)
class Night:
    """What the executors need to know; sent to the workers."""

    plan: Plan
    files: dict[str, bytes]
    """The champion's artifact: file name -> content."""
    fingerprint: str
    version: str
    night: str
    valid_us: int
    seed: int
    """Of the draws, from run and night."""
    schemas: Mapping[int, pa.Schema]
    """The raw table of each dataset that there is, the candidates among them."""
    root: Path
    """The scores table."""
    run: str


def scores_schema(contract: Contract) -> pa.Schema:
    """The scores table, see above."""
    values = [
        (f"value_{action}_{component}", pa.float64()) for action in contract.actions for component in contract.rewards
    ]
    fields = [
        ("night", pa.string()),
        ("candidate_id", pa.string()),
        ("user_id", pa.string()),
        ("decide_at", pa.timestamp("us", "UTC")),
        ("valid_until", pa.timestamp("us", "UTC")),
        ("action", pa.string()),
        ("propensity", pa.float64()),
        ("probabilities", pa.list_(pa.float64())),
        ("legal", pa.list_(pa.bool_())),
        *values,
        ("rule", pa.string()),
        ("policy", pa.string()),
        ("policy_version", pa.string()),
    ]
    return pa.schema(fields)


def scores_layout(contract: Contract) -> Layout:
    """One folder a night, rows by user."""
    return Layout(scores_schema(contract), ("night",))


def run_nights(job: Night) -> Any:
    """Blocks of whole users and their candidates -> RESULT rows, for `mapInArrow`.

    | kind   | payload |
    |--------|---------|
    | scores | a `staging.Staged` as JSON: a file of scored rows |
    | counts | [[action, rule, rows, latest valid_until in us], ...] of the same rows, as JSON |
    """

    def run(batches: Batches) -> Batches:
        for _, tables in from_blocks(batches):
            whole = {code: tables.get(code, schema.empty_table()) for code, schema in job.schemas.items()}
            if not whole[CANDIDATES].num_rows:
                continue
            rows = score(whole, job).sort_by([("user_id", "ascending"), ("candidate_id", "ascending")])
            layout = scores_layout(job.plan.contract)
            staged = staging.write(rows, job.root, job.run, layout, {"night": job.night})
            payloads = [json.dumps(asdict(staged)).encode(), json.dumps(_counts(rows)).encode()]
            yield pa.record_batch([["scores", "counts"], payloads], schema=RESULT)

    return run


def _counts(rows: pa.Table) -> list[list[Any]]:
    until = rows.set_column(0, "until", rows["valid_until"].cast(pa.int64()))
    groups = until.group_by(["action", "rule"]).aggregate([([], "count_all"), ("until", "max")])
    return [[g["action"], g["rule"], g["count_all"], g["until_max"]] for g in groups.to_pylist()]


def score(tables: Mapping[int, pa.Table], job: Night) -> pa.Table:
    """Raw rows of whole users and their candidates -> scored rows, see the table above."""
    plan, contract = job.plan, job.plan.contract
    marked = mark(tables, plan)
    found, asked = read_history(marked, plan), tables[CANDIDATES]
    rows = asked.num_rows
    context = log.context(asked, plan)
    probes = Probes(np.maximum(marked.user[CANDIDATES], 0), ints(asked, "at"), context)
    facts = known(
        probes, found.sends, found.events, found.visits, found.people, plan.lookback, plan.features.click_prior
    )
    offered, unknown = log.logged_legal(asked, plan)
    legal, rule = legal_actions(facts, offered, contract.actions, plan.constraints)
    state = state_matrix(facts, context, plan.features)

    choice = offered.sum(axis=1) > 1
    reason = np.full(rows, None, dtype=object)
    reason[~choice] = ONLY_LEGAL_ACTION
    reason[rule != ""] = rule[rule != ""]
    judged = np.ones(rows, bool)
    for name, wrong in (
        *((f"missing_feature:{name}", choice & is_missing(column)) for name, column in context.items()),
        ("no_legal_action", ~offered.any(axis=1)),
        ("unknown_legal_action", unknown),
        ("missing_decide_at", is_null(asked, "at")),
        ("missing_user_id", is_null(asked, "user_id")),
    ):
        reason[wrong] = name
        judged &= ~wrong

    champion = _champion(tuple(sorted(job.files.items())), job.fingerprint)
    policy = QPolicy(champion)
    # What the model cannot judge gets the first action, which is `hold` wherever there is one.
    probability = np.zeros(legal.shape)
    probability[~judged, 0] = 1.0
    legal[~judged] = np.arange(legal.shape[1]) == 0
    values = np.full((rows, len(contract.actions), len(contract.rewards)), np.nan)
    if judged.any():
        probability[judged] = policy.action_probabilities(state[judged], legal[judged])
        values[judged] = champion.predict(state[judged])[2]
    return _rows(asked, job, probability, legal, values, reason, policy.name)


def _rows(
    asked: pa.Table,
    job: Night,
    probability: NDArray[np.float64],
    legal: NDArray[np.bool_],
    values: NDArray[np.float64],
    reason: NDArray[Any],
    policy: str,
) -> pa.Table:
    contract = job.plan.contract
    # A hash of run and candidate, so that a rerun decides the same; as fine as a double in [0, 1) can be.
    draw = (xxhash64(asked["row_id"], job.seed) >> np.uint64(11)) / 2.0**53
    # The first action whose cumulative probability exceeds the draw; rounding must choose none of probability 0.
    action = (np.cumsum(probability, axis=1) <= draw[:, None]).sum(axis=1)
    last = probability.shape[1] - 1 - (probability[:, ::-1] > 0).argmax(axis=1)
    action = np.minimum(action, last)
    at = ints(asked, "at")
    missing = is_null(asked, "at")
    actions = len(contract.actions)
    columns: dict[str, Any] = {
        "night": pa.repeat(job.night, len(at)),
        "candidate_id": asked["row_id"],
        "user_id": asked["user_id"],
        "decide_at": pa.array(at, pa.timestamp("us", "UTC"), mask=missing),
        "valid_until": pa.array(at + job.valid_us, pa.timestamp("us", "UTC"), mask=missing),
        "action": pa.array(contract.actions).take(pa.array(action)),
        "propensity": probability[np.arange(len(action)), action],
        "probabilities": pa.FixedSizeListArray.from_arrays(pa.array(probability.ravel()), actions).cast(
            pa.list_(pa.float64())
        ),
        "legal": pa.FixedSizeListArray.from_arrays(pa.array(legal.ravel()), actions).cast(pa.list_(pa.bool_())),
        "rule": pa.array(reason, pa.string()),
        "policy": pa.repeat(policy, len(at)),
        "policy_version": pa.repeat(job.version, len(at)),
    }
    for a, name in enumerate(contract.actions):
        for k, component in enumerate(contract.rewards):
            value = values[:, a, k]
            columns[f"value_{name}_{component}"] = pa.array(value, pa.float64(), mask=np.isnan(value))
    schema = scores_schema(contract)
    return pa.table([columns[name] for name in schema.names], schema=schema)


@lru_cache(maxsize=2)
def _champion(files: tuple[tuple[str, bytes], ...], fingerprint: str) -> artifact.Artifact:
    """The artifact, once per worker process."""
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files:
            (Path(folder) / name).write_bytes(content)
        loaded = artifact.load(Path(folder))
    if loaded.fingerprint != fingerprint:
        raise InputError(
            f"the champion arrived with fingerprint {loaded.fingerprint}, sent as {fingerprint}; score again."
        )
    return loaded
