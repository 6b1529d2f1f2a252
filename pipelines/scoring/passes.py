"""The Spark jobs of one night, and what the driver makes of what they send back."""

import json
import logging
import math
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.pandas.types import from_arrow_schema

from models import artifact
from models.contract import HOLD
from models.errors import TactfulError
from pipelines.config import Config
from pipelines.etl import store
from pipelines.etl.arrivals import Arrivals, Arrived, check_arrivals
from pipelines.etl.buckets import RESULT
from pipelines.etl.flow import shuffled
from pipelines.etl.plans import text_of
from pipelines.etl.progress import watched
from pipelines.etl.schemas import NAMES
from pipelines.etl.sources import Source
from pipelines.etl.staging import Staged
from pipelines.scoring.lookback import Lookback
from pipelines.scoring.quota import EVERYWHERE, Quota, meet
from pipelines.scoring.rounds import Price
from pipelines.scoring.tasks import (
    COUNTS,
    EXPECTED,
    JUDGED,
    READ,
    SCORES,
    VOLUME,
    Night,
    finish_nights,
    hold_nights,
    judge_nights,
    score_nights,
    weigh_nights,
)
from policies.budget import Volume, unpacked

logger = logging.getLogger("tactful.score")
WROTE = ("%s: first task wrote (%d of %d)", "%s: half of the tasks wrote (%d of %d)")


