"""One question to an endpoint: every fault of a server, the budget, the transcript, and a key that is nowhere."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from models.errors import InputError, TransientError
from models.rewards.judge.client import (
    LONGEST_WAIT,
    Client,
    GaveUpError,
    OutOfBudgetError,
    Reply,
    _wait,
    key_from_environment,
)
from models.rewards.judge.judging import Session, judge
from models.rewards.judge.prompt import Constitution, Message
from models.rewards.judge.settings import JudgeConfig
from models.rewards.judge.transcript import Transcript, key_of
from tests.models.rewards.openai_server import PROSE, Messages, Server, answer, chance, shown

KEY = "sk-hunter2-hunter2"
ASKED: list[Message] = [{"role": "system", "content": "judge"}, {"role": "user", "content": "A or B?"}]
PRINCIPLES = Constitution("1. More is better.", {1: "More is better."})
ROOT = Path(__file__).parents[3]


def settings(url: str, **changes: Any) -> JudgeConfig:
    return JudgeConfig(url, "tiny", Path("unused.md"), **{"retries": 2, "timeout_s": 5.0, **changes})


def always_a(messages: Messages) -> str:
    return answer("A")


def broken(kind: str, times: int = 1) -> Any:
    """The first `times` requests have that fault."""
    return lambda number, messages: kind if number < times else None


class Asker:
    """A client that waits for nobody, and remembers how long it would have."""

    def __init__(self, server: Server, folder: Path, key: str = "", **changes: Any) -> None:
        self.slept: list[float] = []
        self.kept = Transcript(folder / "judge.jsonl")
        self.client = Client(settings(server.url, **changes), self.kept, key, self.slept.append)

    def ask(self, messages: list[Message] = ASKED) -> Reply:
        return self.client.ask(messages)

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.kept.path.read_text().splitlines()]


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(always_a) as running:
        yield running


def test_a_question_is_posted_by_the_protocol_and_its_answer_read(server: Server, tmp_path: Path) -> None:
    found = Asker(server, tmp_path, KEY).ask()
    assert (found.verdict.answer, found.verdict.principle, found.verdict.why) == ("A", 1, "so")
    assert (found.model, found.cached) == ("tiny", False)
    assert server.requests == [{"model": "tiny", "temperature": 0.0, "max_tokens": 400, "messages": ASKED}]
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"


def test_a_model_that_wants_other_keys_gets_them(server: Server, tmp_path: Path) -> None:
    asker = Asker(server, tmp_path, max_tokens=0, extra={"max_completion_tokens": 900, "seed": 1})
    asker.ask()
    assert server.requests == [
        {"model": "tiny", "temperature": 0.0, "max_completion_tokens": 900, "seed": 1, "messages": ASKED}
    ]
    other = Client(replace(asker.client.settings, extra={"max_completion_tokens": 900, "seed": 2}), asker.kept)
    assert not other.ask(ASKED).cached, "another request is another question"


def test_without_a_key_no_header_is_sent_whatever_netrc_says(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login ann password other\n")
    (tmp_path / "netrc").chmod(0o600)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    Asker(server, tmp_path).ask()
    assert "Authorization" not in server.headers[0]


# What may pass


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("429", "HTTP 429: Rate limit reached"),
        ("429-date", "HTTP 429: Rate limit reached"),
        ("500", "HTTP 500: error 500"),
        ("503", "HTTP 503: error 503"),
        ("slow", "no byte within 0.2 s"),
        ("dropped", "no connection, or one that broke"),
        ("cut-off", "no connection, or one that broke"),
        ("truncated", "no whole JSON"),
        ("no-choices", "no choices"),
        ("wrong-schema", "no choices"),
    ],
)
def test_a_fault_is_tried_again_and_told_if_it_stays(kind: str, said: str, server: Server, tmp_path: Path) -> None:
    timeout = 0.2 if kind == "slow" else 5.0
    server.fault = broken(kind, 2)
    once = Asker(server, tmp_path / "once", timeout_s=timeout)
    assert once.ask().content == answer("A")
    assert len(server.requests) == 3
    assert [bool(line["fault"]) for line in once.lines()] == [True, True, False]
    assert said in once.lines()[0]["fault"]
    server.fault = broken(kind, 10**6)
    with pytest.raises(GaveUpError, match="no answer in 3 tries") as error:
        Asker(server, tmp_path / "stays", timeout_s=timeout).ask()
    assert said in str(error.value)
    assert error.value.exit_code == 75
    assert len(server.requests) == 6


def test_waiting_grows_as_powers_of_two_times_a_draw_and_is_bounded(server: Server, tmp_path: Path) -> None:
    server.fault = broken("500", 9)
    asker = Asker(server, tmp_path, retries=9)
    asker.ask()
    for slept, longest in zip(asker.slept, [1, 2, 4, 8, 16, 32, 60, 60, 60], strict=True):
        assert longest / 2 <= slept <= longest
    assert len({slept / longest for slept, longest in zip(asker.slept, [1, 2, 4], strict=False)}) == 3


@pytest.mark.parametrize("kind", ["429", "429-date"])
def test_what_retry_after_asks_for_is_waited(kind: str, server: Server, tmp_path: Path) -> None:
    server.fault, server.retry_after = broken(kind), 20.0
    asker = Asker(server, tmp_path)
    asker.ask()
    assert len(asker.slept) == 1
    assert 17 < asker.slept[0] <= 20


def test_an_endpoint_that_asks_for_an_hour_is_left_alone(server: Server, tmp_path: Path) -> None:
    server.fault, server.retry_after = broken("429", 10), LONGEST_WAIT + 3300
    with pytest.raises(TransientError, match="asks to wait 3600 s"):
        Asker(server, tmp_path).ask()
    assert len(server.requests) == 1


def test_nobody_there(tmp_path: Path) -> None:
    with Server(always_a) as gone:
        url = gone.url
    kept = Transcript(tmp_path / "judge.jsonl")
    client = Client(settings(url), kept, KEY, lambda _: None)
    with pytest.raises(TransientError, match=r"127\.0\.0\.1.*no answer in 3 tries.*refused.*learned\.judge\.url"):
        client.ask(ASKED)


# What will not pass


@pytest.mark.parametrize(
    ("changes", "key", "fault", "said"),
    [
        ({"key_env": "MY_KEY"}, "sk-wrong-key", None, r"the key in MY_KEY is refused; correct it \(HTTP 401"),
        ({}, "", None, r"learned\.judge\.key_env, which is empty, is refused"),
        ({"model": "huge"}, KEY, None, r"no model 'huge' there.*HTTP 404: The model `huge` does not exist"),
        ({"path": "/v2"}, KEY, None, r"or no such path; correct learned\.judge\.model or \.url"),
        ({}, KEY, "400", r"the request is refused.*'tiny'.*HTTP 400: error 400"),
        ({}, KEY, "403", r"may not do this \(HTTP 403"),
        ({}, KEY, "redirect", r"the endpoint refuses.*HTTP 307"),
    ],
)
def test_a_refusal_is_told_at_once(
    changes: dict[str, Any], key: str, fault: str | None, said: str, tmp_path: Path
) -> None:
    with Server(always_a, lambda number, messages: fault, key=KEY) as server:
        path = changes.pop("path", "/v1")
        found = replace(settings(server.url.replace("/v1", path)), **changes)
        client = Client(found, Transcript(tmp_path / "judge.jsonl"), key, pytest.fail)
        with pytest.raises(InputError, match=said) as error:
            client.ask(ASKED)
        assert error.value.exit_code == 2
        assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"url": ""}, r"learned\.judge\.url is ''; give the base"),
        ({"url": "ftp://h/v1"}, r"learned\.judge\.url is 'ftp://h/v1'"),
        ({"url": f"https://ann:{KEY}@host/v1"}, r"host is named with a user, a password"),
        ({"url": f"ann:{KEY}@host/v1"}, r"learned\.judge\.url is 'host/v1'"),
        ({"url": f"https://host/v1?key={KEY}"}, "or a query; a key belongs into the environment"),
        ({"model": ""}, r"learned\.judge\.model is empty"),
        ({"concurrency": 0}, r"learned\.judge\.concurrency is 0; it must be 1 or more"),
        ({"max_tokens": -1}, r"learned\.judge\.max_tokens is -1"),
        ({"extra": {"stream": True}}, r"learned\.judge\.extra\.stream: an answer is read whole; remove it"),
        ({"extra": {"model": "x"}}, r"learned\.judge\.extra\.model: learned\.judge\.model says so"),
        ({"retries": -1}, r"learned\.judge\.retries is -1; it must be 0 or more"),
        ({"budget_calls": -1}, r"learned\.judge\.budget_calls is -1"),
        ({"budget_tokens": -5}, r"learned\.judge\.budget_tokens is -5"),
        ({"temperature": float("nan")}, r"learned\.judge\.temperature is nan"),
        ({"timeout_s": 0.0}, r"learned\.judge\.timeout_s is 0"),
        ({"conflicts": "guess"}, r"learned\.judge\.conflicts is 'guess'; it must be tie or drop"),
        ({"trust_at_least": 1.5}, r"learned\.judge\.trust_at_least is 1\.5"),
    ],
)
def test_settings_that_cannot_be(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said) as error:
        replace(settings("http://h/v1"), **changes)
    assert KEY not in str(error.value)


# The key


@pytest.mark.parametrize(
    ("value", "said"),
    [(None, "the environment has no MY_KEY"), (" \n", "has no MY_KEY"), ("a b", "spaces"), ("ключ", "signs")],
)
def test_a_key_that_is_none(value: str | None, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MY_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("MY_KEY", value)
    with pytest.raises(InputError, match=said) as error:
        key_from_environment(settings("http://h/v1", key_env="MY_KEY"))
    assert value is None or value.strip() == "" or value not in str(error.value)


def test_a_key_comes_from_the_environment_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", f"{KEY}\n")
    assert key_from_environment(settings("http://h/v1", key_env="MY_KEY")) == KEY
    assert key_from_environment(settings("http://h/v1")) == ""


@pytest.mark.parametrize("key", [KEY, "abc/def+gh=="])
def test_a_key_that_the_server_repeats_is_neither_kept_nor_said(key: str, tmp_path: Path) -> None:
    with Server(always_a, key="another") as server:
        asker = Asker(server, tmp_path, key)
        with pytest.raises(InputError) as error:
            asker.ask()
    assert "Incorrect API key provided: [key]" in str(error.value)
    assert key not in repr(asker.client)
    for path in tmp_path.rglob("*"):
        assert key not in path.read_text().replace("\\", "")


@pytest.mark.parametrize(
    ("header", "wanted"),
    [
        ("12", 12.0),
        ("-3", 0.0),
        ("soon", None),
        ("inf", None),
        ("Sun, 06 Nov 1994 08:49:37 GMT", 0.0),
        ("Sun, 06 Nov 1994 08:49:37 -0000", 0.0),
        ("Sun Nov  6 08:49:37 1994", 0.0),
    ],
)
def test_every_form_of_retry_after(header: str, wanted: float | None) -> None:
    assert _wait(header) == wanted


# The transcript


def test_a_line_says_what_was_asked_what_came_and_what_it_cost(server: Server, tmp_path: Path) -> None:
    asker = Asker(server, tmp_path)
    asker.ask()
    (line,) = asker.lines()
    assert line["request"] == server.requests[0]
    assert line["key"] == key_of(server.requests[0])
    assert line["content"] == answer("A")
    assert json.loads(line["response"])["choices"][0]["message"]["content"] == answer("A")
    assert line["verdict"] == {"answer": "A", "principle": 1, "why": "so"}
    # (5 + 7) signs, four to a token, and 20 of the answer.
    assert (line["status"], line["fault"], line["model"], line["tokens"]) == (200, None, "tiny", 12 // 4 + 20)
    assert 0 <= line["seconds"] < 5
    assert line["at"].endswith("+00:00")


def test_what_an_endpoint_does_not_charge_for_is_estimated(server: Server, tmp_path: Path) -> None:
    server.fault = broken("no-usage")
    asker = Asker(server, tmp_path)
    asker.ask()
    assert asker.lines()[0]["tokens"] == (12 + len(answer("A"))) // 3 == asker.kept.tokens


@pytest.mark.parametrize(("kind", "found"), [("fenced", "A"), ("prose", None)])
def test_an_answer_in_another_form_is_read_or_not(kind: str, found: str | None, server: Server, tmp_path: Path) -> None:
    server.fault = broken(kind)
    asker = Asker(server, tmp_path)
    said = asker.ask().verdict
    assert (said.answer if said else None) == found
    assert len(server.requests) == 1
    assert (asker.lines()[0]["verdict"] is None) == (found is None)


def test_another_model_is_named(server: Server, tmp_path: Path) -> None:
    server.fault = broken("other-model")
    assert Asker(server, tmp_path).ask().model == "another-1"


def test_nothing_is_asked_twice_by_this_run_or_the_next(server: Server, tmp_path: Path) -> None:
    first = Asker(server, tmp_path)
    said = [first.ask().content, first.ask().content]
    first.kept._file.close()
    again = Asker(server, tmp_path)
    assert [*said, again.ask().content] == [answer("A")] * 3
    assert again.ask().cached
    assert len(server.requests) == 1
    other = Client(replace(again.client.settings, temperature=0.5), again.kept)
    assert not other.ask(ASKED).cached


def test_a_line_half_written_is_asked_again_and_spoils_no_other(server: Server, tmp_path: Path) -> None:
    first = Asker(server, tmp_path)
    first.ask()
    first.ask([*ASKED, {"role": "user", "content": "again"}])
    first.kept._file.close()
    path = first.kept.path
    path.write_text(path.read_text()[:-30])
    again = Asker(server, tmp_path)
    assert again.ask().cached
    assert not again.ask([*ASKED, {"role": "user", "content": "again"}]).cached
    again.kept._file.close()
    last = Asker(server, tmp_path)
    assert last.ask([*ASKED, {"role": "user", "content": "again"}]).cached
    assert len(server.requests) == 3


def test_two_processes_do_not_share_a_transcript(tmp_path: Path) -> None:
    with (
        Transcript(tmp_path / "judge.jsonl"),
        pytest.raises(TransientError, match=r"judge\.jsonl: another process asks"),
    ):
        Transcript(tmp_path / "judge.jsonl")


def test_a_transcript_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        Transcript(tmp_path / "file" / "judge.jsonl")


# The budget


def test_no_call_beyond_the_budget_and_none_that_is_known_counts(server: Server, tmp_path: Path) -> None:
    asker = Asker(server, tmp_path, budget_calls=2)
    other = [[*ASKED, {"role": "user", "content": str(n)}] for n in range(3)]
    asker.ask(other[0])
    asker.ask(other[1])
    with pytest.raises(OutOfBudgetError, match=r"learned\.judge\.budget_calls: 2 of 2 calls are used up; raise it"):
        asker.ask(other[2])
    assert asker.ask(other[0]).cached
    assert len(server.requests) == 2
    asker.kept._file.close()
    with pytest.raises(OutOfBudgetError):
        Asker(server, tmp_path, budget_calls=2).ask(other[2])


def test_failed_calls_are_paid_from_the_budget(server: Server, tmp_path: Path) -> None:
    server.fault = broken("500", 10)
    with pytest.raises(OutOfBudgetError):
        Asker(server, tmp_path, budget_calls=2, retries=5).ask()
    assert len(server.requests) == 2


def test_no_token_beyond_the_budget(server: Server, tmp_path: Path) -> None:
    asker = Asker(server, tmp_path, budget_tokens=23)
    asker.ask()
    with pytest.raises(OutOfBudgetError, match=r"budget_tokens: 23 of 23 tokens are used up"):
        asker.ask([*ASKED, {"role": "user", "content": "2"}])
    assert len(server.requests) == 1


@pytest.mark.parametrize("name", ["budget_calls", "budget_tokens"])
def test_no_budget_asks_nothing(name: str, server: Server, tmp_path: Path) -> None:
    with pytest.raises(OutOfBudgetError, match=f"{name}: 0 of 0"):
        Asker(server, tmp_path, **{name: 0}).ask()
    assert server.requests == []


# Many questions


def say_by_length(messages: Messages) -> str:
    a, b = shown(messages)
    return answer("A" if len(a) > len(b) else "B" if len(b) > len(a) else "tie")


def run(server: Server, folder: Path, pairs: list[tuple[int, int]], **changes: Any) -> Session:
    with Transcript(folder / "judge.jsonl") as kept:
        client = Client(settings(server.url, **changes), kept, KEY, lambda _: None)
        return judge(client, PRINCIPLES, pairs, lambda place: "x" * (place + 1))


PAIRS = [(n, (n + 1) % 20) for n in range(20)]


def test_several_at_a_time_find_what_one_finds(tmp_path: Path) -> None:
    tried: set[str] = set()

    def fault(number: int, messages: Messages) -> str | None:
        # The first try of a third of the questions, so that requests overtake one another. By the number of a request
        # all tries of one question could fail.
        first = (question := str(shown(messages))) not in tried
        tried.add(question)
        return "503" if first and chance(question) < 1 / 3 else None

    with Server(say_by_length, fault, seconds=0.005) as server:
        alone = run(server, tmp_path / "1", PAIRS, concurrency=1)
        assert server.at_once == 1
        tried.clear()
        together = run(server, tmp_path / "8", PAIRS, concurrency=8)
        assert 1 < server.at_once <= 8
    assert alone.stopped is together.stopped is None
    assert alone.opinions == together.opinions
    assert [each.answer("tie") for each in alone.opinions] == ["right"] * 19 + ["left"]


def test_weeks_that_read_the_same_are_asked_about_once(tmp_path: Path) -> None:
    with Server(say_by_length, seconds=0.01) as server, Transcript(tmp_path / "judge.jsonl") as kept:
        client = Client(settings(server.url, concurrency=8), kept)
        found = judge(client, PRINCIPLES, PAIRS, lambda place: "x" * (place % 2))
    assert len(server.requests) == 2, "short against long, and long against short"
    assert [each.answer("tie") for each in found.opinions] == ["right", "left"] * 10


def test_prose_is_asked_again_once_and_then_no_answer(tmp_path: Path) -> None:
    def fault(number: int, messages: Messages) -> str | None:
        first, stubborn = len(messages) == 2, len(shown(messages)[0]) == 1
        return "prose" if first or stubborn else None

    with Server(say_by_length, fault) as server:
        found = run(server, tmp_path, PAIRS[:2])
    assert len(server.requests) == 8, "four questions, each twice"
    again = [each["messages"] for each in server.requests if len(each["messages"]) == 4]
    assert len(again) == 4
    assert {each[2]["content"] for each in again} == {PROSE}
    assert all("not in the form" in each[3]["content"] for each in again)
    first, second = found.opinions
    assert (first.sides, first.answer("tie")) == ((None, "right"), None)
    assert (second.sides, second.answer("tie")) == (("right", "right"), "right")
    assert all(each.asked_again for opinion in found.opinions for each in opinion.heard)


def test_a_judge_of_prose_alone_is_stopped_with_a_clear_word(tmp_path: Path) -> None:
    with Server(lambda messages: PROSE) as server:
        found = run(server, tmp_path, PAIRS, concurrency=1)
    assert isinstance(found.stopped, InputError)
    assert "gave no answer in the form asked for to 20 questions in a row, each asked twice" in str(found.stopped)
    assert PROSE[:20] in str(found.stopped)
    assert len(server.requests) <= 2 * 20 + 4
    assert [each.answer("tie") for each in found.opinions] == [None] * 10


def test_a_question_that_never_succeeds_costs_its_pair_alone(tmp_path: Path) -> None:
    def fault(number: int, messages: Messages) -> str | None:
        return "500" if len(shown(messages)[0]) == 4 else None

    with Server(say_by_length, fault) as server:
        found = run(server, tmp_path, PAIRS[:6])
    assert found.stopped is None
    assert [each.complete for each in found.opinions] == [True, True, False, False, True, True]
    assert "HTTP 500" in str(found.opinions[3].heard[0].gave_up)


def test_an_endpoint_that_goes_down_stops_the_run_and_keeps_what_it_said(tmp_path: Path) -> None:
    with Server(say_by_length, lambda number, messages: "503" if number >= 10 else None) as server:
        found = run(server, tmp_path, PAIRS, concurrency=1)
    assert isinstance(found.stopped, TransientError)
    assert [each.complete for each in found.opinions][:5] == [True] * 5
    # Three questions given up, with two retries each, and the one that was under way.
    assert len(server.requests) <= 10 + 4 * 3


def test_whoever_leaves_does_not_wait_for_retries(tmp_path: Path) -> None:
    """A run that is interrupted ends soon, though others are to be tried again in minutes."""

    def interrupted(done: int) -> None:
        raise KeyboardInterrupt

    def fault(number: int, messages: Messages) -> str | None:
        return "429" if number > 0 else None

    with Server(say_by_length, fault, retry_after=200.0) as server, Transcript(tmp_path / "judge.jsonl") as kept:
        client = Client(settings(server.url, concurrency=4), kept)
        started = time.perf_counter()
        with pytest.raises(KeyboardInterrupt):
            judge(client, PRINCIPLES, PAIRS, lambda place: "x" * (place + 1), interrupted)
        assert time.perf_counter() - started < 100
    with Transcript(tmp_path / "judge.jsonl") as kept:
        assert len(kept.answered) == 1


def test_a_refused_key_stops_at_once(tmp_path: Path) -> None:
    with Server(say_by_length, key="another") as server:
        found = run(server, tmp_path, PAIRS, concurrency=2)
    assert isinstance(found.stopped, InputError)
    assert found.opinions == []
    assert len(server.requests) == 1


def test_a_budget_stops_the_run_and_a_larger_one_goes_on(tmp_path: Path) -> None:
    with Server(say_by_length) as server:
        found = run(server, tmp_path, PAIRS, budget_calls=15, concurrency=1)
        assert isinstance(found.stopped, OutOfBudgetError)
        assert len(found.opinions) == 7
        assert len(server.requests) == 15
        whole = run(server, tmp_path, PAIRS, budget_calls=100)
        assert whole.stopped is None
        assert whole.opinions[:7] == [
            replace(each, heard=tuple(replace(h, cached=True) for h in each.heard)) for each in found.opinions
        ]
        assert len(server.requests) == 40
        assert set(server.answered.values()) == {1}


def test_the_key_is_in_no_file(tmp_path: Path) -> None:
    with Server(say_by_length, key=KEY) as server:
        assert run(server, tmp_path, PAIRS).stopped is None
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files
    assert all(KEY not in path.read_text() for path in files)


KILLED = """
import sys
from tests.models.rewards.test_judge_client import PAIRS, Path, judge_at
judge_at(sys.argv[1], Path(sys.argv[2]))
"""


def judge_at(url: str, folder: Path) -> Session:
    """Every pair, two questions at a time; in a process of its own where it is to be killed."""
    with Transcript(folder / "judge.jsonl") as kept:
        client = Client(settings(url, concurrency=2), kept, KEY, lambda _: None)
        return judge(client, PRINCIPLES, PAIRS, lambda place: "x" * (place + 1))


def test_a_killed_run_goes_on_without_asking_anything_twice(tmp_path: Path) -> None:
    with Server(say_by_length, seconds=0.02) as server:
        env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen([sys.executable, "-c", KILLED, server.url, str(tmp_path)], env=env, cwd=ROOT)
        try:
            wait_for(lambda: sum(server.answered.values()) >= 13, process)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
        wait_for(lambda: server._under_way == 0)
        before = sum(server.answered.values())
        kept = len((tmp_path / "judge.jsonl").read_text().splitlines())
        assert before - 2 <= kept <= before < 40, "killed in the middle; two answers at most on their way"
        found = judge_at(server.url, tmp_path)
    assert found.stopped is None
    assert [each.answer("tie") for each in found.opinions] == ["right"] * 19 + ["left"]
    assert sum(server.answered.values()) == 40 + before - kept, "only what was on its way is asked again"
    assert sum(each.cached for opinion in found.opinions for each in opinion.heard) == kept


def wait_for(there: Any, process: Any = None) -> None:
    for _ in range(6000):
        if there():
            return
        assert process is None or process.poll() is None, "ended by itself"
        time.sleep(0.01)
    pytest.fail("never came")


def test_draws_of_the_server_depend_on_the_question_alone() -> None:
    drawn: list[float] = []
    threads = [threading.Thread(target=lambda: drawn.append(chance("a", 1))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(drawn)) == 1
    assert 0.4 < sum(chance(n) < 0.5 for n in range(1000)) / 1000 < 0.6
