"""A table of other settings is not mixed with: each key that differs is named, as it was and as it is."""

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
