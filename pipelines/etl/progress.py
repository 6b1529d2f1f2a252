"""How far a Spark action is: a bar where somebody watches a terminal, and lines in the log at the milestones."""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from pyspark.sql import SparkSession
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

logger = logging.getLogger("tactful.etl")
PERIOD = 0.1
"""Seconds between two looks."""


WRITTEN = "%s: %d of %d buckets written"


@contextmanager
def watched(
    spark: SparkSession,
    what: str,
    tasks: int,
    log: logging.Logger = logger,
    lines: tuple[str, str] = (WRITTEN, WRITTEN),
) -> Iterator[None]:
    """Watch the stage of `tasks` tasks that the actions inside run; log its first task and its half, in these words."""
    group, over = f"{what}-{id(object())}", threading.Event()
    spark.sparkContext.setJobGroup(group, what)
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        row = bar.add_task(what, total=tasks)
        left = list(zip((1, max(tasks // 2, 1)), lines, strict=True))

        def tell(done: int) -> None:
            bar.update(row, completed=done)
            while left and left[0][0] <= done:
                log.info(left.pop(0)[1], what, done, tasks)

        def look() -> None:
            while not over.wait(PERIOD):
                tell(_done(spark, group, tasks))

        watcher = threading.Thread(target=look, daemon=True)
        watcher.start()
        try:
            yield
            over.set()
            watcher.join()
            # What was over before anybody looked is told all the same.
            tell(tasks)
        finally:
            over.set()
            watcher.join()
            spark.sparkContext.setLocalProperty("spark.jobGroup.id", None)


def _done(spark: SparkSession, group: str, tasks: int) -> int:
    """Completed tasks of the group's last stage, once it has begun: its tasks are the buckets."""
    tracker = spark.sparkContext.statusTracker()
    jobs = [info for job in tracker.getJobIdsForGroup(group) if (info := tracker.getJobInfo(job))]
    last = max((stage for info in jobs for stage in info.stageIds), default=None)
    found = tracker.getStageInfo(last) if last is not None else None
    return found.numCompletedTasks if found and found.numTasks == tasks else 0
