"""Transitions from a pinned version of the Delta table, sorted so that a row is followed by its next state."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError, TableNotFoundError
from numpy.typing import NDArray

from models import propensities
from models.columns import CLICKED, absorb, arrays_of, columns_of, fingerprint_of, ordered
from models.contract import Contract
from models.errors import InputError

SOURCE = ("version", "fingerprint", "estimates_version", "learned_versions")
"""What says where rows are from, rather than what they are."""


class Extension(Protocol):
    """Reward components that no table holds: they are computed of its rows once these are read."""

    @property
    def logged(self) -> Contract:
        """What the table holds."""

    @property
    def contract(self) -> Contract:
        """What there is afterwards."""

    def __call__(self, table: "Transitions") -> "Transitions":
        """The rows, of whole users, with the components."""


def span(first: int, last: int) -> list[str]:
    """Two times in us as ISO 8601, UTC, whole seconds: as texts they are in order too."""
    return [str(np.datetime64(int(end), "us").astype("datetime64[s]")) + "Z" for end in (first, last)]


@dataclass(frozen=True)
class Transitions:
    """N usable rows of U users, sorted by user, time and decision id: A actions, S features, K reward components."""

    contract: Contract
    user: NDArray[np.int64]
    """[N] dense code 0..U-1, non-decreasing."""
    user_id: NDArray[np.object_]
    """[U] id of each code."""
    decided_at: NDArray[np.int64]
    """[N] t_k, microseconds since the epoch, UTC."""
    state: NDArray[np.float32]
    """[N, S] raw units, NaN where unknown."""
    legal: NDArray[np.bool_]
    """[N, A]."""
    action: NDArray[np.int64]
    """[N] logged action; it may be illegal where only a configured constraint forbids it."""
    propensity: NDArray[np.float64]
    """[N] mu(a_k | s_k), NaN where unknown."""
    estimated: NDArray[np.bool_]
    """[N] whether the propensity was estimated rather than logged or certain."""
    reward: NDArray[np.float64]
    """[N, K] raw units."""
    elapsed_days: NDArray[np.float64]
    """[N] Delta_k."""
    terminal: NDArray[np.bool_]
    """[N] the account closed: bootstraps nothing."""
    truncated: NDArray[np.bool_]
    """[N] the watermark or an unusable row ended the interval: no TD target."""
    silent: NDArray[np.bool_]
    """[N] a row the ETL added where no decision was logged."""
    warm_up: NDArray[np.bool_]
    """[N] too near the log's start for its state to be whole: trains nothing."""
    split: NDArray[np.int8]
    """[N] index into SPLITS."""
    version: int
    """Delta version the rows were read from."""
    fingerprint: str
    """Hash of what was read: the version's usable rows, and the estimates where they were joined."""
    estimates_version: int | None = None
    """Version of the table of estimated propensities that were joined, None where none were."""
    clicked: NDArray[np.float64] | None = None
    """[N] whether this notification was clicked within its window, NaN where nothing was sent or the window is open;
    None where the table does not say. For click models alone: no reward, and no part of the fingerprint."""
    learned_versions: dict[str, int] | None = None
    """Version of each learned reward among the components; None where there is none."""

    @property
    def next_row(self) -> NDArray[np.int64]:
        """[N] place of the row after each, i + 1, or -1 where it is terminal, truncated or its user's last here.

        Meaningful only where every user's rows are all present.
        """
        place = np.arange(len(self.user), dtype=np.int64)
        goes_on = ~(self.terminal | self.truncated)
        goes_on[-1:] = False
        goes_on[:-1] &= self.user[1:] == self.user[:-1]
        return np.where(goes_on, place + 1, -1)

    def where(self, rows: NDArray[np.bool_]) -> "Transitions":
        """The rows marked in `rows` [N], user codes made dense again; version and fingerprint stay the source's."""
        kept, user = np.unique(self.user[rows], return_inverse=True)
        changed: dict[str, Any] = {
            field.name: getattr(self, field.name)[rows]
            for field in fields(self)
            if field.name not in {"contract", "user", "user_id", *SOURCE} and getattr(self, field.name) is not None
        }
        return replace(self, user=user.astype(np.int64), user_id=self.user_id[kept], **changed)


