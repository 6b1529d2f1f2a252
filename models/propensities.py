"""The versioned table of estimated propensities, for decisions whose log has none.

| column      | type         | meaning |
|-------------|--------------|---------|
| user_id     | string       | |
| decision_id | string       | unique together with user_id |
| decided_at  | timestamp us | t_k, UTC |
| propensity  | double       | estimate of mu(a_k | s_k), in (0, 1] |
| fold        | int8         | fold of a training user, whose model never saw it; -1 for users of other splits |

A version is one commit; its facts say which transitions it was made for (`transitions_version`,
`transitions_fingerprint`) and how.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
from deltalake import CommitProperties, DeltaTable, write_deltalake
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError
from numpy.typing import NDArray

from models.errors import InputError, TransientError

SCHEMA = pa.schema(
    [
        ("user_id", pa.string()),
        ("decision_id", pa.string()),
        ("decided_at", pa.timestamp("us", "UTC")),
        ("propensity", pa.float64()),
        ("fold", pa.int8()),
    ]
)
KEYS = ("user_id", "decision_id")
MADE_FOR, MADE_FROM = "transitions_fingerprint", "transitions_version"


def exists(path: Path | str) -> bool:
    """Whether a table of estimates lies at `path`."""
    return bool(DeltaTable.is_deltatable(str(path)))


def newest(path: Path | str) -> int | None:
    """The newest version of the table at `path`, None where there is none yet."""
    return int(DeltaTable(str(path)).version()) if exists(path) else None


def write(
    path: Path | str,
    keys: pa.Table,
    columns: Mapping[str, NDArray[Any]],
    facts: Mapping[str, str],
    base: int | None,
) -> int:
    """Make n estimates the newest version: `keys` (KEYS [n]) beside decided_at (us), propensity and fold [n].

    `facts` (with MADE_FOR and MADE_FROM) go into its commit; `base` is what `newest` was before anything was read, so
    that who began before another's commit (users forgotten, say) does not undo it. Returns the version.
    Raises TransientError where another writer committed meanwhile.
    """
    if (found := newest(path)) != base:
        raise TransientError(f"{path}: another writer committed first (version {found}, was {base}); run it again.")
    properties = CommitProperties(custom_metadata=dict(facts), max_commit_retries=0)
    arrays = [keys[name].combine_chunks() for name in KEYS]
    arrays += [pa.array(columns[field.name]).cast(field.type) for field in list(SCHEMA)[len(KEYS) :]]
    try:
        write_deltalake(
            str(path),
            pa.Table.from_arrays(arrays, schema=SCHEMA),
            mode="overwrite",
            commit_properties=properties,
            # Statistics would keep the smallest and largest user id in the log for good, whoever is forgotten.
            configuration={"delta.dataSkippingNumIndexedCols": "0"},
        )
    except CommitFailedError as error:
        raise TransientError(f"{path}: another writer committed first ({error}); run it again.") from None
    return int(DeltaTable(str(path)).version())


def read(path: Path | str, version: int | None = None) -> tuple[pa.Table, dict[str, str], int]:
    """(user_id, decision_id and propensity of one version, the newest by default; its facts; its number).

    Raises InputError as `facts_of` does.
    """
    facts, found = facts_of(path, version)
    rows = DeltaTable(str(path), version=found).to_pyarrow_dataset().to_table(columns=[*KEYS, "propensity"])
    return rows, facts, found


def facts_of(path: Path | str, version: int | None = None) -> tuple[dict[str, str], int]:
    """(the facts of one version, the newest by default; its number).

    Facts are those of the newest commit that has any: deleting a user's rows adds none.

    Raises InputError where the table, the version or its facts are missing.
    """
    try:
        delta = DeltaTable(str(path), version=version)
    except TableNotFoundError:
        raise InputError(f"{path}: no estimated propensities; run `tactful propensity CONFIG` first.") from None
    except DeltaError as error:
        raise InputError(
            f"{path}: version {version} cannot be read ({error}); run `tactful propensity CONFIG`, then train again."
        ) from None
    found = delta.version()
    # The history of a pinned version holds later commits too and numbers them as if it were the newest.
    commits = sorted(DeltaTable(str(path)).history(), key=lambda entry: -entry["version"])
    facts = next((entry for entry in commits if entry["version"] <= found and MADE_FOR in entry), None)
    if facts is None:
        raise InputError(f"{path}: not written by `tactful propensity`; move it away and run that command.")
    return {name: str(value) for name, value in facts.items()}, int(found)
