"""One question to an OpenAI-compatible endpoint: retried where that may help, kept, and never asked twice.

What may pass (429, 5xx, time-outs, broken connections, answers that are no answer of the protocol) is tried again after
min(60, 2^n) s, n = 0, 1, ..., times a number drawn between 0.5 and 1, or after what Retry-After asks for. What will not
pass (another 4xx) raises at once.
"""

import json
import os
import random
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import requests

from models.errors import InputError, TransientError
from models.rewards.judge.parsing import Verdict, verdict
from models.rewards.judge.prompt import Message, body
from models.rewards.judge.settings import JudgeConfig
from models.rewards.judge.transcript import Transcript, key_of

LONGEST_BACKOFF, LONGEST_WAIT = 60.0, 300.0
"""Seconds; an endpoint that asks for more than the second is given up for now."""
SIGNS_PER_TOKEN = 3
"""Where the endpoint does not say what it charged: on the safe side for English."""
SHOWN = 200


class OutOfBudgetError(InputError):
    """The calls or tokens that the configuration allows are used up."""


class GaveUpError(TransientError):
    """A question that was tried as often as the configuration allows."""


@dataclass(frozen=True)
class Reply:
    """What came back for one question."""

    content: str
    verdict: Verdict | None
    model: str | None
    cached: bool


@dataclass(frozen=True)
class _Try:
    """One request: what came, and what is wrong with it."""

    status: int | None
    text: str
    fault: str | None
    """Why it may be tried again."""
    content: str | None = None
    model: str | None = None
    tokens: int | None = None
    wait: float | None = None
    """Seconds that the endpoint asks for."""


def key_from_environment(settings: JudgeConfig) -> str:
    """The key, empty where the endpoint wants none.

    Raises InputError where the variable is not set, or holds what no header can.
    """
    if not settings.key_env:
        return ""
    key = os.environ.get(settings.key_env, "").strip()
    if not key:
        raise InputError(
            f"learned.judge.key_env: the environment has no {settings.key_env}; set it to the key of {settings.url}."
        )
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise InputError(
            f"learned.judge.key_env: {settings.key_env} holds spaces or signs that no key has; correct it."
        )
    return key


