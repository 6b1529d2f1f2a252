"""Candidates of a night for the kernels: raw tables of a hostile log, a champion that is a formula, and who decided."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from models.contract import Contract
from pipelines.etl.history import Before
from pipelines.etl.marks import Plan
from pipelines.etl.schemas import CANDIDATES, DECISIONS
from pipelines.scoring.rounds import Judge, Judged, Price, Rules
from tests.pipelines.hostile import PLAN, SCHEMAS, Row, tables_of

COLUMNS = ("user_id", "row_id", "at", "legal", "context:relevance", "category:topic", "found")
SCHEMA = pa.schema([SCHEMAS[DECISIONS].field(name) for name in COLUMNS])
RULES = Rules(seed=7, fallback=0, judge_new=True)


@dataclass(frozen=True)
class Formula:
    """A champion whose q is arithmetic on the state, row by row: the same bits in any batch."""

    contract: Contract = PLAN.contract
    decision: Mapping[str, float] = field(
        default_factory=lambda: {"rollout_share": 0.8, "exploration": 0.1, "lambda": 0.0}
    )
    lineage: Mapping[str, Any] = field(default_factory=lambda: {"learner": "formula"})
    steps: float = 0.0
    """Where above 0 q is rounded to its multiples, so that gaps tie."""
    fingerprint: str = "formula"

    def predict(self, state: NDArray[np.float32]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        known = np.nan_to_num(state.astype(np.float64))
        column = {name: known[:, place] for place, name in enumerate(self.contract.features)}
        eager = 1.0 + column["relevance"] - 0.6 * column["sends_24h"] - 0.1 * column["badge"]
        q = np.column_stack([np.zeros(len(known)), eager - 0.2, eager - 0.3 * column["hour_sin"]])
        q = np.round(q / self.steps) * self.steps if self.steps else q
        logits = np.column_stack([np.zeros(len(known)), 0.1 * column["visits_7d"], column["hour_cos"]])
        values = np.stack([q * (place + 1) for place in range(len(self.contract.rewards))], axis=2)
        return q, logits, values


def candidate(user: str | None, name: str, at: int | None, **more: Any) -> Row:
    return {"user_id": user, "row_id": name, "at": at, "legal": None, "context:relevance": 0.5,
            "category:topic": "news", **more}  # fmt: skip


def asked(rows: list[Row]) -> pa.Table:
    return pa.Table.from_pylist(rows, SCHEMA)


def judged(
    log: list[Row] | Mapping[int, pa.Table],
    candidates: list[Row] | pa.Table,
    plan: Plan = PLAN,
    champion: Any = None,
    rules: Rules = RULES,
    before: Before | None = None,
    price: Price | None = None,
) -> Judged:
    """The candidates, judged by the kernel."""
    tables = tables_of(log) if isinstance(log, list) else log
    table = asked(candidates) if isinstance(candidates, list) else candidates
    return Judge({**tables, CANDIDATES: table}, plan, before, champion or Formula(), rules).judged(price or Price(0.0))
