"""Who is champion: the fold over the journal, and its aliases in MLflow, whoever else promotes, dies or meddles."""

import logging
import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.errors import InputError, TransientError
from models.registry import Registry
from models.registry.promotions import Entry, State, fold
from tests.models.registry.mlflow_servers import mlflow_server, postgres
from tests.models.registry.registries import Command, aliases, bare_version, commands

# The fold


def entries(text: str) -> list[Entry]:
    """`p1 c2 r1`: promote 1, challenge 2, take back champion 1; P promotes what was just judged, f begins, a adopts."""
    what = {"p": "promote", "P": "promote", "c": "challenge", "r": "rollback", "f": "first", "a": "adopt"}
    return [
        Entry(what[word[0]], word[1:], f"of {word[1:]}", challenger=word[0] == "P", id=str(n), number=n + 1)
        for n, word in enumerate(text.split())
    ]


@pytest.mark.parametrize(
    ("journal", "champion", "previous", "challenger"),
    [
        ("", None, None, None),
        ("f1", "1", None, None),
        ("f1 f2", "1", None, None),  # the second of two first champions came too late
        ("f1 P2", "2", "1", "2"),
        ("f1 c2", "1", None, "2"),
        ("f1 P2 P3", "3", "2", "3"),
        ("f1 P3 P2", "2", "3", "2"),
        ("f1 P2 p1", "1", "2", "2"),  # an old version, promoted again: the newest candidate is still 2
        ("f1 P2 P2", "2", "1", "2"),  # promoted twice: once
        ("f1 P2 r2", "1", "2", "2"),
        ("f1 P2 r2 r1", "2", "1", "2"),  # a rollback of the rollback
        ("f1 P2 r2 r2", "1", "2", "2"),  # two rollbacks at once: the second finds its champion gone
        ("f1 r1", "1", None, None),
        ("f1 P2 r2 P3", "3", "1", "3"),
        ("f1 P2 a9", "2", "1", "2"),  # adoption is for the first entry only
    ],
)
def test_the_fold(journal: str, champion: str, previous: str, challenger: str) -> None:
    found = fold(entries(journal))
    assert (found.champion, found.previous, found.challenger) == (champion, previous, challenger)


def test_an_adopted_state_is_as_found() -> None:
    adopted = Entry("adopt", "4", "x", found={"champion": "4", "previous": "2", "challenger": "5"}, number=1)
    assert fold([adopted]).aliases() == {"champion": "4", "previous": "2", "challenger": "5"}
    rolled = Entry("rollback", "4", number=2)
    assert fold([adopted, rolled]).aliases() == {"champion": "2", "previous": "4", "challenger": "5"}


def test_the_same_policy_registered_anew_is_no_policy_to_roll_back_to() -> None:
    """A command that was killed after its promotion and repeated registers the artifact once more."""
    journal = [*entries("f1 P2"), Entry("promote", "3", "of 2", number=9)]
    assert fold(journal).aliases() == {"champion": "3", "previous": "1", "challenger": "2"}


def test_what_was_sent_twice_counts_once() -> None:
    twice = [*entries("f1 P2 r2"), Entry("rollback", "2", id="2", number=9), Entry("rollback", "1", id="2", number=10)]
    assert fold(twice) == fold(entries("f1 P2 r2"))


def naive(words: list[str]) -> tuple[str | None, str | None]:
    """Champion and previous by a list of who was champion, newest last."""
    line: list[str] = []
    for word in words:
        what, version = word[0], word[1:]
        if what == "p" and (not line or line[-1] != version):
            line.append(version)
        if what == "r" and len(line) > 1 and line[-1] == version:
            line.append(line[-2])
    return (line[-1] if line else None, line[-2] if len(line) > 1 else None)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("pr"), st.integers(1, 4)), max_size=12), st.randoms())
def test_the_fold_equals_a_line_of_champions_in_whatever_order_it_is_read(
    words: list[tuple[str, int]], rng: random.Random
) -> None:
    told = [f"{what}{version}" for what, version in words]
    journal = entries(" ".join(told))
    rng.shuffle(journal)
    found = fold(journal)
    assert (found.champion, found.previous) == naive(told)