def read(
    path: Path | str,
    contract: Contract,
    version: int | None = None,
    estimates: Path | str | None = None,
    estimates_version: int | None = None,
) -> Transitions:
    """The usable rows of one version of the Delta table at `path` (the newest by default), one bucket at a time.

    A terminal row takes in the silent rows that follow it without a gap, up to the user's next row of another kind:
    nobody is there to act, yet their time and rewards count. Where propensities are unknown they come from a version of
    the table at `estimates` (the newest by default); logged and certain ones stay as they are.

    Raises InputError naming the table and column where the table, the version or a column is missing, where a usable
    row holds an unknown action or split, a legal list of another length, no legal action or a null reward, where a
    user's last row says neither terminal nor truncated, where no row is usable, and where the estimates were made for
    other transitions or lack rows.
    """
    found, keys = read_with_keys(path, contract, version)
    if estimates is None or not keys.num_rows:
        return found
    return _with_estimates(found, keys, path, estimates, estimates_version)


def read_with_keys(path: Path | str, contract: Contract, version: int | None = None) -> tuple[Transitions, pa.Table]:
    """The rows as by `read` without estimates; (user_id, decision_id) of those whose propensity is unknown, in order.

    Raises InputError as `read` does.
    """
    shards = Shards.of(path, contract, version)
    return shards.together(shards.buckets)


def from_rows(rows: pa.Table, contract: Contract, source: str, version: int = 0) -> Transitions:
    """What `read` gives of a table whose `version` holds `rows`, columns as in models/contract.py, without one.

    Raises InputError as `read` does, naming the `source`.
    """
    return beside_rows(rows, contract, source, version)[0]


def beside_rows(
    rows: pa.Table, contract: Contract, source: str, version: int = 0
) -> tuple[Transitions, pa.Table, NDArray[np.bool_]]:
    """`from_rows`, the M usable `rows` in order, and [M] which of them its N are: silent tails were taken in.

    Raises InputError as `from_rows`.
    """
    usable = rows.filter(rows["usable"])
    if not usable.num_rows:
        raise InputError(f"{source}: no usable row; look at what the log says of its decisions.")
    placed = ordered(usable, "bucket")
    absorbed, kept = absorb(arrays_of(placed, contract, source))
    columns: dict[str, Any] = absorbed
    fingerprint = fingerprint_of(contract, columns)
    return Transitions(contract=contract, version=version, fingerprint=fingerprint, **columns), placed, kept


@dataclass(frozen=True)
class Shards:
    """One version of the table, to be read a bucket at a time; a user is in one bucket only."""

    version: int
    dataset: pads.Dataset
    """Of that version, opened once."""
    path: str
    logged: Contract
    """What the table holds."""
    buckets: tuple[int, ...]
    extension: Extension | None = None
    """Components that are computed of every bucket read."""

    @property
    def contract(self) -> Contract:
        """Of the rows as they are read."""
        return self.logged if self.extension is None else self.extension.contract

    @classmethod
    def of(
        cls, path: Path | str, contract: Contract, version: int | None = None, extension: Extension | None = None
    ) -> "Shards":
        """Those of a table that holds `contract`.

        Raises InputError naming the table and column where the table, the version or a column is missing.
        """
        delta = _open(path, version)
        dataset = delta.to_pyarrow_dataset()
        missing = [name for name in (*columns_of(contract), "bucket") if name not in dataset.schema.names]
        if missing:
            raise InputError(
                f"{path}: the transitions table has no column {', '.join(missing)}; run the ETL again with --rebuild."
            )
        buckets = {int(partition["bucket"]) for partition in delta.partitions()}
        return cls(int(delta.version()), dataset, str(path), contract, tuple(sorted(buckets)), extension)

    def read(self, bucket: int) -> Transitions:
        """The usable rows of one bucket, as `read` gives all; none where it has none."""
        found, _ = self._joined([self._part(bucket)])
        return found

    def together(self, buckets: Sequence[int], most: int | None = None) -> tuple[Transitions, pa.Table]:
        """The rows of several buckets as one table, and the keys of those whose propensity is unknown.

        With `most`, no further bucket once so many rows are there.

        Raises InputError where no row is usable.
        """
        parts, rows = [], 0
        for bucket in buckets:
            part, keys = self._part(bucket)
            if len(part["user"]):
                parts.append((part, keys))
                rows += len(part["user"])
            if most is not None and rows >= most:
                break
        if not parts:
            raise InputError(
                f"{self.path}: version {self.version} has no usable row; look at the ETL's quarantine counts."
            )
        return self._joined(parts)

    def _part(self, bucket: int) -> tuple[dict[str, NDArray[Any]], pa.Table]:
        """Arrays of one bucket, and the keys of its rows whose propensity is unknown."""
        wanted = (pc.field("bucket") == bucket) & pc.field("usable")
        try:
            # All but the labels of click models are known to be there.
            there = set(self.dataset.schema.names)
            columns = [name for name in (*columns_of(self.logged), CLICKED) if name in there]
            rows = ordered(self.dataset.to_table(columns=columns, filter=wanted))
        except (pa.ArrowException, OSError) as error:
            why = str(error).splitlines()[0]
            raise InputError(
                f"{self.path}: bucket {bucket} of version {self.version} cannot be read ({why}); "
                "restore its files, or make the table anew (`tactful etl CONFIG --rebuild`)."
            ) from None
        part, kept = absorb(arrays_of(rows, self.logged, self.path))
        keys = rows.select(list(propensities.KEYS)).filter(pa.array(kept))
        return part, keys.filter(pa.array(np.isnan(part["propensity"])))

    def _joined(self, parts: Sequence[tuple[dict[str, NDArray[Any]], pa.Table]]) -> tuple[Transitions, pa.Table]:
        columns = [part for part, _ in parts]
        starts = np.cumsum([0, *(len(part["user_id"]) for part in columns)])
        for part, start in zip(columns, starts, strict=False):
            part["user"] = part["user"] + start
        joined: dict[str, Any] = {name: np.concatenate([part[name] for part in columns]) for name in columns[0]}
        fingerprint = fingerprint_of(self.logged, joined)
        found = Transitions(contract=self.logged, version=self.version, fingerprint=fingerprint, **joined)
        return self.extension(found) if self.extension else found, pa.concat_tables([keys for _, keys in parts])


