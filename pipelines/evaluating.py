"""The policies that a configuration names, and the other logs that some of them are read from."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from models.contract import HOLD
from models.errors import InputError
from pipelines.config import Config
from pipelines.etl.checks import check_columns
from pipelines.etl.schemas import DECISIONS, NUMBER, TEXT, TEXTS, Wanted
from pipelines.etl.sources import open_dataset
from pipelines.sections import Dataset
from policies.base import Booleans, Policy
from policies.baselines import Always, Never
from policies.named import NamedPolicy, Recorded, plain, recorded


def reads_logs(config: Config) -> bool:
    """Whether a named policy is known by the log it wrote, which takes a Spark session to read."""
    return any(named.kind == "logged" for named in config.evaluate.policies.values())


def check_logs(config: Config) -> None:
    """Raise InputError where such a log is not there or lacks a column, as far as that shows without Spark."""
    for name, named in config.evaluate.policies.items():
        if named.kind == "logged":
            columns = _wanted(config, named)
            check_columns(f"evaluate.policies.{name}", _dataset(config, named, columns), columns)


def named_policies(config: Config, spark: SparkSession | None = None) -> list[Policy]:
    """The policies of evaluate.policies in their order; by default never and always send, where `hold` is an action.

    Raises InputError as `recorded_policy` does.
    """
    if not config.evaluate.policies:
        return [Never(), Always()] if HOLD in config.actions else []
    found: list[Policy] = []
    for name, named in config.evaluate.policies.items():
        if named.kind == "logged":
            assert spark is not None, "a log is read through Spark"
            found.append(recorded_policy(spark, config, name, named))
        else:
            found.append(plain(name, named, config.actions))
    return found


def recorded_policy(spark: SparkSession, config: Config, name: str, named: NamedPolicy) -> Recorded:
    """The policy that wrote the log of `named`, by the cells of its context and legal actions.

    Raises InputError where the log cannot be read, lacks a column, or has a decision without an action, propensity or
    context that could be used.
    """
    key = f"evaluate.policies.{name}"
    numbers, texts = _by(config, named)
    wanted = _wanted(config, named)
    source = open_dataset(spark, DECISIONS, key, _dataset(config, named, wanted), wanted)
    p = F.col("propensity")
    stated = F.count(p).alias("stated"), F.mean(p).alias("mean"), F.min(p).alias("least"), F.max(p).alias("most")
    groups = (
        source.over(spark, lambda batches: batches, source.schema)
        .groupBy("action", "legal_actions", *numbers, *texts)
        .agg(F.count(F.lit(1)).alias("n"), *stated)
        .toArrow()
        .to_pydict()
    )
    if not groups["n"]:
        raise InputError(f"{key}.path: {named.path} has no decision; name a log that the policy wrote.")
    action, legal = _checked(key, config, groups, [*numbers, *texts])
    values = {column: groups[column] for column in numbers}
    for column in texts:
        for value in config.features.context_categories[column]:
            values[f"{column}={value}"] = [found == value for found in groups[column]]
    return recorded(
        name,
        np.array([config.contract.features.index(feature) for feature in values], dtype=np.int64),
        np.column_stack([*values.values(), legal]).astype(np.float32),
        action,
        np.array(groups["n"], dtype=np.int64),
        np.column_stack([groups["mean"], groups["least"], groups["most"]]).astype(np.float64),
        len(config.actions),
    )


def _by(config: Config, named: NamedPolicy) -> tuple[list[str], list[str]]:
    """The numbers and the texts among the context columns that the policy is known by."""
    context, categories = config.features.context, config.features.context_categories
    return [name for name in named.by if name in context], [name for name in named.by if name in categories]


def _wanted(config: Config, named: NamedPolicy) -> list[Wanted]:
    numbers, texts = _by(config, named)
    return [
        Wanted("action", TEXT),
        Wanted("propensity", NUMBER),
        Wanted("legal_actions", TEXTS, required=False),
        *(Wanted(column, NUMBER) for column in numbers),
        *(Wanted(column, TEXT) for column in texts),
    ]


def _dataset(config: Config, named: NamedPolicy, wanted: list[Wanted]) -> Dataset:
    """The log of `named`; what it does not say is as data.decisions says it."""
    usual = config.data.decisions
    names = {column.name for column in wanted}
    columns = {ours: theirs for ours, theirs in usual.columns.items() if ours in names}
    assert named.path is not None, "checked when the configuration was read"
    return Dataset(
        path=named.path,
        format=named.format or usual.format,
        separator=named.separator or usual.separator,
        where=named.where or usual.where,
        columns={**columns, **named.columns},
    )


def _checked(
    key: str, config: Config, groups: dict[str, list[Any]], by: list[str]
) -> tuple[NDArray[np.int64], Booleans]:
    """[G] actions and [G, A] legal ones of the groups, none of which could not be used."""
    codes = {name: number for number, name in enumerate(config.actions)}
    action = np.array([codes.get(label, -1) for label in groups["action"]], dtype=np.int64)
    lists = groups["legal_actions"]
    legal = np.array([[names is None or each in names for each in config.actions] for names in lists])
    rows = np.arange(len(action))
    low, high = (np.array(groups[end], dtype=np.float64) for end in ("least", "most"))
    number = np.array(groups["n"])
    missing = np.array([[value is None for value in groups[column]] for column in by], dtype=np.bool_)
    for wrong, what in (
        (action < 0, f"an action that is none of {', '.join(config.actions)}"),
        (~legal[rows, action], "an action that was not legal"),
        (np.array(groups["stated"]) < number, "no propensity"),
        (~((low > 0) & (high <= 1)), "a propensity outside (0, 1]"),
        (missing.any(axis=0) if by else np.zeros(len(rows), np.bool_), f"no value in {', '.join(by)}"),
    ):
        if wrong.any():
            first = int(wrong.argmax())
            raise InputError(
                f"{key}: among {int(number[wrong].sum())} of {int(number.sum())} decisions of the log are some with "
                f"{what}; the first such have action {groups['action'][first]!r} and propensities from {low[first]:g} "
                f"to {high[first]:g}. Correct the log or its columns, or leave them out by `where`."
            )
    return action, legal