def test_an_entry_is_what_its_tags_say() -> None:
    entry = Entry("promote", "3", "abc", challenger=True, reason="drill", found={"champion": "1"}, number=4)
    assert Entry.of(4, entry.tags()) == entry
    plain = Entry("challenge", "3", number=5)
    assert Entry.of(5, plain.tags()) == plain
    with pytest.raises(InputError, match=r"entry 7 has no tag 'version', so somebody else wrote it; delete"):
        Entry.of(7, {"what": "promote", "id": "x"})


# In MLflow


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with postgres() as database, mlflow_server(tmp_path_factory.mktemp("server"), database) as address:
        yield address


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"


@pytest.fixture(params=["file", "server"])
def registry(request: pytest.FixtureRequest, tmp_path: Path) -> Registry:
    """SQLite, or a server on PostgreSQL; each test has a model of its own."""
    return Registry(request.getfixturevalue(request.param), tmp_path.name)


@pytest.fixture
def versions(registry: Registry) -> list[str]:
    """Six versions, the first of them champion."""
    made = [bare_version(registry, f"policy {n}") for n in range(6)]
    registry.begin(made[0])
    return made


def test_promotions_move_three_aliases_and_leave_who_when_why(registry: Registry, versions: list[str]) -> None:
    registry.challenge("2")
    assert aliases(registry) == {"champion": "1", "challenger": "2"}
    registry.promote("3", reason="a drill", challenger=True)
    assert aliases(registry) == {"champion": "3", "previous": "1", "challenger": "3"}
    told = registry.journal.entries()
    assert [(each.number, each.what, each.version, each.reason) for each in told] == [
        (1, "first", "1", ""),
        (2, "challenge", "2", ""),
        (3, "promote", "3", "a drill"),
    ]
    assert all(each.by and each.at.endswith("+00:00") for each in told)
    assert told[2].fingerprint == "policy 2"


def test_aliases_without_a_journal_are_adopted(registry: Registry) -> None:
    """As an earlier version of Tactful left them."""
    for n in range(4):
        bare_version(registry, f"policy {n}")
    registry.set_alias("champion", "2")
    registry.set_alias("challenger", "3")
    assert registry.state() == State(champion="2", challenger="3")
    assert registry.journal.entries() == []  # looking writes nothing
    registry.promote("4")
    assert aliases(registry) == {"champion": "4", "previous": "2", "challenger": "3"}
    first = registry.journal.entries()[0]
    assert (first.what, first.found, first.fingerprint) == ("adopt", {"champion": "2", "challenger": "3"}, "policy 1")


def test_an_alias_changed_by_hand_is_mended(registry: Registry, versions: list[str], caplog) -> None:
    registry.promote("2")
    registry.set_alias("champion", "5")
    registry.client.delete_registered_model_alias(registry.model, "previous")
    registry.set_alias("challenger", "6")
    registry.set_alias("mine", "6")
    with caplog.at_level(logging.WARNING, "tactful.registry"):
        assert registry.alias("champion") == "2"
    assert aliases(registry) == {"champion": "2", "previous": "1", "mine": "6"}
    assert "champion was version 5, the journal says 2" in caplog.text
    assert "previous was version none, the journal says 1" in caplog.text
    caplog.clear()
    assert registry.alias("champion") == "2"
    assert caplog.text == ""


def test_a_version_that_was_deleted_stops_nobody_but_who_wants_it(registry: Registry, versions: list[str]) -> None:
    registry.promote("2")
    registry.client.delete_model_version(registry.model, "1")
    assert registry.state().champion == "2"
    with pytest.raises(InputError, match=r"version 1 of .* does not exist"):
        registry.rollback()
    assert registry.promote("3").aliases() == {"champion": "3", "previous": "2"}


def test_a_version_that_never_was_is_not_promoted(registry: Registry, versions: list[str]) -> None:
    there = ", ".join(reversed(versions))
    with pytest.raises(InputError, match=rf"version 77 of .* does not exist; there are {there}\."):
        registry.promote("77")
    assert len(registry.journal.entries()) == 1


def test_there_may_be_nothing_to_roll_back_to(registry: Registry) -> None:
    with pytest.raises(InputError, match=r"no champion before this one \(champion: none\)"):
        registry.rollback()
    registry.begin(bare_version(registry, "policy"))
    with pytest.raises(InputError, match=r"no champion before this one \(champion: 1\)"):
        registry.rollback()


