"""The sums of an evaluation over one Spark partition of the transitions, and over what several left; no torch here."""

import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from models import artifact
from models.errors import InputError
from models.table import Extension, from_rows
from pipelines.etl.blocks import Batches
from pipelines.etl.hashing import bucket_of, xxhash64
from policies.answers import Read, read_back
from policies.base import Policy
from policies.baselines import Mixture
from policies.ope.merging import added, to_bytes
from policies.q_policy import QPolicy
from policies.tally import Asked, LogTally, Part, Plan, tally
from policies.values import ValueFunctions, part_of

LOG = "log"
"""The question that is about all rows."""
SUMS = pa.schema([("question", pa.string()), ("resample", pa.int32()), ("part", pa.int32()), ("payload", pa.binary())])
"""One tally: of which question, from which resample on, of which part (its first bucket), as npz."""


@dataclass(frozen=True)
class Packed:
    """A policy on its way to an executor: artifacts as their files, whatever else as it is."""

    policy: Any
    """A policy without its artifact; None for the artifact itself."""
    files: tuple[tuple[str, bytes], ...] = ()
    """Name and content of each file of the artifact."""
    called: str = ""
    share: float | None = None
    price: float | None = None
    mixed: float | None = None
    """Share of `policy` beside the artifact's clone of the logging policy."""

    @classmethod
    def of(cls, policy: Policy, folders: dict[str, Path]) -> "Packed":
        """`folders` by the fingerprint of the artifact in each."""
        if isinstance(policy, QPolicy):
            return cls(None, _files(policy, folders), policy.called, policy.share, policy.price)
        if isinstance(policy, Mixture) and isinstance(policy.logging, QPolicy):
            clone = policy.logging
            return cls(policy.policy, _files(clone, folders), clone.called, clone.share, None, policy.share)
        return cls(policy)

    def unpacked(self) -> Policy:
        if not self.files:
            found: Policy = self.policy
            return found
        with tempfile.TemporaryDirectory() as folder:
            for name, content in self.files:
                (Path(folder) / name).write_bytes(content)
            learned = QPolicy(artifact.load(folder), self.called, share=self.share, price=self.price)
        return learned if self.mixed is None else Mixture(self.policy, learned, self.mixed)


def _files(policy: QPolicy, folders: dict[str, Path]) -> tuple[tuple[str, bytes], ...]:
    loaded = policy.artifact
    assert isinstance(loaded, artifact.Artifact), "policies that are evaluated were loaded from a folder"
    return tuple((path.name, path.read_bytes()) for path in sorted(folders[loaded.fingerprint].iterdir()))


@dataclass(frozen=True)
class Job:
    """What the executors need to know; sent to the workers."""

    plan: Plan
    policies: Sequence[Packed]
    values: ValueFunctions
    buckets: int
    """How many buckets users are dealt to."""
    path: str
    """Of the transitions, for messages."""
    version: int
    extension: Extension | None = None
    """Learned rewards, computed of the rows of whole users."""

    @cached_property
    def unpacked(self) -> list[Policy]:
        return [each.unpacked() for each in self.policies]

    def part(self, rows: pa.Table) -> Part:
        """Usable rows of whole buckets -> what is tallied."""
        buckets = _buckets(rows, self)
        logged = self.plan.contract if self.extension is None else self.extension.logged
        table = from_rows(rows, logged, self.path, self.version)
        if self.extension is not None:
            table = self.extension(table)
        return part_of(table, self.plan, self.unpacked, self.values, buckets)


def question(asked: Asked) -> str:
    """The name of a question, where sums of several are told apart."""
    return json.dumps([asked.rows, asked.key])


def run_parts(job: Job) -> Any:
    """Rows of whole buckets -> their SUMS, for `mapInArrow`; every Spark partition is one part."""

    def run(batches: Batches) -> Batches:
        found = list(batches)
        rows = pa.Table.from_batches(found) if found else None
        if rows is None or not rows.num_rows:
            return
        part = job.part(rows)
        first = int(part.buckets[0])
        yield _row(LOG, 0, first, LogTally.of(part.table, part.buckets, job.plan.config.most_per_decision))
        for asked in job.plan.asked():
            for low, sums in tally(part, job.plan, asked):
                yield _row(question(asked), low, first, sums)

    return run


def merge_parts(batches: Batches) -> Batches:
    """SUMS in the order of question, resample and part -> what is read of them together, for `mapInArrow`.

    One row for each question and resample: the sums are large, the values that they give are small.
    """
    held: Any = None
    last: tuple[str, int] | None = None
    for place, sums in _read(batches):
        if place != last:
            if last is not None:
                yield _finished(*last, held)
            last, held = place, sums
        else:
            held = added(held, sums)
    if last is not None:
        yield _finished(*last, held)


def _finished(name: str, low: int, sums: Any) -> pa.RecordBatch:
    return _row(name, low, 0, sums if name == LOG else Read.of(sums))


def _read(batches: Batches) -> Iterator[tuple[tuple[str, int], Any]]:
    for batch in batches:
        columns = (batch.column(name) for name in ("question", "resample", "payload"))
        for name, low, payload in zip(*columns, strict=True):
            yield (name.as_py(), low.as_py()), read_back(payload.as_py())


def _row(name: str, low: int, part: int, sums: Any) -> pa.RecordBatch:
    return pa.record_batch([[name], [low], [part], [to_bytes(sums)]], schema=SUMS)


def _buckets(rows: pa.Table, job: Job) -> list[int]:
    """The buckets that are here. Raises InputError where a row is not in that of its user."""
    ids = rows["user_id"].combine_chunks().dictionary_encode()
    own = bucket_of(xxhash64(ids.dictionary), job.buckets)[ids.indices.to_numpy()]
    told = rows["bucket"].to_numpy()
    off = own != told
    if off.any():
        row = int(off.argmax())
        raise InputError(
            f"{job.path}: user {rows['user_id'][row]} lies in bucket {told[row]}, of {job.buckets} its own is "
            f"{own[row]}; run the ETL again with --rebuild."
        )
    return [int(each) for each in np.unique(told)]
