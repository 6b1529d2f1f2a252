"""From a simulated log to transitions in this process: the ETL's own kernels, without Spark, files or quality suites.

For studies that need hundreds of logs and keep none; what comes out is what the ETL and `models.table.read` give.
"""

import pyarrow as pa

from models.errors import InputError
from models.table import Transitions, from_rows
from pipelines.config import Config
from pipelines.etl.arrivals import arrivals_of
from pipelines.etl.files import is_plain
from pipelines.etl.history import mark
from pipelines.etl.plans import as_of, max_lateness
from pipelines.etl.schemas import NAMES, TIME, USERS, Wanted, raw_schema, wanted
from pipelines.etl.transitions import transitions
from pipelines.etl.window import open_window
from pipelines.reading import learned_rewards
from pipelines.sections import Dataset
from pipelines.simulate import check_features, tables
from policies.simulator import Log


def transitions_of(log: Log, config: Config) -> Transitions:
    """The transitions of a log: N usable rows, equal in every column to the ETL's over the lake of the same log.

    Raises InputError where a configured feature is not a column of the log, a dataset's columns are mapped, or a row is
    missing that the ETL needs.
    """
    check_features(config)
    lake = tables(log)
    raw = {}
    for code in range(USERS + 1):
        dataset: Dataset | None = getattr(config.data, NAMES[code])
        if dataset is not None:
            if dataset.columns or dataset.where is not None:
                raise InputError(f"data.{NAMES[code]}: a simulated log is read as it is; remove columns and where.")
            raw[code] = _raw(lake[NAMES[code]], NAMES[code], wanted(code, config))
    now = as_of(config)
    arrivals = arrivals_of(raw, now, max_lateness(config))
    plan = open_window(config, arrivals, None, None, None, now).plan
    found = from_rows(transitions(mark(raw, plan), plan), config.logged_contract, "the simulated log")
    rewards = learned_rewards(config)
    return found if rewards is None else rewards(found)


def _raw(dataset: pa.Table, name: str, columns: list[Wanted]) -> pa.Table:
    """A dataset of the lake as the kernels see it, see schemas.py; the folder's day is that of `logged`."""
    schema = raw_schema(columns)
    arrays = dict.fromkeys(schema.names, pa.nulls(dataset.num_rows))
    for column in columns:
        source = next((each for each in (column.name, column.default) if each in dataset.column_names), None)
        if source is not None and is_plain(dataset[source].type, column.kind):
            arrays[column.column] = dataset[source].cast(pa.int64()) if column.kind == TIME else dataset[source]
        elif source is not None or column.required:
            raise InputError(f"data.{name}: the simulated log has no column {column.name!r} of kind {column.kind}.")
    return pa.table([arrays[field.name].cast(field.type) for field in schema], schema=schema)
