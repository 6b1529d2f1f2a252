"""Whether the raw days of a run have arrived: what a scheduler waits for before it starts the ETL.

A dataset that lies in `ds=YYYY-MM-DD` folders has a day when the day's folder holds files, every one of them whole
(a Parquet file ends with its footer) and, where the lake has such a habit, a marker that says the folder is. One that
does not lie in such folders has all its days once it exists. Rows of `users` may be as old as they like, so that no day
of theirs is waited for; days in `etl.known_gaps` are not either.
"""

import os
from datetime import timedelta
from pathlib import Path

from models.errors import InputError
from pipelines.config import Config
from pipelines.etl.arrivals import EPOCH
from pipelines.etl.files import DAY_FOLDER, partitions, read_footer
from pipelines.etl.schemas import DECISIONS, EVENTS, NAMES, USERS, Days
from pipelines.etl.sources import format_of
from pipelines.etl.window import EVER
from pipelines.sections import Dataset


def waited_for(config: Config, days: Days, marker: str = "") -> list[str]:
    """What is not there yet of the arrival days `days` (first and last; from EVER, the last alone), as sentences.

    `marker` names a file in the folder of a day that is whole; "" where there is no such habit.
    """
    gaps = {(day - EPOCH).days for day in config.etl.known_gaps}
    first = days[1] if days[0] == EVER else days[0]
    wanted = [day for day in range(first, days[1] + 1) if day not in gaps]
    found = []
    for code in (DECISIONS, EVENTS, USERS):
        dataset: Dataset | None = getattr(config.data, NAMES[code])
        if dataset is None:
            continue
        if not dataset.path.exists():
            found.append(f"data.{NAMES[code]}: {dataset.path} is not there yet.")
        elif code != USERS:
            found += _lacking(f"data.{NAMES[code]}", dataset, wanted, marker)
    return found


def _lacking(key: str, dataset: Dataset, wanted: list[int], marker: str) -> list[str]:
    there = partitions(key, dataset.path)
    if set(there) <= {None}:
        return [] if there else [f"{key}: {dataset.path} holds no file yet."]
    found = []
    for day in wanted:
        text = str(EPOCH + timedelta(days=day))
        files = there.get(day, [])
        if not files:
            found.append(
                f"{key}: no file for {text} in {dataset.path} yet; list the day in etl.known_gaps if nothing happened "
                "then."
            )
        elif marker and not (_folder(files[0], dataset.path) / marker).exists():
            found.append(f"{key}: {_folder(files[0], dataset.path)} has no {marker} yet.")
        elif format_of(dataset) == "parquet":
            found += _broken(key, files)
    return found


def _folder(file: str, root: Path) -> Path:
    """The day's folder that a file lies in, at whatever depth."""
    place = os.path.relpath(file, root)
    match = DAY_FOLDER.search(place)
    assert match is not None
    return root / place[: match.end()]


def _broken(key: str, files: list[str]) -> list[str]:
    """What is wrong with the files of a day; one that is being written has no footer yet."""
    for name in files:
        try:
            read_footer(key, name)
        except InputError as error:
            return [str(error)]
    return []
