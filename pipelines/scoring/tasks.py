"""A registered policy over the candidates of the night, by Arrow batches.

The `scores` Delta table, partitioned by `night`; one commit per run replaces the night whole:

| column                      | type           | meaning |
|-----------------------------|----------------|---------|
| night                       | string         | UTC date of the night's earliest decide_at, partition |
| candidate_id, user_id       | string         | what could be sent, to whom |
| decide_at                   | timestamp (us) | when the decision holds from, UTC |
| valid_until                 | timestamp (us) | decide_at + score.valid_hours: do not act on the row after it |
| action                      | string         | what to do |
| propensity                  | double         | probability of that action, given what was drawn for the user's candidates before it: tomorrow's log needs it |
| probabilities               | array<double>  | [A] of every action, in the order of the configured actions |
| legal                       | array<boolean> | [A] |
| value_<action>_<component>  | double         | unpenalised fitted Q of the policy, raw units, discounted; null where the model does not decide |
| rule                        | string         | null where the policy decided; else consent, quiet_hours, max_sends_24h, max_sends_7d, min_gap, only_legal_action, frozen, or why the fallback stands in for the model (new_user, missing_feature:NAME, missing_user_id, missing_decide_at, unknown_legal_action, no_legal_action) |
| policy, policy_version      | string         | learner and registry version; "frozen" and null while frozen |
"""  # noqa: E501

import hashlib
import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from models import artifact
from models.contract import Contract
from models.errors import InputError
from pipelines.etl import staging
from pipelines.etl.arrivals import arrivals_of
from pipelines.etl.blocks import Batches, from_blocks
from pipelines.etl.buckets import RESULT, Resume, before_of
from pipelines.etl.history import Before
from pipelines.etl.marks import Plan, ints, is_null
from pipelines.etl.schemas import CANDIDATES, NAMES, Layout
from pipelines.scoring.desk import as_table, from_table, joined, lay, taken
from pipelines.scoring.rounds import Judge, Judged, Price, Rules, drawn

FROZEN = "frozen"
SCORES, COUNTS, READ, VOLUME, EXPECTED, JUDGED = "scores", "counts", "read", "volume", "expected", "judged"
Window = tuple[float, float]


@dataclass(frozen=True)
class Night:
    """What the executors need to know; sent to the workers."""

    plan: Plan
    files: dict[str, bytes]
    """The champion's artifact: file name -> content; empty while frozen."""
    fingerprint: str
    version: str | None
    night: str
    valid_us: int
    rules: Rules
    resume: Resume | None
    """Where older changes of consent lie; None where the whole raw log is read."""
    forgotten: frozenset[bytes]
    """SHA-256 of the ids of users who must not be scored."""
    schemas: Mapping[int, pa.Schema]
    """The raw table of each dataset that is read, the candidates among them."""
    root: Path
    """The scores table."""
    run: str

    @property
    def desk(self) -> Path:
        """Where the first of two passes leaves what it judged, for this run alone."""
        return self.root / self.run / "judged"

    @property
    def default(self) -> Price:
        """The price that was gated."""
        return Price(float(champion_of(self).decision["lambda"]))


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


# The passes, for `mapInArrow`. Each sends back RESULT rows:
#
# | kind     | payload |
# |----------|---------|
# | scores   | a `staging.Staged` as JSON: a file of scored rows |
# | counts   | what stands in them as JSON, see `_counts` |
# | read     | [code of the dataset, rows, good rows, latest good `logged`] as JSON |
# | judged   | the bucket's number: what was judged of it lies on the desk |
# | volume   | a packed `Volume` of its candidates |
# | expected | their expected sends at the price that was tried, as JSON |


def score_nights(job: Night) -> Any:
    """Blocks of whole users and their candidates -> scores, counts and read, at the price that was gated."""

    def run(batches: Batches) -> Batches:
        for bucket, tables, dropped in _buckets(batches, job):
            yield results(_read(tables, job))
            if tables[CANDIDATES].num_rows or dropped:
                judged = judge(_of_those_asked(tables), job, before_of(job.resume, bucket), job.default)
                yield results(written(judged, job, job.default, dropped))

    return run


def judge_nights(job: Night) -> Any:
    """Blocks of whole users and their candidates -> judged, volume and read: the first pass under a budget.

    Users with one candidate are judged once and for all. What is drawn for one of several decides what the next knows,
    so that of those users the raw rows are kept, and each price is played through.
    """

    def run(batches: Batches) -> Batches:
        for bucket, tables, dropped in _buckets(batches, job):
            yield results(_read(tables, job))
            if tables[CANDIDATES].num_rows or dropped:
                yield results(_laid_out(bucket, _of_those_asked(tables), dropped, job))

    return run


