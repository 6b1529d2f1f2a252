"""Who is champion, and who was: an append-only journal that MLflow numbers, and aliases that follow from it.

MLflow has no compare-and-set on aliases, but it numbers the versions of a registered model one by one: two that ask at
once get two numbers. So the journal is a second registered model, NAME.promotions, whose versions are the entries:

| tag         | meaning |
|-------------|---------|
| what        | adopt, first, challenge, promote or rollback |
| version     | of the model: the new champion or challenger; of a rollback the champion that is taken back |
| fingerprint | of that version's artifact |
| challenger  | true where a promotion was just judged, so that its version is the newest candidate too |
| id          | of the command: a request that was sent twice counts once |
| at, by      | when (UTC) and who |
| reason      | of a rollback, or why a version without a verdict was promoted |
| found       | of `adopt`: the aliases as they were before there was a journal, as JSON |

The state is a fold over the entries in the order of their numbers, and the aliases champion, challenger and previous
are written from it. Whoever wrote an alias reads the journal again and, where it grew meanwhile, writes again: the last
to write leaves the newest state. Whoever finds aliases that are not the journal's (somebody died between two writes,
or changed one by hand) mends them.
"""

import getpass
import json
import logging
import os
import random
import time
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from models.errors import InputError
from models.registry.outages import CONTENDED

ALIASES = ("previous", "champion", "challenger")
SUFFIX = ".promotions"
TRIES = 20
"""Numbers asked for where others keep being faster."""
PAGE = 1000
GONE = "RESOURCE_DOES_NOT_EXIST"
logger = logging.getLogger("tactful.registry")


@dataclass(frozen=True)
class Entry:
    """One line of the journal; `number` is MLflow's."""

    what: str
    version: str
    fingerprint: str = ""
    challenger: bool = False
    reason: str = ""
    found: Mapping[str, str] = field(default_factory=dict)
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    at: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    by: str = field(default_factory=lambda: _who())
    number: int = 0

    def tags(self) -> dict[str, str]:
        plain = {name: getattr(self, name) for name in ("what", "version", "fingerprint", "id", "at", "by", "reason")}
        more = {"challenger": "true" if self.challenger else "", "found": json.dumps(self.found) if self.found else ""}
        return {name: value for name, value in {**plain, **more}.items() if value}

    @classmethod
    def of(cls, number: int, tags: Mapping[str, str]) -> "Entry":
        """Raises InputError where the tags are no entry's."""
        missing = [name for name in ("what", "version", "id") if name not in tags]
        if missing:
            raise InputError(
                f"the journal of promotions: entry {number} has no tag {missing[0]!r}, so somebody else wrote it; "
                "delete that version of the journal in MLflow."
            )
        plain = {name: tags.get(name, "") for name in ("what", "version", "fingerprint", "id", "at", "by", "reason")}
        return cls(
            **plain,
            challenger=tags.get("challenger") == "true",
            found=json.loads(tags.get("found", "{}")),
            number=number,
        )


@dataclass(frozen=True)
class State:
    """What the journal says; versions of the model, None where there is none."""

    champion: str | None = None
    previous: str | None = None
    challenger: str | None = None
    fingerprint: str = ""
    """The champion's."""
    previous_fingerprint: str = ""
    void: frozenset[str] = frozenset()
    """Ids of entries that changed nothing, as somebody else's came first."""

    def aliases(self) -> dict[str, str]:
        found = {name: getattr(self, name) for name in ALIASES}
        return {name: version for name, version in found.items() if version is not None}


def as_found(aliases: Mapping[str, str]) -> State:
    """The state that the aliases alone tell."""
    return State(aliases.get("champion"), aliases.get("previous"), aliases.get("challenger"))


def fold(entries: Iterable[Entry]) -> State:
    """The state after `entries`, in the order of their numbers.

    A promotion makes its version champion and the champion before it previous; one of the same artifact anew (a
    command that was repeated) leaves previous alone, so that a rollback always leads to another policy. A rollback
    swaps the two where the champion is still the one it takes back: of two at once the second does not undo the first.
    """
    state, seen = State(), set[str]()
    for position, entry in enumerate(sorted(entries, key=lambda each: each.number)):
        if entry.id in seen:
            continue
        seen.add(entry.id)
        state = _after(state, entry, first=position == 0)
    return state


def _after(state: State, entry: Entry, first: bool) -> State:
    if entry.what == "adopt" and first:
        return replace(
            as_found(entry.found),
            fingerprint=entry.fingerprint,
            previous_fingerprint=entry.found.get("fingerprint", ""),
        )
    if entry.what == "challenge":
        return replace(state, challenger=entry.version)
    if entry.what == "promote" or (entry.what == "first" and state.champion is None):
        challenger = entry.version if entry.challenger else state.challenger
        made = replace(state, champion=entry.version, fingerprint=entry.fingerprint, challenger=challenger)
        if state.champion in {None, entry.version} or (entry.fingerprint and entry.fingerprint == state.fingerprint):
            return made
        return replace(made, previous=state.champion, previous_fingerprint=state.fingerprint)
    if entry.what == "rollback" and state.champion == entry.version and state.previous is not None:
        return replace(
            state,
            champion=state.previous,
            fingerprint=state.previous_fingerprint,
            previous=state.champion,
            previous_fingerprint=state.fingerprint,
        )
    return replace(state, void=state.void | {entry.id})


