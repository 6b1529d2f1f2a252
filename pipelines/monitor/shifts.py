"""Drift against training: the values of tonight's rows at once, the features once the ETL has their states.

The reference are decisions of the training split in the version of the transitions table that the scoring model was
learned from: their states, and what the model's own networks say at them. So both halves compare one model with itself.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql.pandas.types import from_arrow_schema

from models.artifact import Artifact
from models.contract import SPLITS, STATE_PREFIX
from models.errors import InputError
from models.table import Shards
from pipelines.config import Config
from pipelines.etl.blocks import Batches
from pipelines.etl.sources import quoted
from pipelines.reading import LEARNED_VERSIONS
from policies.base import Integers
from policies.drift import Bins, Drift

CALENDAR = ("hour_sin", "hour_cos", "weekday_sin", "weekday_cos")
"""Features that say which day and hour it is: one night never has those of weeks. Shown, and not judged."""
MOVED = (
    *("sends_24h", "sends_7d", "hours_since_send", "send_never", "badge"),
    *("clicks_24h", "clicks_7d", "click_rate_28d", "notifications_on"),
)
"""Features that the policy's own sends move: a new policy shifts them by design, and nobody is woken."""
STATES, VALUES = "features", "values"
CHUNK = 65536
PARTS = pa.schema([("place", pa.int32()), ("bin", pa.int32()), ("rows", pa.int64())])


@dataclass(frozen=True)
class Reference:
    """What training saw: bins and counts of each feature and each value, and of how many users."""

    bins: dict[str, dict[str, Bins]]
    """STATES or VALUES -> name -> bins."""
    counts: dict[str, dict[str, Integers]]
    rows: int
    users: int


def value_columns(model: Artifact) -> list[str]:
    """Value columns of the scores table, by action and component."""
    return [f"value_{action}_{reward}" for action in model.contract.actions for reward in model.contract.rewards]


def reference_of(config: Config, model: Artifact) -> Reference:
    """Raises InputError where the version of the transitions that the model names cannot be read, or has no row of the
    training split that is not warm-up."""
    version, learned = model.lineage.get("data_version"), model.lineage.get(LEARNED_VERSIONS) or {}
    # States are compared, which no learned reward is asked about.
    logged = replace(model.contract, rewards=tuple(name for name in model.contract.rewards if name not in learned))
    shards = Shards.of(config.transitions_path, logged, None if version is None else int(version))
    table, _ = shards.together(shards.buckets, config.monitor.reference_rows)
    table = table.where((table.split == SPLITS.index("train")) & ~table.warm_up & ~table.silent)
    if not len(table.user):
        raise InputError(
            f"{config.transitions_path}: version {version} has no decision of the training split after its warm-up; "
            "drift has nothing to be measured against."
        )
    values = np.concatenate([model.predict(table.state[at : at + CHUNK])[2] for at in range(0, len(table.user), CHUNK)])
    columns = {
        STATES: dict(zip(model.contract.features, table.state.T, strict=True)),
        VALUES: dict(zip(value_columns(model), values.reshape(len(values), -1).T, strict=True)),
    }
    bins = {kind: {name: Bins.of(found) for name, found in each.items()} for kind, each in columns.items()}
    counts = {
        kind: {name: bins[kind][name].counts(found) for name, found in each.items()} for kind, each in columns.items()
    }
    return Reference(bins, counts, len(table.user), len(table.user_id))


def counted_here(bins: Mapping[str, Bins], chunks: Any) -> dict[str, Integers]:
    """Rows in each bin, from chunks [n, len(bins)] of columns; a row without any value was never judged and is left
    out."""
    found = {name: np.zeros(each.count, np.int64) for name, each in bins.items()}
    for chunk in chunks:
        judged = chunk[~np.isnan(chunk).all(axis=1)]
        for place, (name, each) in enumerate(bins.items()):
            found[name] += each.counts(judged[:, place])
    return found


def counted_there(rows: DataFrame, bins: Mapping[str, Bins]) -> dict[str, Integers]:
    """The same of the state columns of transitions, on Spark: only counts come back."""
    names, cut = list(bins), list(bins.values())

    def count(batches: Batches) -> Batches:
        found = [np.zeros(each.count, np.int64) for each in cut]
        for batch in batches:
            for place, each in enumerate(cut):
                found[place] += each.counts(batch.column(place).to_numpy(zero_copy_only=False))
        cells = [(place, b, int(n)) for place, each in enumerate(found) for b, n in enumerate(each)]
        columns = zip(*cells, strict=True)
        yield pa.record_batch([pa.array(c, f.type) for c, f in zip(columns, PARTS, strict=True)], schema=PARTS)

    # PySpark looks columns up by name once more, whatever characters that has.
    picked = rows.select(*(F.col(quoted(STATE_PREFIX + name)).alias(f"c{place}") for place, name in enumerate(names)))
    parts = picked.mapInArrow(count, from_arrow_schema(PARTS))
    counts = {name: np.zeros(each.count, np.int64) for name, each in bins.items()}
    for row in parts.groupBy("place", "bin").agg(F.sum("rows").alias("rows")).collect():
        counts[names[row["place"]]][row["bin"]] = row["rows"]
    return counts


def described(
    reference: Reference, kind: str, counts: Mapping[str, Integers], users: int, alphas: Sequence[float]
) -> dict[str, dict[str, Any]]:
    """Each column's psi, ks, and noise at the levels `alphas`, which the columns share; and the counts behind them.

    Of as many users as rows at the most: a night without repeated users is a sample of its rows.
    """
    found = {}
    judged = max(sum(name not in CALENDAR for name in counts), 1)
    for name, mine in counts.items():
        drift = Drift(reference.counts[kind][name], mine)
        clusters = (reference.users, min(users, int(mine.sum())))
        found[name] = {
            "psi": drift.psi,
            "ks": drift.ks,
            "noise": [drift.noise(alpha / judged, clusters) for alpha in alphas],
            "judged": name not in CALENDAR,
            "moved_by_sends": name in MOVED,
            "cuts": [float(cut) for cut in reference.bins[kind][name].cuts],
            "reference": drift.reference.tolist(),
            "rows": mine.tolist(),
        }
    return found


def rows_in(counts: Mapping[str, NDArray[np.int64]]) -> int:
    """Rows that were counted."""
    return int(next(iter(counts.values())).sum()) if counts else 0
