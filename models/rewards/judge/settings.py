"""Which judge is asked, by which principles, and at what cost."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal
from urllib.parse import urlsplit

from models.errors import InputError

OURS = {
    "model": "learned.judge.model says so",
    "temperature": "learned.judge.temperature says so",
    "max_tokens": "learned.judge.max_tokens says so",
    "messages": "the question is written by the program",
    "stream": "an answer is read whole",
    "n": "one answer is read",
}
"""Keys of the request that `extra` may not set, and why."""


@dataclass(frozen=True)
class JudgeConfig:
    """[learned.judge] of a configuration."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    url: str
    """Base of an OpenAI-compatible endpoint, as http://127.0.0.1:8000/v1; questions go to URL/chat/completions."""
    model: str
    """Name of the model there."""
    constitution: Path
    """File of numbered principles, see configs/constitution.md; relative to the working directory."""
    key_env: str = ""
    """Name of the environment variable that holds the key; empty where the endpoint wants none. The key itself is
    written nowhere."""
    temperature: float = 0.0
    max_tokens: int = 400
    """Longest answer that is paid for; a model that thinks aloud needs more. 0 asks for no limit."""
    extra: dict[str, str | int | float | bool] = field(default_factory=dict)
    """Further keys of the request, as the endpoint or the model wants them: max_completion_tokens, seed, ..."""
    timeout_s: float = 60.0
    """Seconds without a byte after which a request has failed."""
    retries: int = 5
    """Further tries of a request that failed for a reason that may pass."""
    budget_calls: int = 5_000
    """Requests in all for one learned reward, failed ones and earlier runs included."""
    budget_tokens: int = 5_000_000
    """The same in tokens, of questions and answers. Requests under way when it is reached still end."""
    concurrency: int = 4
    """Requests at a time."""
    conflicts: Literal["tie", "drop"] = "tie"
    """What a pair becomes whose answer changes with the order of the two user-weeks."""
    trust_at_least: float = 0.6
    """The judge is trusted where the lower end of the interval of its agreement with people is not below this."""

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InputError(
                f"learned.judge.url is {_bare(self.url)!r}; give the base of an endpoint, as https://HOST/v1."
            )
        if parts.username or parts.password or parts.query or parts.fragment:
            raise InputError(
                f"learned.judge.url: {parts.hostname} is named with a user, a password or a query; a key belongs into "
                "the environment variable that learned.judge.key_env names."
            )
        if not self.model:
            raise InputError("learned.judge.model is empty; name a model of the endpoint.")
        if self.concurrency < 1:
            raise InputError(f"learned.judge.concurrency is {self.concurrency}; it must be 1 or more.")
        for name in self.extra:
            if name in OURS:
                raise InputError(f"learned.judge.extra.{name}: {OURS[name]}; remove it.")
        for name in ("retries", "budget_calls", "budget_tokens", "temperature", "max_tokens"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"learned.judge.{name} is {getattr(self, name)}; it must be 0 or more.")
        if not 0 < self.timeout_s < math.inf:
            raise InputError(f"learned.judge.timeout_s is {self.timeout_s}; it must be above 0.")
        if self.conflicts not in ("tie", "drop"):
            raise InputError(f"learned.judge.conflicts is {self.conflicts!r}; it must be tie or drop.")
        if not 0 <= self.trust_at_least <= 1:
            raise InputError(f"learned.judge.trust_at_least is {self.trust_at_least}; it must lie in [0, 1].")

    @property
    def rater(self) -> str:
        """Who answered, in a file of answers."""
        return f"judge:{self.model}"

    @property
    def endpoint(self) -> str:
        """Where questions are posted."""
        return f"{self.url.rstrip('/')}/chat/completions"


def _bare(url: str) -> str:
    """Without what stands before an @: it may be a password."""
    return url.rsplit("@", 1)[-1]