class Journal:
    """The journal of one registered model, by MLflow's client; errors are MLflow's own."""

    def __init__(self, client: Any, model: str) -> None:
        self.client = client
        self.model = model
        self.name = model + SUFFIX

    def entries(self) -> list[Entry]:
        """Every entry, by number."""
        found, token = [], None
        while True:
            page = self.client.search_model_versions(
                f"name = '{self.name}'", max_results=PAGE, order_by=["version_number ASC"], page_token=token
            )
            found += [Entry.of(int(each.version), each.tags) for each in page]
            token = page.token
            if not token:
                return sorted(found, key=lambda entry: entry.number)

    def append(self, entry: Entry) -> State:
        """Write `entry`, after one that adopts the aliases where the journal is new; then the aliases."""
        if not self.entries() and (found := self.aliases()):
            self._write(self._adopting(found))
        self._write(entry)
        logger.info("registry: %s of version %s is in the journal", entry.what, entry.version)
        return self.settle(mending=False)

    def state(self) -> State:
        """What the journal says, mending aliases that say otherwise; where it is new, what the aliases say."""
        return self.settle(mending=True)

    def settle(self, mending: bool) -> State:
        entries = self.entries()
        if not entries:
            return as_found(self.aliases())
        while True:
            state = fold(entries)
            wrote = self._point(state, mending)
            if not wrote:
                return state
            # Somebody may have appended since and written aliases already, which ours then overwrote.
            again = self.entries()
            if len(again) == len(entries):
                return state
            entries = again

    def aliases(self) -> dict[str, str]:
        """Alias -> version, of those that are ours, as MLflow has them."""
        from mlflow.exceptions import MlflowException

        try:
            found = self.client.get_registered_model(self.model).aliases
        except MlflowException as error:
            if error.error_code != GONE:
                raise
            return {}
        return {name: str(version) for name, version in found.items() if name in ALIASES}

    def _point(self, state: State, mending: bool) -> bool:
        """Write each alias that is not as `state` has it; whether one was."""
        found, wanted, wrote = self.aliases(), state.aliases(), False
        for name in ALIASES:
            if found.get(name) == wanted.get(name):
                continue
            if mending:
                logger.warning(
                    "registry: %s was version %s, the journal says %s (a command was killed, or the alias changed by "
                    "hand); mended",
                    *(name, found.get(name, "none"), wanted.get(name, "none")),
                )
            if name not in wanted:
                self.client.delete_registered_model_alias(self.model, name)
            elif not self._aliased(name, wanted[name]):
                continue
            logger.info("registry: alias %s is version %s", name, wanted.get(name, "none"))
            wrote = True
        return wrote

    def _aliased(self, name: str, version: str) -> bool:
        """Write one alias; False where the version was deleted, which loading it then says."""
        from mlflow.exceptions import MlflowException

        try:
            self.client.set_registered_model_alias(self.model, name, version)
        except MlflowException as error:
            if error.error_code != GONE:
                raise
            logger.warning("registry: version %s, the %s, was deleted from MLflow", version, name)
            return False
        return True

    def _adopting(self, found: Mapping[str, str]) -> Entry:
        prints = {
            name: self.client.get_model_version(self.model, found[name]).tags.get("fingerprint", "")
            for name in ("champion", "previous")
            if name in found
        }
        logger.info("registry: no journal yet; it begins with the aliases as found: %s", dict(found))
        return Entry(
            "adopt",
            found.get("champion") or next(iter(found.values())),
            prints.get("champion", ""),
            found={**found, **({"fingerprint": prints["previous"]} if prints.get("previous") else {})},
            reason="aliases as found, set before there was a journal",
        )

    def _write(self, entry: Entry) -> None:
        from mlflow.exceptions import MlflowException

        made = self.client.get_model_version(self.model, entry.version)
        make_model(
            self.client,
            self.name,
            f"Journal of what was promoted and rolled back in {self.model}; its versions are entries, not models. "
            "Written by tactful; append to it by `tactful promote` and `tactful rollback` only.",
        )
        for left in reversed(range(TRIES)):
            try:
                # The files that an entry must name are those of the version it is about.
                self.client.create_model_version(
                    self.name, made.source, made.run_id, tags=entry.tags(), await_creation_for=None
                )
                return
            except MlflowException as error:
                if CONTENDED not in str(error) or not left:
                    raise
                time.sleep(random.random() / 4)


def make_model(client: Any, name: str, description: str | None = None) -> None:
    """Create a registered model unless it is there, whoever is faster."""
    from mlflow.exceptions import MlflowException

    if client.search_registered_models(f"name = '{name}'"):
        return
    try:
        client.create_registered_model(name, description=description)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _who() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container whose user has no name
        return str(os.getuid())