def test_a_rollback_whose_champion_was_replaced_meanwhile_is_void(
    registry: Registry, versions: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.promote("2")

    def meanwhile(version: str, into: Path) -> None:
        registry.promote("3")

    monkeypatch.setattr(registry, "fetch", meanwhile)
    with pytest.raises(TransientError, match=r"version 2 is champion no more.*it is version 3 now, and nothing was"):
        registry.rollback()
    assert aliases(registry) == {"champion": "3", "previous": "2"}


# Several at once


def serial(before: dict[str, str], *promoted: str) -> dict[str, str]:
    """The aliases after promotions one after the other."""
    state = dict(before)
    for version in promoted:
        if state["champion"] != version:
            state["previous"] = state["champion"]
        state |= {"champion": version, "challenger": version}
    return state


@pytest.mark.parametrize("rounds", [12])
def test_two_promotions_at_once_equal_one_after_the_other(registry: Registry, versions: list[str], rounds: int) -> None:
    before = aliases(registry)
    with commands(registry, {}, {}) as (one, other):
        for n in range(rounds):
            a, b = versions[2 * (n % 3)], versions[2 * (n % 3) + 1]
            one.tell(f"promote {a}")
            other.tell(f"promote {b}")
            one.answer()
            other.answer()
            # Before anybody mends: whoever wrote last left the newest state.
            found = aliases(registry)
            assert found in (serial(before, a, b), serial(before, b, a))
            assert found == fold(registry.journal.entries()).aliases()
            before = found
    assert [entry.what for entry in registry.journal.entries()] == ["first"] + ["promote"] * (2 * rounds)


def test_the_first_promotions_of_an_empty_database_at_once(tmp_path: Path) -> None:
    """Each makes the tables, the experiment, the model and the journal unless the other did; temporary folders differ,
    as those of two services may, and with them the lock of MLflow."""
    registry = Registry(f"sqlite:///{tmp_path / 'new' / 'mlflow.db'}", "tactful")
    folders = [tmp_path / name for name in ("a", "b")]
    for folder in folders:
        folder.mkdir()
    with commands(registry, *({"TMPDIR": str(folder)} for folder in folders)) as made:
        for each in made:
            each.tell("begin")
        assert made[0].answer()["champion"] == made[1].answer()["champion"]
    # The second to come is void.
    first, second = registry.journal.entries()
    assert (first.what, second.what, {first.version, second.version}) == ("first", "first", {"1", "2"})
    assert aliases(registry) == {"champion": first.version}


@pytest.mark.parametrize(
    ("marker", "found"),
    [
        ("promote of version 3 is in the journal", {"champion": "2", "previous": "1", "challenger": "2"}),
        ("alias previous is version 2", {"champion": "2", "previous": "2", "challenger": "2"}),
        ("alias champion is version 3", {"champion": "3", "previous": "2", "challenger": "2"}),
    ],
)
def test_the_next_command_mends_what_a_killed_one_left(
    registry: Registry, versions: list[str], marker: str, found: dict[str, str], caplog
) -> None:
    registry.promote("2", challenger=True)
    command = Command(registry, marker, "1")
    try:
        command.ready()
        command.tell("promote 3")
        command.stopped()
    finally:
        command.end()
    assert aliases(registry) == found
    with caplog.at_level(logging.WARNING, "tactful.registry"):
        assert Registry(registry.tracking_uri, registry.model).alias("champion") == "3"
    assert aliases(registry) == {"champion": "3", "previous": "2", "challenger": "3"}
    assert "mended" in caplog.text


def test_a_command_that_slept_between_its_writes_leaves_the_newest_state(
    registry: Registry, versions: list[str]
) -> None:
    """It wakes after another promoted, overwrites an alias of the other's with an older one, and finds that out."""
    command = Command(registry, "alias previous is version 1", "1")
    try:
        command.ready()
        command.tell("promote 2")
        command.stopped()
        registry.promote("3", challenger=True)
        assert aliases(registry) == {"champion": "3", "previous": "2", "challenger": "3"}
        os.killpg(command.process.pid, signal.SIGCONT)
        assert command.answer() == {"champion": "3", "previous": "2", "challenger": "3"}
    finally:
        command.end()
    assert aliases(registry) == {"champion": "3", "previous": "2", "challenger": "3"}
