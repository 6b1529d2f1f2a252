"""Partials of etl/profile.py on the driver: kept per run, laid out with a row per day, and which days are whole.

Columns of `by_day`, one row per day in order (`x` the values of a name, n their count, N the rows of the day):

| column                     | from                 | is |
|----------------------------|----------------------|----|
| day                        |                      | YYYY-MM-DD, or `unknown` |
| rows, kept                 | rows, kept           | N; kept rows |
| exact_duplicates           | exact_duplicate      | rows |
| quarantined                | reason:*             | rows |
| share_quarantined          | reason:*             | quarantined / N |
| reason_share:REASON        | reason:REASON        | sum x / N |
| null_share:COLUMN          | null:COLUMN          | sum x / N |
| null_share:NAME            | state_*, propensity of transitions | 1 - n / usable rows |
| null_share:NAME            | attribute:*          | 1 - n / kept rows |
| bad_share:COLUMN           | bad:COLUMN           | mean of x; 0 where n = 0 |
| send_rate                  | sends                | mean of x |
| share:NAME                 | kind:NAME, flags of transitions | mean of x |
| NAME_least, NAME_largest   | propensity, elapsed_days | range of x |
| inverse_sum                | options, inverse_propensity | sum options / sum 1/p, see `propensity_sums` |
| mean:NAME, sd:NAME         | state_*, reward_*, attribute:*, elapsed_days | mean; sqrt(mean of x^2 - mean^2) |
"""

import json
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from models.contract import REWARD_PREFIX, STATE_PREFIX
from models.errors import InputError
from pipelines.etl.features import DAY, HOUR
from pipelines.etl.profile import PARTIAL, UNKNOWN, merge

DATASETS = ("decisions", "events", "users", "transitions")
FLAGS = ("usable", "silent", "warm_up", "truncated", "terminal", "no_action")
RANGES = ("propensity", "elapsed_days")
ATTRIBUTE = "attribute:"
_CLOCK = b"clock"


@dataclass(frozen=True)
class Clock:
    """How far the log reaches (us since 1970, UTC), and the spans (us) after which nothing changes any more."""

    log_start: int
    watermark: int
    warmup: int
    max_lateness: int
    max_gap: int

    def whole(self, dataset: str, metric: str, days: Collection[str]) -> NDArray[np.bool_]:
        """[D] whether a metric of a day is what it will always be, so that it may be held against other days.

        Raw datasets: the log began before the day did and the watermark lies after its end. Transitions: the warm-up
        was over, and the watermark lies after the end of the day; of its number of rows, by max_lateness more (until
        then late rows come); of rewards and how intervals end, by max_gap more again (until then intervals are open).
        An hour's difference is none: a watermark is the last row of a day, not midnight.
        """
        name = metric.partition(":")[2] or metric
        settled, begun = 0, 0
        if dataset == "transitions":
            begun = self.warmup
            if metric == "rows" or name == "silent":
                settled = self.max_lateness
            elif name.startswith(REWARD_PREFIX) or name in ("elapsed_days", "truncated", "terminal"):
                settled = self.max_lateness + self.max_gap
        start = np.array([_micros(day) for day in days], np.float64)
        after = start + HOUR >= self.log_start + begun
        before = start + DAY - HOUR + settled <= self.watermark
        return np.asarray(after & before)


def _micros(day: str) -> float:
    """The start of a day in us since 1970; NaN, which is neither before nor after anything, where it is unknown."""
    return float("nan") if day == UNKNOWN else (date.fromisoformat(day) - date(1970, 1, 1)).days * DAY


def store(partials: pa.Table, clock: Clock, folder: Path, replace: bool) -> None:
    """Write `folder`/profiles/DATASET.parquet for each dataset of the partials, each whole or not at all.

    Days of the partials take the place of the same days stored before; the other days stay unless `replace`.
    """
    there = pc.unique(partials["dataset"]).to_pylist()
    for name in DATASETS if replace else ():
        if name not in there:
            _path(folder, name).unlink(missing_ok=True)
    for name in there:
        fresh = partials.filter(pc.equal(partials["dataset"], name))
        path = _path(folder, name)
        if path.exists() and not replace:
            kept = pq.read_table(path)
            fresh = pa.concat_tables(
                [kept.filter(pc.invert(pc.is_in(kept["day"], value_set=pc.unique(fresh["day"])))), fresh]
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".part")
        pq.write_table(merge([fresh.cast(PARTIAL)]).replace_schema_metadata({_CLOCK: _text(clock)}), unfinished)
        unfinished.replace(path)