def weigh_nights(job: Night, price: Price, window: Window) -> Any:
    """Bucket numbers -> volume and expected at that price, of what lies on the desk."""

    def run(batches: Batches) -> Batches:
        champion = champion_of(job)
        for bucket in _numbers(batches):
            for judged in _on_desk(bucket, job, price):
                sends = _sends(judged.probabilities(champion, price), job.plan.contract)
                volume = judged.volume(champion, window).packed()
                yield results([(VOLUME, volume), (EXPECTED, json.dumps(float(sends.sum())).encode())])

    return run


def finish_nights(job: Night, price: Price) -> Any:
    """Bucket numbers -> scores and counts at that price, of what lies on the desk: the second pass."""

    def run(batches: Batches) -> Batches:
        for bucket in _numbers(batches):
            dropped = int((job.desk / f"{bucket}.dropped").read_text())
            judged = joined(list(_on_desk(bucket, job, price)))
            yield results(written(judged, job, price, dropped))

    return run


def hold_nights(job: Night) -> Any:
    """Blocks of candidates -> scores and counts: every one is held, whoever asks."""

    def run(batches: Batches) -> Batches:
        for _, tables, dropped in _buckets(batches, job):
            asked = tables[CANDIDATES]
            if not asked.num_rows and not dropped:
                continue
            shape = asked.num_rows, len(job.plan.contract.actions)
            hold = np.tile(np.arange(shape[1]) == 0, (shape[0], 1))
            nan = np.full((*shape, len(job.plan.contract.rewards)), np.nan)
            reason = np.full(shape[0], FROZEN, dtype=object)
            none = np.empty((shape[0], 0), np.float32)
            kept = asked.select(["row_id", "user_id", "at"])
            judged = Judged(kept, reason, hold, nan[..., 0], nan[..., 0], nan, hold.astype(np.float64), none)
            yield results(written(judged, job, None, dropped))

    return run


# The parts of a pass


def judge(tables: Mapping[int, pa.Table], job: Night, before: Before | None, price: Price) -> Judged:
    """Raw rows of whole users and their candidates -> every candidate, judged."""
    return Judge(tables, job.plan, before, champion_of(job), job.rules).judged(price)


@lru_cache(maxsize=2)
def _loaded(files: tuple[tuple[str, bytes], ...], fingerprint: str) -> artifact.Artifact:
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


def champion_of(job: Night) -> artifact.Artifact:
    """The artifact that the job carries."""
    return _loaded(tuple(sorted(job.files.items())), job.fingerprint)


Result = tuple[str, bytes]


def results(found: Iterable[Result]) -> pa.RecordBatch:
    """RESULT rows."""
    kinds, payloads = zip(*found, strict=True)
    return pa.record_batch([pa.array(kinds, pa.string()), pa.array(payloads, pa.large_binary())], schema=RESULT)


def _buckets(batches: Batches, job: Night) -> Iterator[tuple[int, dict[int, pa.Table], int]]:
    """Number, raw tables and candidates left out of every bucket: nothing is read of users who were erased."""
    for bucket, tables in from_blocks(batches):
        whole = {code: tables.get(code, schema.empty_table()) for code, schema in job.schemas.items()}
        asked = whole[CANDIDATES].num_rows
        if job.forgotten:
            ids = [chunk for table in whole.values() for chunk in table["user_id"].chunks]
            users = pc.unique(pa.chunked_array(ids, pa.string()))
            digests = ((user, hashlib.sha256(user.encode()).digest()) for user in users.drop_null().to_pylist())
            gone = pa.array([user for user, digest in digests if digest in job.forgotten], pa.string())
            whole = {code: _where(table, gone, inside=False) for code, table in whole.items()}
        yield bucket, whole, asked - whole[CANDIDATES].num_rows


def _of_those_asked(tables: Mapping[int, pa.Table]) -> dict[int, pa.Table]:
    """The rows of users who have a candidate, and every candidate."""
    users = pc.unique(tables[CANDIDATES]["user_id"]).drop_null()
    return {code: table if code == CANDIDATES else _where(table, users, inside=True) for code, table in tables.items()}


def _where(table: pa.Table, users: pa.Array, inside: bool) -> pa.Table:
    """The rows of these users, or all others."""
    found = pc.is_in(table["user_id"], value_set=users)
    return table.filter(found if inside else pc.invert(found))


def _read(tables: Mapping[int, pa.Table], job: Night) -> Iterator[Result]:
    """What was read of the log, so that the driver can tell a log that is empty, or old."""
    raw = {code: table for code, table in tables.items() if code < CANDIDATES}
    for code, days in arrivals_of(raw, job.plan.as_of, job.plan.max_lateness).items():
        newest = max((day.logged for day in days if day.logged is not None), default=None)
        sums = [code, sum(day.rows for day in days), sum(day.good for day in days), newest]
        yield READ, json.dumps(sums).encode()


