"""A local server that speaks the protocol of chat completions, and breaks it in every way that a real one does.

It listens on 127.0.0.1 and a free port. What it answers is a function of the messages; what goes wrong is a fault for
each request, drawn by a function of its number, or of the messages.
"""

import hashlib
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

Messages = list[dict[str, str]]
Say = Callable[[Messages], str]
"""Messages -> the text that the model says."""
FAULTS = (
    "429",
    "429-date",
    "500",
    "503",
    "slow",
    "dropped",
    "truncated",
    "cut-off",
    "no-choices",
    "wrong-schema",
    "other-model",
    "no-usage",
    "prose",
    "fenced",
    "redirect",
)
"""429 with Retry-After as seconds or as a date; a connection closed before and within the answer; JSON that ends too
early; no choices; another schema; another model's name; no usage; and texts of the model in other forms."""
SHOWN = re.compile(r"<week (A|B) (\w+)>\n(.*?)\n</week \1 \2>", re.DOTALL)
PROSE = "Both weeks have something to be said for them, but on the whole A strikes me as the nicer one."


def shown(messages: Messages) -> tuple[str, str]:
    """The two texts between the fences of the first question."""
    found = {name: text for name, _, text in SHOWN.findall(messages[1]["content"])}
    return found["A"], found["B"]


def chance(*of: object) -> float:
    """A number in (0, 1) that depends on `of` alone, so that neither order nor threads matter."""
    digest = hashlib.sha256(json.dumps([str(each) for each in of]).encode()).digest()
    return (int.from_bytes(digest[:8], "big") + 0.5) / 2**64


def answer(said: str, principle: int = 1) -> str:
    return json.dumps({"answer": said, "principle": principle, "why": "so"})


@dataclass
class Server:
    """`with Server(say) as server:` listens at `server.url` until the end of the block."""

    say: Say
    fault: Callable[[int, Messages], str | None] = lambda number, messages: None
    """(number of the request from 0, messages) -> one of FAULTS, or None."""
    key: str = ""
    """The key that is wanted; none where empty."""
    models: Sequence[str] = ("tiny",)
    seconds: float = 0.0
    """What an answer takes."""
    slow: float = 1.0
    """Seconds before a slow answer begins."""
    retry_after: float = 1.0
    requests: list[dict[str, Any]] = field(default_factory=list)
    """Bodies of all requests, in the order of arrival."""
    headers: list[dict[str, str]] = field(default_factory=list)
    answered: Counter[str] = field(default_factory=Counter)
    """How often each body was answered as the protocol wants it."""
    at_once: int = 0
    """Most requests that were under way together."""

    def __post_init__(self) -> None:
        self._lock, self._under_way = threading.Lock(), 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_port}/v1"

    def __enter__(self) -> Self:
        handler = type("Handler", (_Handler,), {"server_of": self})
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._http.daemon_threads = True
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.shutdown()
        self._http.server_close()

    def began(self, body: dict[str, Any], headers: dict[str, str]) -> int:
        with self._lock:
            self.requests.append(body)
            self.headers.append(headers)
            self._under_way += 1
            self.at_once = max(self.at_once, self._under_way)
            return len(self.requests) - 1

    def ended(self, answered: dict[str, Any] | None) -> None:
        with self._lock:
            self._under_way -= 1
            if answered is not None:
                self.answered[json.dumps(answered, sort_keys=True)] += 1


class _Handler(BaseHTTPRequestHandler):
    server_of: Server
    protocol_version = "HTTP/1.1"
    # Else the small packets of header and body wait for one another.
    disable_nagle_algorithm = True
    wbufsize = -1

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_POST(self) -> None:
        server = self.server_of
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        number, good = server.began(body, dict(self.headers)), False
        try:
            time.sleep(server.seconds)
            good = self._answer(server, body, number)
        finally:
            server.ended(body if good else None)

    def _answer(self, server: Server, body: dict[str, Any], number: int) -> bool:
        """Whether the model's answer went out in a form that a client can use."""
        if not self.path.endswith("/v1/chat/completions"):
            return self._error(404, f"no such path: {self.path}")
        given = self.headers.get("Authorization", "")
        if server.key and given != f"Bearer {server.key}":
            said = {"error": {"message": f"Incorrect API key provided: {given.removeprefix('Bearer ')}"}}
            # Some gateways write a slash as JSON allows.
            return self._send(401, json.dumps(said).replace("/", "\\/").encode())
        if body["model"] not in server.models:
            return self._error(404, f"The model `{body['model']}` does not exist")
        fault = server.fault(number, body["messages"])
        if fault in ("429", "429-date"):
            wait = f"{server.retry_after:g}"
            if fault == "429-date":
                wait = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + server.retry_after))
            return self._error(429, "Rate limit reached", {"Retry-After": wait})
        if fault in ("500", "503", "400", "403"):
            return self._error(int(fault), f"error {fault}")
        if fault == "redirect":
            return self._send(307, b"", {"Location": "http://127.0.0.1:9/v1/chat/completions"})
        if fault == "dropped":
            self.close_connection = True
            self.connection.close()
            return False
        if fault == "slow":
            time.sleep(server.slow)
        return self._complete(server, body, fault)

    def _complete(self, server: Server, body: dict[str, Any], fault: str | None) -> bool:
        said = server.say(body["messages"])
        said = {"prose": PROSE, "fenced": f"Here it is:\n```json\n{said}\n```\n"}.get(fault or "", said)
        asked = sum(len(each["content"]) for each in body["messages"]) // 4
        told: dict[str, Any] = {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "model": "another-1" if fault == "other-model" else body["model"],
            "choices": [{"index": 0, "message": {"role": "assistant", "content": said}, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": asked, "completion_tokens": 20, "total_tokens": asked + 20},
        }
        if fault == "no-choices":
            told["choices"] = []
        if fault == "wrong-schema":
            told = {"output": said}
        if fault == "no-usage":
            del told["usage"]
        content = json.dumps(told).encode()
        if fault == "truncated":
            self._send(200, content[: len(content) // 2])
            return False
        if fault == "cut-off":
            # Less than the header promised, and then the end of the connection.
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2])
            self.close_connection = True
            return False
        self._send(200, content)
        return fault not in ("no-choices", "wrong-schema")

    def _error(self, status: int, message: str, headers: dict[str, str] | None = None) -> bool:
        told = {"error": {"message": message, "type": "error", "code": None}}
        return self._send(status, json.dumps(told).encode(), headers)

    def _send(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> bool:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)
        return False