@dataclass
class Client:
    """Asks `settings.url`, at most so often as the budget allows; may be used by several threads at once."""

    settings: JudgeConfig
    transcript: Transcript
    key: str = field(default="", repr=False)
    sleep: Callable[[float], object] | None = None
    """What waits before a retry; by default until `stop` at most."""

    def __post_init__(self) -> None:
        self._stopped = threading.Event()
        self._wait = self.sleep or self._stopped.wait
        self._lock = threading.Lock()
        self._asking: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        self._calls = self.transcript.calls
        self._own = threading.local()
        self._random = random.Random()

    def stop(self) -> None:
        """Let no thread wait for another try: nobody needs the answer any more."""
        self._stopped.set()

    def ask(self, messages: list[Message]) -> Reply:
        """The answer to `messages`, from the transcript where it is there.

        Raises InputError where the endpoint refuses (key, model, request), OutOfBudgetError, and GaveUpError after the
        last retry.
        """
        posted = body(self.settings, messages)
        name = key_of(posted)
        with self._lock:
            alone = self._asking[name]
        # Two weeks may read the same, so that two threads have the same question: the second waits for the answer.
        with alone:
            known = self.transcript.answered.get(name)
            if known is not None:
                return Reply(known.content, verdict(known.content), known.model, cached=True)
            return self._asked(name, posted)

    def _asked(self, name: str, posted: dict[str, Any]) -> Reply:
        """The answer after as many tries as it takes, or as are allowed."""
        for number in range(self.settings.retries + 1):
            found = self._kept(name, posted)
            if found.fault is None and found.content is not None:
                return Reply(found.content, verdict(found.content), found.model, cached=False)
            if found.fault is None:
                raise self._refusal(found)
            if found.wait is not None and found.wait > LONGEST_WAIT:
                raise GaveUpError(
                    f"{self.settings.endpoint}: asks to wait {found.wait:.0f} s ({found.fault}); run it again then. "
                    "What was answered is kept."
                )
            if number < self.settings.retries:
                drawn = min(LONGEST_BACKOFF, 2.0**number) * self._random.uniform(0.5, 1)
                self._wait(max(drawn, found.wait or 0.0))
            if self._stopped.is_set():
                break
        raise GaveUpError(
            f"{self.settings.endpoint}: no answer in {number + 1} tries; the last: {found.fault}. Look "
            "at learned.judge.url and the endpoint, then run it again: what was answered is kept."
        )

    def _kept(self, name: str, posted: dict[str, Any]) -> _Try:
        """One request within the budget, in the transcript before anything is made of it."""
        self._reserve()
        at, started = datetime.now(UTC), time.perf_counter()
        found = self._posted(posted)
        said = verdict(found.content) if found.content is not None else None
        asked = sum(len(each["content"]) for each in posted["messages"])
        self.transcript.append(
            {
                "key": name,
                "at": at.isoformat(timespec="milliseconds"),
                "seconds": round(time.perf_counter() - started, 4),
                "request": posted,
                "status": found.status,
                "response": found.text,
                "content": found.content,
                "verdict": vars(said) if said is not None else None,
                "fault": found.fault,
                "model": found.model,
                "tokens": self._charged(found, asked),
            }
        )
        return found

    @staticmethod
    def _charged(found: _Try, asked: int) -> int:
        if found.tokens is not None:
            return found.tokens
        # Who answered 200 has charged for it, whatever came through.
        return (asked + len(found.content or "")) // SIGNS_PER_TOKEN if found.status == 200 else 0

    def _reserve(self) -> None:
        settings, kept = self.settings, self.transcript
        with self._lock:
            for what, used, allowed in (
                ("calls", self._calls, settings.budget_calls),
                ("tokens", kept.tokens, settings.budget_tokens),
            ):
                if used >= allowed:
                    raise OutOfBudgetError(
                        f"learned.judge.budget_{what}: {used:,} of {allowed:,} {what} are used up; raise it to go on: "
                        "what was answered is kept."
                    )
            self._calls += 1

    def _posted(self, posted: dict[str, Any]) -> _Try:
        if not hasattr(self._own, "session"):
            self._own.session = requests.Session()
        try:
            # A redirect would carry user-weeks, and perhaps the key, to where nobody configured them to go.
            response = self._own.session.post(
                self.settings.endpoint,
                json=posted,
                auth=self._authorised,
                timeout=self.settings.timeout_s,
                allow_redirects=False,
            )
        except requests.Timeout:
            return _Try(None, "", f"no byte within {self.settings.timeout_s:g} s")
        except (requests.ConnectionError, requests.exceptions.ChunkedEncodingError) as error:
            return _Try(None, "", f"no connection, or one that broke ({self._clean(_root(error))})")
        except requests.RequestException as error:
            return _Try(None, "", f"no answer of HTTP ({self._clean(_root(error))})")
        text = self._clean(response.content.decode("utf-8", errors="replace"))
        if response.status_code == 200:
            found = _read(text)
            content, model = found.content and self._clean(found.content), found.model and self._clean(found.model)
            return replace(found, content=content, model=model)
        passes = response.status_code in (408, 409, 425, 429) or response.status_code >= 500
        fault = f"HTTP {response.status_code}: {self._clean(_message(text))}" if passes else None
        return _Try(response.status_code, text, fault, wait=_wait(response.headers.get("Retry-After")))

    def _authorised(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """As a function, so that no .netrc of the machine puts another key in its place."""
        if self.key:
            request.headers["Authorization"] = f"Bearer {self.key}"
        return request

    def _clean(self, text: str) -> str:
        """Endpoints repeat a wrong key in what they answer, as it is or as JSON may write it."""
        if self.key:
            for written in (self.key, json.dumps(self.key)[1:-1], self.key.replace("/", "\\/")):
                text = text.replace(written, "[key]")
        return text

    def _refusal(self, found: _Try) -> InputError:
        settings = self.settings
        where = {
            400: f"the request is refused; look at learned.judge.model {settings.model!r} and what it can do",
            401: f"the key in {settings.key_env or 'learned.judge.key_env, which is empty,'} is refused; correct it",
            403: f"the key in {settings.key_env or 'learned.judge.key_env, which is empty,'} may not do this",
            404: f"no model {settings.model!r} there, or no such path; correct learned.judge.model or .url",
        }.get(found.status or 0, "the endpoint refuses; look at learned.judge")
        return InputError(f"{settings.endpoint}: {where} (HTTP {found.status}: {self._clean(_message(found.text))}).")


def _root(error: BaseException) -> str:
    """The innermost reason of a chain of errors, in one line."""
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__ or error
    return f"{type(error).__name__}: {error}".splitlines()[0][:SHOWN]


def _read(text: str) -> _Try:
    """An answer of HTTP 200 by the protocol: choices[0].message.content."""
    try:
        told = json.loads(text)
    except ValueError:
        return _Try(200, text, "the answer is no whole JSON")
    told = told if isinstance(told, dict) else {}
    choices, usage, model = told.get("choices"), told.get("usage"), told.get("model")
    charged = usage.get("total_tokens") if isinstance(usage, dict) else None
    tokens = charged if isinstance(charged, int) and charged >= 0 else None
    named = model if isinstance(model, str) else None
    if not isinstance(choices, list) or not choices:
        return _Try(200, text, "the answer has no choices", model=named, tokens=tokens)
    message = choices[0].get("message") if isinstance(choices[0], dict) else None
    content = message.get("content") if isinstance(message, dict) else None
    if not isinstance(content, str):
        return _Try(200, text, "the answer has no choices[0].message.content", model=named, tokens=tokens)
    return _Try(200, text, None, content, named, tokens)


def _message(text: str) -> str:
    """What an error object says, or the start of what came instead."""
    try:
        told = json.loads(text)["error"]
        said = told["message"] if isinstance(told, dict) else told
    except (ValueError, KeyError, TypeError):
        said = text
    return " ".join(str(said).split())[:SHOWN] or "nothing said"


def _wait(header: str | None) -> float | None:
    """Seconds of a Retry-After, which is a number or a date; None where it is neither."""
    if header is None:
        return None
    try:
        return max(float(header), 0.0) if float(header) < float("inf") else None
    except ValueError:
        pass
    try:
        until = parsedate_to_datetime(header)
    except ValueError:
        return None
    # A date without a zone is UTC (RFC 9110, section 5.6.7).
    until = until if until.tzinfo else until.replace(tzinfo=UTC)
    return max((until - datetime.now(UTC)).total_seconds(), 0.0)