def newest(path: Path | str) -> int:
    """The newest version of the table at `path`. Raises InputError where there is no table."""
    return int(_open(path, None).version())


def count_unknown(path: Path | str) -> int:
    """How many usable rows of the newest version have a null propensity.

    Raises InputError where there is no table.
    """
    dataset = _open(path, None).to_pyarrow_dataset()
    return int(dataset.count_rows(filter=pc.field("usable") & pc.field("propensity").is_null()))


def _with_estimates(
    found: Transitions, keys: pa.Table, path: Path | str, estimates: Path | str, version: int | None
) -> Transitions:
    """`found` with the estimates of the decisions in `keys`, which are its unknown rows in order."""
    rows, facts, made = propensities.read(estimates, version)
    if facts[propensities.MADE_FOR] != found.fingerprint:
        raise InputError(
            f"{estimates}: version {made} was estimated for version {facts[propensities.MADE_FROM]} of the "
            f"transitions (fingerprint {facts[propensities.MADE_FOR]}), not for version {found.version} of "
            f"{path} (fingerprint {found.fingerprint}); run `tactful propensity CONFIG` again."
        )
    placed = keys.append_column("place", pa.array(np.arange(keys.num_rows)))
    joined = placed.join(rows, keys=list(propensities.KEYS)).sort_by("place")
    lacking = joined.filter(pc.is_null(joined["propensity"]))
    if lacking.num_rows or joined.num_rows != keys.num_rows:
        first = f", first {lacking['decision_id'][0]}" if lacking.num_rows else ""
        raise InputError(
            f"{estimates}: version {made} holds {joined.num_rows - lacking.num_rows} estimates for {keys.num_rows} "
            f"decisions without a propensity{first}; run `tactful propensity CONFIG` again."
        )
    unknown = np.isnan(found.propensity)
    propensity = found.propensity.copy()
    propensity[unknown] = joined["propensity"].to_numpy()
    estimated = found.estimated | unknown
    digest = hashlib.sha256(found.fingerprint.encode() + propensity.tobytes() + estimated.tobytes())
    return replace(
        found,
        propensity=propensity,
        estimated=estimated,
        fingerprint=digest.hexdigest()[:16],
        estimates_version=made,
    )


def _open(path: Path | str, version: int | None) -> DeltaTable:
    try:
        return DeltaTable(str(path), version=version)
    except TableNotFoundError:
        raise InputError(f"{path}: no transitions table; run the ETL first (`tactful etl CONFIG`).") from None
    except DeltaError as error:
        raise InputError(f"{path}: version {version} cannot be read ({error}); name one that exists.") from None
