"""A scored night as one file, for a sender that does not read Delta tables.

The file has the columns of the scores table (`tasks.py`), `night` first. In CSV the lists `probabilities` and `legal`
are JSON, and times are as 2026-03-01 18:00:00.000000Z.
"""

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from models.errors import InputError, TransientError
from pipelines.config import Config
from pipelines.etl import store
from pipelines.monitor.nights import Nights
from pipelines.scoring import freeze
from pipelines.vacuum import MANIFESTS

ROWS = 1 << 16
"""Rows in memory at a time."""
WRITERS: dict[str, Callable[[Path, pa.Schema], Any]] = {".parquet": pq.ParquetWriter, ".csv": pacsv.CSVWriter}


@dataclass(frozen=True)
class HandedOver:
    """What stands in the file."""

    night: str
    file: Path
    by_action: dict[str, int]
    """Rows by action, the commonest first."""
    left_out: int
    """Rows of the night that are not valid any more, or never were for want of a time."""

    def in_words(self) -> str:
        """One line for a terminal."""
        actions = ", ".join(f"{count:,} {action}" for action, count in self.by_action.items())
        total = sum(self.by_action.values())
        return (
            f"night {self.night}: {total:,} rows ({actions}), {self.left_out:,} past valid_until left out: {self.file}"
        )


def hand_over(
    config: Config, file: Path, night: str | None = None, expired: bool = False, now: datetime | None = None
) -> HandedOver:
    """Write the rows of a night, by default the newest, that are valid `now` to a .parquet or .csv, whole or not.

    `expired` writes the others too. Raises InputError where the file's suffix is another, the night was not scored, its
    manifest is missing or not that of its rows, it was scored before somebody froze, or none of its rows is valid any
    more; TransientError where the table or the brake changed meanwhile.
    """
    if file.suffix not in WRITERS:
        raise InputError(f"--out {file}: a {file.suffix or 'file without suffix'}; name a .parquet or a .csv.")
    nights = Nights.of(config)
    night = night or list(nights.paths)[-1]
    if night not in nights.paths:
        known = ", ".join(list(nights.paths)[-7:])
        raise InputError(f"--night {night}: it was not scored (newest nights: {known}); name one that was.")
    _check(config, nights, night)
    after = None if expired else now or datetime.now(UTC)
    # A name of its own: of two commands that write it at once neither moves the other's.
    partial = file.with_name(f".{file.name}.{os.getpid()}.partial")
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        counts, left_out = _write(_rows(nights.paths[night], night), partial, WRITERS[file.suffix], after)
        if not counts:
            raise InputError(
                f"{night}: all {left_out:,} rows are past their valid_until, nothing must be sent by them; score a "
                "newer night, or name --expired to look at them."
            )
        if Nights.of(config).table.version() != nights.table.version():
            raise TransientError(f"{night}: another version of the scores was committed meanwhile; run it again.")
        _check(config, nights, night)
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)
    return HandedOver(night, file, dict(counts.most_common()), left_out)


def _check(config: Config, nights: Nights, night: str) -> None:
    """Raise InputError where the rows of the night are not what the newest run meant to be acted on."""
    path = config.run_dir / "scores" / MANIFESTS / f"{night}.json"
    again = "run `tactful score` again for this night"
    try:
        manifest = json.loads(path.read_text())
    except FileNotFoundError:
        raise InputError(f"{path}: not there, so the run that scored {night} did not end; {again}.") from None
    if manifest.get("scores_fingerprint") != store.fingerprint(nights.table, {"night": night}):
        raise InputError(
            f"{path}: it is not of the rows that stand in the table (a run died, or users were erased since); {again}."
        )
    stopped = freeze.frozen(config)
    if stopped is not None and manifest.get("frozen") is None:
        raise InputError(f"{freeze.in_words(stopped)}, and {night} was scored before; {again}, which holds everybody.")


def _rows(paths: list[Path], night: str) -> Iterator[pa.Table]:
    """The rows of a night, some at a time; the partition column is in the files' names only."""
    for path in paths:
        with pq.ParquetFile(path) as opened:
            for batch in opened.iter_batches(ROWS):
                rows = pa.table(batch)
                names = [name for name in rows.column_names if name != "night"]
                column = pa.array([night] * len(rows), pa.string())
                yield rows.select(names).add_column(0, "night", column)


def _write(
    rows: Iterator[pa.Table], partial: Path, writer: Callable[[Path, pa.Schema], Any], after: datetime | None
) -> tuple[Counter[str], int]:
    """(rows by action, rows left out) of what was written: those valid later than `after`, all where it is None."""
    counts: Counter[str] = Counter()
    left_out = 0
    with ExitStack() as stack:
        opened = None
        for part in rows:
            valid = part if after is None else part.filter(pc.greater(part["valid_until"], after))
            left_out += len(part) - len(valid)
            counts.update(valid["action"].to_pylist())
            shown = _flat(valid) if writer is pacsv.CSVWriter else valid
            if opened is None:
                opened = stack.enter_context(writer(partial, shown.schema))
            opened.write_table(shown)
    return counts, left_out


def _flat(rows: pa.Table) -> pa.Table:
    """Lists as JSON: CSV has none."""
    for place, field in enumerate(rows.schema):
        if pa.types.is_list(field.type):
            text = pa.array([json.dumps(each) for each in rows[field.name].to_pylist()], pa.string())
            rows = rows.set_column(place, field.name, text)
    return rows
