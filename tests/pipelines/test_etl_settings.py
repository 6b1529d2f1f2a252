"""A table of other settings is not mixed with: each key that differs is named, as it was and as it is."""

import re
from pathlib import Path
from typing import Any

import pytest

from models.errors import InputError
from pipelines.config import Config, validate
from pipelines.etl import store
from pipelines.etl.schemas import transitions_layout
from pipelines.etl.settings import changes, check_settings, keep_settings
from tests.pipelines.test_etl_store import staged_rows


def configured(folder: Path, **changed: Any) -> Config:
    tree: dict[str, Any] = {
        "name": "settings",
        "run_dir": str(folder),
        "rewards": ["sends"],
        "data": {"decisions": {"path": str(folder / "decisions.csv")}},
        "features": {"context": ["relevance"]},
    }
    return validate({**tree, **changed}, "test")


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"etl": {"lookback_days": 14}}, "etl.lookback_days was 28.0, is 14.0"),
        ({"constraints": {"max_sends_24h": 2}}, "constraints.max_sends_24h was not set, is 2"),
        (
            {"features": {"context": ["relevance", "wealth"]}},
            'features.context was ["relevance"], is ["relevance", "wealth"]',
        ),
        ({"rewards": ["sends", "column:steps"]}, 'rewards was ["sends"], is ["sends", "column:steps"]'),
        (
            {"etl": {"buckets": 2, "warmup_days": 0}},
            "etl.buckets was 8, is 2; etl.warmup_days was 7.0, is 0.0",
        ),
        (
            {"features": {"context": ["relevance"], "context_categories": {"kind": ["a"]}}},
            'features.context_categories.kind was not set, is ["a"]',
        ),
    ],
)
def test_each_key_that_differs_is_named(tmp_path: Path, changed: dict[str, Any], told: str) -> None:
    base, other = configured(tmp_path), configured(tmp_path, **changed)
    layout, table = transitions_layout(base.contract), base.transitions_path
    check_settings(other)
    keep_settings(base)
    facts = {store.ETL_HASH: base.etl_hash()}
    store.commit(table, [staged_rows(table, layout)], layout, facts, None)
    check_settings(base)
    check_settings(other, rebuild=True)
    with pytest.raises(InputError) as caught:
        check_settings(other)
    assert f"{table}: its rows were made with other settings: {told}. Run the ETL with --rebuild" in str(caught.value)


def test_of_many_keys_some_are_named(tmp_path: Path) -> None:
    base = configured(tmp_path)
    keep_settings(base)
    etl = {"buckets": 1, "lookback_days": 1, "max_gap_days": 1, "max_lateness_days": 1, "warmup_days": 1}
    other = configured(tmp_path, etl={**etl, "session_gap_minutes": 1, "click_window_hours": 1})
    assert changes(other, base.etl_hash()).endswith("etl.max_lateness_days was 7.0, is 1.0; and 2 more")


def test_of_settings_that_were_not_kept_the_hashes_are_told(tmp_path: Path) -> None:
    """As of a table that an earlier version made."""
    config = configured(tmp_path)
    assert changes(config, "old") == f"etl hash old, now {config.etl_hash()}; which keys differ was not kept"


def test_where_no_key_differs_the_hashes_are_told(tmp_path: Path) -> None:
    """As of settings that an earlier version knew and this one does not, or the other way, left to their default."""
    config = configured(tmp_path)
    keep_settings(config)
    path = tmp_path / "etl" / f"{config.etl_hash()}.json"
    path.rename(path.with_name("old.json"))
    assert changes(config, "old") == f"etl hash old, now {config.etl_hash()}"


ALICE = "alice@example.com"


def reading(folder: Path, where: str | None, **columns: str) -> Config:
    """A configuration whose decisions meet a condition and are mapped so."""
    found = {"path": str(folder / "decisions.csv"), "columns": columns}
    return configured(folder, data={"decisions": found if where is None else {**found, "where": where}})


@pytest.mark.parametrize(
    ("was", "told"),
    [
        ((f"user_id <> '{ALICE}'", {}), "data.decisions.where differs"),
        ((None, {"action": f"if(user_id = '{ALICE}', 'hold', thing)"}), "data.decisions.columns.action differs"),
        (
            (f"user_id <> '{ALICE}'", {"action": f"'{ALICE}'"}),
            "data.decisions.columns.action differs; data.decisions.where differs",
        ),
    ],
)
def test_who_is_named_in_a_condition_or_a_mapping_is_neither_kept_nor_told(
    tmp_path: Path, was: tuple[str | None, dict[str, str]], told: str
) -> None:
    theirs, ours = reading(tmp_path, was[0], **was[1]), configured(tmp_path)
    for config in (theirs, ours):
        keep_settings(config)
    kept = [path.read_text() for path in (tmp_path / "etl").iterdir()]
    assert [ALICE in each or "user_id" in each for each in kept] == [False, False]
    assert changes(ours, theirs.etl_hash()) == told
    assert changes(theirs, ours.etl_hash()) == told


def test_a_condition_that_is_the_same_is_not_told(tmp_path: Path) -> None:
    theirs = reading(tmp_path, "steps > 0", action="thing")
    keep_settings(theirs)
    for where, told in (("steps > 0", ""), ("steps > 1", "data.decisions.where differs; ")):
        other = reading(tmp_path, where, action="thing").model_copy(update={"rewards": ["clicks"]})
        assert changes(other, theirs.etl_hash()) == f'{told}rewards was ["sends"], is ["clicks"]'


def test_a_dataset_that_was_added_is_told_by_its_name(tmp_path: Path) -> None:
    base = configured(tmp_path)
    keep_settings(base)
    data = {name: {"path": str(tmp_path / f"{name}.csv")} for name in ("decisions", "events")}
    assert changes(configured(tmp_path, data=data), base.etl_hash()) == "data.events was not set, is set"


def test_what_is_kept_of_one_condition_says_nothing_of_another(tmp_path: Path) -> None:
    """Neither that two are equal, nor that they are those of another run."""
    for config in (reading(tmp_path, "a", action="a", user_id="a"), reading(tmp_path, "a", action="a")):
        keep_settings(config)
    digests = re.findall(r'"([0-9a-f]{64})"', "".join(path.read_text() for path in (tmp_path / "etl").iterdir()))
    assert len(set(digests)) == len(digests) == 5
