"""What every command takes: the configuration, and keys of it that are overridden."""

from pathlib import Path
from typing import Annotated

import typer

from pipelines.config import Config, load

ConfigPath = Annotated[Path, typer.Argument(metavar="CONFIG", help="The TOML file; see configs/.", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the file, as data.decisions.path=x.csv."),
]


def loaded(path: Path, overrides: list[str] | None) -> Config:
    """The configuration at `path` with `overrides`, each KEY=VALUE."""
    pairs = {}
    for text in overrides or []:
        key, equals, value = text.partition("=")
        if not equals:
            raise typer.BadParameter(f"--set {text}: write it as KEY=VALUE.")
        pairs[key.strip()] = value.strip()
    return load(path, pairs)
