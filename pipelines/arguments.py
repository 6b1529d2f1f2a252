"""What every command takes: the configuration, and keys of it that are overridden."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from typer.core import TyperCommand

from pipelines.config import Config, load

ConfigPath = Annotated[Path, typer.Argument(metavar="CONFIG", help="The TOML file; see configs/.", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the file, as data.decisions.path=x.csv."),
]

F = TypeVar("F", bound=Callable[..., Any])


class PlainUsage(TyperCommand):
    """A command whose usage line has its arguments as everybody writes them: CONFIG, where Typer writes {CONFIG}."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        return [piece.strip("{}") for piece in super().collect_usage_pieces(ctx)]


class Commands(typer.Typer):
    """A group of commands with plain usage lines."""

    def command(self, name: str | None = None, **settings: Any) -> Callable[[F], F]:
        return super().command(name, **{"cls": PlainUsage, **settings})


def loaded(path: Path, overrides: list[str] | None) -> Config:
    """The configuration at `path` with `overrides`, each KEY=VALUE."""
    pairs = {}
    for text in overrides or []:
        key, equals, value = text.partition("=")
        if not equals:
            raise typer.BadParameter(f"--set {text}: write it as KEY=VALUE.")
        pairs[key.strip()] = value.strip()
    return load(path, pairs)