def _laid_out(bucket: int, tables: Mapping[int, pa.Table], dropped: int, job: Night) -> Iterator[Result]:
    asked = tables[CANDIDATES]
    counted = pc.value_counts(asked["user_id"].drop_null())
    several = counted.field("values").filter(pc.greater(counted.field("counts"), 1))
    single = {code: _where(table, several, inside=False) for code, table in tables.items()}
    judged = judge(single, job, before_of(job.resume, bucket), job.default)
    lay(as_table(judged), job.desk / f"{bucket}.arrow")
    if len(several):
        for code, table in tables.items():
            lay(_where(table, several, inside=True), job.desk / f"{bucket}-{NAMES[code]}.arrow")
    (job.desk / f"{bucket}.dropped").write_text(str(dropped))
    yield VOLUME, judged.volume(champion_of(job), (-np.inf, np.inf)).packed()
    yield JUDGED, json.dumps([bucket, asked.num_rows, len(several)]).encode()


def _on_desk(bucket: int, job: Night, price: Price) -> Iterator[Judged]:
    """The bucket's candidates at that price: those judged once and for all, and those of users who have several."""
    yield from_table(taken(job.desk / f"{bucket}.arrow"), job.plan.contract)
    paths = {code: job.desk / f"{bucket}-{NAMES[code]}.arrow" for code in job.schemas}
    if paths[CANDIDATES].exists():
        tables = {code: taken(path) for code, path in paths.items()}
        yield judge(tables, job, before_of(job.resume, bucket), price)


def _numbers(batches: Batches) -> Iterator[int]:
    for batch in batches:
        yield from batch.column("id").to_pylist()


def written(judged: Judged, job: Night, price: Price | None, dropped: int) -> list[Result]:
    """The rows in a file of their own, and what stands in it."""
    probability = judged.fixed if price is None else judged.probabilities(champion_of(job), price)
    rows = scored_rows(judged, job, probability).sort_by([("user_id", "ascending"), ("candidate_id", "ascending")])
    found = [(COUNTS, json.dumps(_counts(rows, judged, job, probability, dropped)).encode())]
    if rows.num_rows:
        staged = staging.write(rows, job.root, job.run, scores_layout(job.plan.contract), {"night": job.night})
        found.append((SCORES, json.dumps(asdict(staged)).encode()))
    return found


def _sends(probability: NDArray[np.float64], contract: Contract) -> NDArray[np.float64]:
    """[N] probability of a send."""
    found: NDArray[np.float64] = probability[:, np.array(contract.is_send)].sum(axis=1)
    return found


def _counts(
    rows: pa.Table, judged: Judged, job: Night, probability: NDArray[np.float64], dropped: int
) -> dict[str, Any]:
    """[action, rule, rows] of every pair there is; users; expected sends; latest valid_until in us; what the fallback
    decided, by reason; rows that were void before anybody looked; candidates of users who were erased."""
    groups = rows.group_by(["action", "rule"]).aggregate([([], "count_all")]).to_pylist()
    until, timed = rows["valid_until"].cast(pa.int64()), ~is_null(judged.asked, "at")
    stands_in = pa.array(judged.reason[~judged.policy], pa.string()).value_counts().to_pylist()
    return {
        "groups": [[group["action"], group["rule"], group["count_all"]] for group in groups],
        "users": pc.count_distinct(rows["user_id"], mode="only_valid").as_py(),
        "expected_sends": float(_sends(probability, job.plan.contract).sum()),
        "valid_until": pc.max(until).as_py(),
        "fallback": {each["values"]: each["counts"] for each in stands_in},
        "void": int((timed & (ints(judged.asked, "at") + job.valid_us <= job.plan.as_of)).sum()),
        "forgotten": dropped,
    }


def scored_rows(judged: Judged, job: Night, probability: NDArray[np.float64]) -> pa.Table:
    """The rows of the scores table, see above; `probability` [N, A]."""
    contract, asked = job.plan.contract, judged.asked
    action = drawn(probability, asked["row_id"], job.rules.seed)
    at, missing = ints(asked, "at"), is_null(asked, "at")
    actions = len(contract.actions)
    policy = str(champion_of(job).lineage["learner"]) if job.files else FROZEN
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
        "legal": pa.FixedSizeListArray.from_arrays(pa.array(judged.legal.ravel()), actions).cast(pa.list_(pa.bool_())),
        "rule": pa.array(judged.reason, pa.string()),
        "policy": pa.repeat(policy, len(at)),
        "policy_version": pa.array([job.version] * len(at), pa.string()),
    }
    for a, name in enumerate(contract.actions):
        for k, component in enumerate(contract.rewards):
            value = judged.values[:, a, k]
            columns[f"value_{name}_{component}"] = pa.array(value, pa.float64(), mask=np.isnan(value))
    schema = scores_schema(contract)
    return pa.table([columns[name] for name in schema.names], schema=schema)
