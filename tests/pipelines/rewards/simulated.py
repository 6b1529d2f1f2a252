"""A simulated log of a few users, without Spark or files, for the tests of learned rewards."""

from functools import cache
from pathlib import Path

from models.table import Transitions
from pipelines.config import Config, load
from pipelines.inprocess import transitions_of
from policies.simulator import simulate

ROOT = Path(__file__).parents[3]


def demo(folder: Path = Path("unused"), **changes: str) -> Config:
    """configs/demo.toml with few users and no data on disk."""
    plain = {"run_dir": str(folder), "simulate.users": "60", "simulate.days": "28", "etl.as_of": "2026-03-01T00:00:00Z"}
    return load(ROOT / "configs" / "demo.toml", {**plain, **changes})


@cache
def log() -> Transitions:
    """60 users over four weeks: about 110 whole user-weeks past the warm-up."""
    config = demo()
    assert config.simulate is not None
    return transitions_of(simulate(config.simulate, 3), config)