def load(folder: Path) -> tuple[pa.Table, Clock]:
    """The stored partials of all datasets, and the clock of the last run that wrote decisions.

    Raises InputError where there are none.
    """
    stored = {name: pq.read_table(_path(folder, name)) for name in DATASETS if _path(folder, name).exists()}
    for name in ("decisions", "transitions"):
        if name not in stored:
            raise InputError(f"{_path(folder, name)}: not there; run `tactful etl` first, which leaves it.")
    clock = Clock(**json.loads(stored["decisions"].schema.metadata[_CLOCK]))
    return pa.concat_tables([table.replace_schema_metadata(None) for table in stored.values()]), clock


def _path(folder: Path, dataset: str) -> Path:
    return folder / "profiles" / f"{dataset}.parquet"


def _text(clock: Clock) -> str:
    return json.dumps(asdict(clock))


def days_of(partials: pa.Table, dataset: str) -> list[str]:
    """The days of a dataset, in order; `unknown` comes last."""
    return sorted(pc.unique(partials.filter(pc.equal(partials["dataset"], dataset))["day"]).to_pylist())


def within(partials: pa.Table, days: Collection[str]) -> pa.Table:
    """The partials of some days."""
    return partials.filter(pc.is_in(partials["day"], value_set=pa.array(sorted(days), pa.string())))


def pooled(partials: pa.Table, dataset: str, label: str) -> Any:
    """All days of a dataset as one, [1 row] pandas.DataFrame with the columns of `by_day`; `day` is the label."""
    return by_day(_as_one(partials, dataset, label), dataset, [label])


def sums(partials: pa.Table, dataset: str, names: Sequence[str]) -> dict[str, dict[str, float]]:
    """name -> count, total, squares, least, largest over all days; count 0 where there is none."""
    whole = _as_one(partials, dataset, "").to_pylist()
    return {name: next((row for row in whole if row["name"] == name), {"count": 0}) for name in names}


def _as_one(partials: pa.Table, dataset: str, label: str) -> pa.Table:
    rows = partials.filter(pc.equal(partials["dataset"], dataset))
    day = pa.array([label] * rows.num_rows, pa.string())
    return merge([rows.set_column(PARTIAL.get_field_index("day"), "day", day)])


def by_day(partials: pa.Table, dataset: str, days: list[str]) -> Any:
    """The profile of a dataset, [days] pandas.DataFrame; a day without rows has rows 0. Columns: above."""
    raw = partials.filter(pc.equal(partials["dataset"], dataset)).to_pandas()
    wide = raw.pivot(index="day", columns="name", values=["count", "total", "squares", "least", "largest"])
    wide = wide.reindex(index=days)
    names = [] if raw.empty else sorted(raw["name"].unique())
    n = {name: wide["count"][name].fillna(0).to_numpy() for name in names}
    x = {name: wide["total"][name].fillna(0).to_numpy() for name in names}
    zero = np.zeros(len(days))
    rows = n.get("rows", zero)
    out: dict[str, Any] = {"day": days, "rows": rows}
    if dataset != "transitions":
        caught = sum((x[name] for name in names if name.startswith("reason:")), zero)
        out |= {"kept": x.get("kept", zero), "exact_duplicates": x.get("exact_duplicate", zero)}
        out |= {"quarantined": caught, "share_quarantined": _ratio(caught, rows)}
    owners = x.get("usable" if dataset == "transitions" else "kept", zero)
    for name in names:
        kind, _, what = name.partition(":")
        mean = _ratio(x[name], n[name], np.nan)
        if kind in ("reason", "null"):
            out[f"{kind}_share:{what}"] = _ratio(x[name], rows)
        elif kind == "bad":
            out[f"bad_share:{what}"] = np.nan_to_num(mean)
        elif kind == "kind":
            out[f"share:{what}"] = mean
        elif name == "sends":
            out["send_rate"] = mean
        elif name in FLAGS:
            out[f"share:{name}"] = mean
        elif name == "inverse_propensity":
            out["inverse_sum"] = _ratio(x["options"], x[name], np.nan)
        if name.startswith((STATE_PREFIX, ATTRIBUTE)) or (name == "propensity" and dataset == "transitions"):
            out[f"null_share:{name}"] = 1 - _ratio(n[name], owners, 1.0)
        if name.startswith((STATE_PREFIX, REWARD_PREFIX, ATTRIBUTE)) or name == "elapsed_days":
            square = _ratio(wide["squares"][name].to_numpy(), n[name], np.nan)
            out |= {f"mean:{name}": mean, f"sd:{name}": np.sqrt(np.maximum(square - mean**2, 0))}
        if name in RANGES:
            for end in ("least", "largest"):
                out[f"{name}_{end}"] = wide[end][name].to_numpy()
    return pd.DataFrame(out)


def _ratio(top: NDArray[Any], bottom: NDArray[Any], nothing: float = 0.0) -> NDArray[Any]:
    """top / bottom, and `nothing` where there is nothing to divide by."""
    return np.asarray(np.divide(top, bottom, out=np.full(len(top), nothing), where=bottom > 0))