@dataclass
class Passes:
    """The Spark jobs of one night."""

    spark: SparkSession
    config: Config
    sources: list[Source]
    look: Lookback
    job: Night
    newest: dict[str, str | None] | None = None
    """By dataset, when the newest good row of the log that was read became known."""
    rows: int = 0
    several: bool = False
    """Whether some user has several candidates."""
    desks: tuple[int, ...] = ()
    """Buckets of which something was laid aside."""

    def hold(self) -> tuple[list[Staged], dict[str, Any]]:
        return scores_of(self._over_blocks(hold_nights(self.job), "scores"))

    def score(self) -> tuple[list[Staged], dict[str, Any]]:
        """Judge, draw and write in one pass."""
        found = self._over_blocks(score_nights(self.job), "scores")
        self._check_log(found)
        return scores_of(found)

    def quota(self, champion: artifact.Artifact, amount: float, is_share: bool) -> Quota:
        """Judge and lay aside, then the price that meets a number of sends, or a share of the candidates."""
        found = self._over_blocks(judge_nights(self.job), "candidates")
        self._check_log(found)
        desks = [json.loads(each) for each in found.get(JUDGED, [])]
        self.desks = tuple(sorted(bucket for bucket, *_ in desks))
        self.rows, self.several = sum(rows for _, rows, _ in desks), any(several for *_, several in desks)
        volume = sum_of(found[VOLUME])
        if self.several:
            volume = self._weigh(self.job.default, EVERYWHERE)[1]
        target = amount * self.rows if is_share else amount
        nearest = self.config.score.over_budget == "nearest"
        return meet(target, champion.decision, volume, self._weigh, self.several, nearest)

    def finish(self, price: Price) -> tuple[list[Staged], dict[str, Any]]:
        """Draw and write what was laid aside, at that price."""
        return scores_of(self._over_desks(finish_nights(self.job, price), "scores"))

    def tidy(self) -> None:
        """Remove what was laid aside."""
        store.discard(self.job.root, str(self.job.desk.relative_to(self.job.root)))

    def _weigh(self, price: Price, window: tuple[float, float]) -> tuple[float, Volume]:
        found = self._over_desks(weigh_nights(self.job, price, window), f"lambda {price.lambda_:g}", told=False)
        return math.fsum(map(json.loads, found[EXPECTED])), sum_of(found[VOLUME])

    def _over_blocks(self, kernel: Any, what: str) -> dict[str, list[bytes]]:
        buckets = self.config.etl.buckets
        return self._collect(shuffled(self.spark, self.sources, buckets, self.look.days), kernel, what, buckets)

    def _over_desks(self, kernel: Any, what: str, told: bool = True) -> dict[str, list[bytes]]:
        numbers, tasks = self.desks, len(self.desks)

        def run(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
            ids = (pa.array([numbers[place] for place in batch.column("id").to_pylist()]) for batch in batches)
            yield from kernel(pa.record_batch([each], ["id"]) for each in ids)

        return self._collect(self.spark.range(0, tasks, 1, tasks), run, what, tasks, told)

    def _collect(
        self, frame: DataFrame, kernel: Any, what: str, tasks: int, told: bool = True
    ) -> dict[str, list[bytes]]:
        results = frame.mapInArrow(kernel, from_arrow_schema(RESULT))
        with watched(self.spark, what, tasks, logger, WROTE) if told else nullcontext():
            rows = results.toArrow()
        return by_kind(rows)

    def _check_log(self, found: dict[str, list[bytes]]) -> None:
        """Raise InputError where a dataset of the log has no rows, or none that is in order."""
        read: Arrivals = {}
        for code, rows, good, newest in (json.loads(each) for each in found.get(READ, [])):
            read.setdefault(code, []).append(Arrived(None, rows, good, newest, None, 0))
        check_arrivals(read)
        newest_of = {code: [day.logged for day in days if day.logged is not None] for code, days in read.items()}
        self.newest = {NAMES[code]: text_of(max(found)) if found else None for code, found in newest_of.items()}


def by_kind(results: pa.Table) -> dict[str, list[bytes]]:
    """The payloads of RESULT rows, by kind."""
    found: dict[str, list[bytes]] = {}
    for kind, payload in zip(results["kind"].to_pylist(), results["payload"].to_pylist(), strict=True):
        found.setdefault(kind, []).append(payload)
    return found


def staged_in(found: dict[str, list[bytes]]) -> list[Staged]:
    """The files that tasks wrote."""
    return [Staged(**json.loads(each)) for each in found.get(SCORES, [])]


def scores_of(found: dict[str, list[bytes]]) -> tuple[list[Staged], dict[str, Any]]:
    """The files that tasks wrote, and what stands in them. Raises TactfulError where rows are missing."""
    staged = staged_in(found)
    counts = _counts([json.loads(each) for each in found.get(COUNTS, [])])
    held = sum(each.rows for each in staged)
    if held != counts["candidates"]:
        raise TactfulError(f"scores: {held} rows in its files, {counts['candidates']} were decided.")
    return staged, counts


def sum_of(volumes: list[bytes]) -> Volume:
    """Packed volumes of different rows, added up."""
    first, *others = map(unpacked, volumes)
    return sum(others, first)


def _counts(buckets: list[dict[str, Any]]) -> dict[str, Any]:
    """Candidates in all, by action, by the rule that decided and by why the model did not, from what the buckets
    counted; users, who lie whole in a bucket; expected and drawn sends."""
    by_action: dict[str, int] = {}
    by_rule: dict[str, int] = {}
    fallback: dict[str, int] = {}
    for action, rule, rows in sorted((each for bucket in buckets for each in bucket["groups"]), key=str):
        by_action[action] = by_action.get(action, 0) + rows
        by_rule[rule or "policy"] = by_rule.get(rule or "policy", 0) + rows
    for reason, rows in sorted(each for bucket in buckets for each in bucket["fallback"].items()):
        fallback[reason] = fallback.get(reason, 0) + rows
    until = max((bucket["valid_until"] for bucket in buckets if bucket["valid_until"] is not None), default=None)
    candidates = sum(by_action.values())
    return {
        "candidates": candidates,
        "users": sum(bucket["users"] for bucket in buckets),
        "by_action": by_action,
        "by_rule": by_rule,
        "fallback": fallback,
        "expected_sends": math.fsum(bucket["expected_sends"] for bucket in buckets),
        "sends": candidates - by_action.get(HOLD, 0),
        "void": sum(bucket["void"] for bucket in buckets),
        "forgotten": sum(bucket["forgotten"] for bucket in buckets),
        "valid_until": None if until is None else text_of(until).removesuffix("+00:00"),
    }
