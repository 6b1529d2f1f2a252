"""A long computation as parts: each is done once, by some process, and left as a file that a later run finds."""

import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Work = Callable[..., dict[str, Any]]
SETTINGS = "settings.json"


@dataclass(frozen=True)
class Part:
    """One piece of work: a function of a module, its arguments, and the name of the file it leaves."""

    name: str
    work: Work
    arguments: tuple[Any, ...]


@dataclass(frozen=True)
class Parts:
    """Where parts are left, and how many processes make them."""

    folder: Path
    workers: int
    console: Console

    @classmethod
    def of(cls, root: Path, settings: dict[str, Any], workers: int, console: Console) -> "Parts":
        """The folder of `settings` in `root`, with what an earlier run of equal ones left; other settings, another."""
        text = json.dumps(settings, indent=1, sort_keys=True)
        folder = root / hashlib.sha256(text.encode()).hexdigest()[:12]
        if folder.exists():
            console.print(f"{folder}: goes on from what is there")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / SETTINGS).write_text(text)
        return cls(folder, workers, console)

    def __call__(self, label: str, parts: Sequence[Part]) -> list[dict[str, Any]]:
        """What the parts give, in their order; those that are there already are read."""
        places = [self.folder / f"{part.name}.json" for part in parts]
        missing = [number for number, place in enumerate(places) if not place.exists()]
        with self._progress(label, len(parts), len(missing)) as advance:
            for number, found in self._made([parts[each] for each in missing]):
                _write(places[missing[number]], found)
                advance()
        return [json.loads(place.read_text()) for place in places]

    def _made(self, parts: Sequence[Part]) -> Iterator[tuple[int, dict[str, Any]]]:
        if self.workers == 1 or len(parts) < 2:
            yield from ((number, part.work(*part.arguments)) for number, part in enumerate(parts))
            return
        # Spawned, not forked: a forked process would share the state of torch's threads.
        with ProcessPoolExecutor(self.workers, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
            waiting: dict[Future[dict[str, Any]], int] = {
                pool.submit(part.work, *part.arguments): number for number, part in enumerate(parts)
            }
            try:
                yield from ((waiting[done], done.result()) for done in as_completed(waiting))
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    @contextmanager
    def _progress(self, label: str, total: int, missing: int) -> Iterator[Callable[[], None]]:
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
        times = TimeElapsedColumn(), TimeRemainingColumn()
        # A single part has a bar of its own.
        with Progress(*columns, *times, console=self.console, disable=total == 1) as bar:
            task = bar.add_task(label, total=total, completed=total - missing)
            yield lambda: bar.advance(task)


def _write(place: Path, found: dict[str, Any]) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    partial = place.with_suffix(".partial")
    partial.write_text(json.dumps(found))
    # A killed run leaves a whole part or none.
    partial.replace(place)


def code(showing: Sequence[str]) -> str:
    """A hash of every module of the project that is loaded, but for those whose names end with one of `showing`."""
    digest = hashlib.sha256()
    for name in sorted(sys.modules):
        if name.split(".")[0] in {"models", "policies", "pipelines", "benchmarks"} and not name.endswith(
            tuple(showing)
        ):
            file = getattr(sys.modules[name], "__file__", None)
            digest.update(Path(file).read_bytes() if file else b"")
    return digest.hexdigest()[:16]


class Clock:
    """Seconds by stage, added up over the runs that went on from one another."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.seconds: dict[str, float] = json.loads(place.read_text()) if place.exists() else {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start
            self.place.write_text(json.dumps(self.seconds))


def plain(found: Any) -> Any:
    """As JSON holds it: a number that is not finite is null."""
    if isinstance(found, Mapping):
        return {str(key): plain(each) for key, each in found.items()}
    if isinstance(found, list | tuple):
        return [plain(each) for each in found]
    if isinstance(found, float | np.floating):
        return float(found) if np.isfinite(found) else None
    return int(found) if isinstance(found, np.integer) else found
