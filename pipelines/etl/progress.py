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


@contextmanager
def watched(spark: SparkSession, what: str, tasks: int) -> Iterator[None]:
    """Watch the stage of `tasks` tasks that the actions inside run; log its first task, its half and its end."""
    group, over = f"{what}-{id(object())}", threading.Event()
    spark.sparkContext.setJobGroup(group, what)
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        row = bar.add_task(what, total=tasks)

        def look() -> None:
            told = 0
            while not over.wait(PERIOD):
                done = _done(spark, group, tasks)
                bar.update(row, completed=done)
                for milestone in (1, max(tasks // 2, 1)):
                    if told < milestone <= done:
                        logger.info("%s: %d of %d buckets written", what, done, tasks)
                        told = milestone

        watcher = threading.Thread(target=look, daemon=True)
        watcher.start()
        try:
            yield
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
