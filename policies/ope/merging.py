"""Sums of some users and sums of others become the sums of all: added field by field, and sent as bytes in between."""

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np


@dataclass(frozen=True)
class Sums:
    """A dataclass of numbers, arrays and other sums, each over users."""

    MOST: ClassVar[tuple[str, ...]] = ()
    """Fields of which the larger of two stands for both."""

    def __add__(self, other: Self, /) -> Self:
        """The sums of both, whose users are different ones."""
        mine, theirs = ({each.name: getattr(part, each.name) for each in fields(part)} for part in (self, other))
        found = {
            name: np.maximum(value, theirs[name]) if name in self.MOST else added(value, theirs[name])
            for name, value in mine.items()
        }
        return replace(self, **found)


def added(a: Any, b: Any) -> Any:
    """a + b; of mappings name by name, what one of them lacks being what the other has."""
    if not isinstance(a, Mapping):
        return a + b
    both = {name: added(value, b[name]) if name in b else value for name, value in a.items()}
    return {**both, **{name: value for name, value in b.items() if name not in a}}


def to_bytes(found: Any) -> bytes:
    """Dataclasses, mappings by text, arrays and numbers, nested as they like, as one npz without pickle."""
    arrays: dict[str, Any] = {}
    tree = json.dumps(_encoded(found, arrays))
    stream = io.BytesIO()
    np.savez(stream, tree=np.array(tree), **arrays)
    return stream.getvalue()


def from_bytes(content: bytes, kinds: Mapping[str, type]) -> Any:
    """What `to_bytes` was given; `kinds` are the dataclasses that may be in it, by name."""
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        return _decoded(json.loads(str(arrays["tree"])), arrays, kinds)


def _encoded(found: Any, arrays: dict[str, Any]) -> Any:
    if is_dataclass(found):
        values = {each.name: _encoded(getattr(found, each.name), arrays) for each in fields(found)}
        return {"kind": type(found).__name__, "fields": values}
    if isinstance(found, Mapping):
        return {"mapping": {name: _encoded(value, arrays) for name, value in found.items()}}
    if isinstance(found, np.ndarray):
        name = f"array_{len(arrays)}"
        arrays[name] = found
        return {"array": name}
    return {"value": found.item() if isinstance(found, np.generic) else found}


def _decoded(tree: Mapping[str, Any], arrays: Mapping[str, Any], kinds: Mapping[str, type]) -> Any:
    if "kind" in tree:
        return kinds[tree["kind"]](**{name: _decoded(each, arrays, kinds) for name, each in tree["fields"].items()})
    if "mapping" in tree:
        return {name: _decoded(each, arrays, kinds) for name, each in tree["mapping"].items()}
    return arrays[tree["array"]] if "array" in tree else tree["value"]
