"""Whole nights without Spark: the driver and its kernels in this process, with a champion that is a formula."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from deltalake import DeltaTable

from models import artifact
from pipelines.config import Config, validate
from pipelines.etl import flow
from pipelines.etl.flow import run_etl
from pipelines.etl.schemas import DECISIONS
from pipelines.scoring import night, tasks
from tests.pipelines.hostile import RAW, Row, a_log, tree, write_days
from tests.pipelines.inprocess import Frame, Session, unjudged
from tests.pipelines.scoring.candidates import Formula, asked

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def _night(candidates: Frame, _: Config) -> tuple[str, int]:
    """The earliest decide_at, as Spark's aggregate gives it."""
    first = int(pc.min(candidates.toArrow()["at"]).as_py())
    return f"{EPOCH + timedelta(microseconds=first):%Y-%m-%d}", first


@contextmanager
def played(champion: Any) -> Iterator[Session]:
    """A session over plain Parquet in which this champion decides."""
    with ExitStack() as stack:
        for where, name, what in (
            (flow, "DataFrame", Frame),
            (night, "_night", _night),
            (artifact, "load", lambda _: champion),
            (tasks, "_loaded", lambda *_: champion),
        ):
            stack.enter_context(patch.object(where, name, what))
        stack.enter_context(unjudged())
        yield Session()


def lake(folder: Path, seed: int = 11, users: int = 40) -> None:
    """A hostile log, a folder for each arrival day, and somewhere for the champion's files."""
    write_days(a_log(seed, users), folder)
    (folder / "policy").mkdir()
    (folder / "policy" / "policy.onnx").write_bytes(b"stands for a graph")


def write_candidates(folder: Path, rows: list[Row]) -> None:
    columns = {alias: name for alias, name in RAW[DECISIONS].items() if alias in asked([]).column_names}
    columns |= {"row_id": "candidate_id", "at": "decide_at"}
    table = asked(rows)
    times = table["at"].cast(pa.timestamp("us", "UTC"))
    named = {columns[alias]: times if alias == "at" else table[alias] for alias in columns}
    (folder / "candidates").mkdir(exist_ok=True)
    pq.write_table(pa.table(named), folder / "candidates" / "0.parquet")


def configured(folder: Path, run: str = "run", **changes: Any) -> Config:
    made = tree(folder, run)
    made["data"]["candidates"] = {"path": str(folder / "candidates")}
    for key, value in changes.items():
        made[key] = {**made[key], **value} if isinstance(made.get(key), dict) and key != "constraints" else value
    return validate(made, "night.toml")


def champion_for(config: Config, steps: float = 0.0, **decision: float) -> Formula:
    """A formula that learned from this configuration's states."""
    usual = {"rollout_share": 0.8, "exploration": 0.1, "lambda": 0.0}
    return Formula(
        decision={**usual, **decision}, lineage={"learner": "formula", "etl_hash": config.etl_hash()}, steps=steps
    )


def etl(config: Config) -> None:
    with played(None) as session:
        run_etl(session, config)


def score(config: Config, champion: Any = None, **given: Any) -> dict[str, Any]:
    """One night; returns its manifest."""
    folder = config.data.decisions.path.parent / "policy"
    champion = champion or champion_for(config)
    with played(champion) as session:
        return night.run_scoring(session, config, folder, "3", **given)


def rows_of(config: Config) -> dict[str, Row]:
    """The scored rows by candidate."""
    found = DeltaTable(config.run_dir / "scores").to_pyarrow_table().to_pylist()
    assert len({row["candidate_id"] for row in found}) == len(found)
    return {row["candidate_id"]: row for row in found}
