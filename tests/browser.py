"""A headless Chromium spoken to over the DevTools protocol, for the tests of the pages."""

import base64
import contextlib
import fcntl
import json
import os
import select
import shutil
import subprocess
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PATIENCE = 120
FLAGS = ("--headless", "--disable-gpu", "--disable-background-networking", "--disable-dev-shm-usage", "--no-first-run")
CUT_OFF = """
(() => {
  const wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
  const name = (e) => e.tagName + ' ' + (e.className.baseVal ?? e.className) + ' ' + e.textContent.trim().slice(0, 40);
  const hidden = (e) => e.closest('.sr, details:not([open]), thead, caption') !== null;
  const outside = [...document.querySelectorAll('main *')]
    .filter((e) => !hidden(e) && e.getClientRects().length)
    .filter((e) => {
      const r = e.getBoundingClientRect();
      return r.right > document.documentElement.clientWidth + 1 || r.left < -1;
    }).map(name);
  const collisions = [];
  for (const picture of document.querySelectorAll('main svg')) {
    if (hidden(picture)) continue;
    const texts = [...picture.querySelectorAll('text')].map((e) => [name(e), e.getBoundingClientRect()]);
    texts.forEach(([a, r], i) => texts.slice(i + 1).forEach(([b, s]) => {
      const across = Math.min(r.right, s.right) - Math.max(r.left, s.left);
      const down = Math.min(r.bottom, s.bottom) - Math.max(r.top, s.top);
      if (across > 1 && down > 3) collisions.push(a + ' / ' + b);
    }));
  }
  const clipped = [...document.querySelectorAll('main svg text')].filter((e) => !hidden(e)).filter((e) => {
    const r = e.getBoundingClientRect(), box = e.ownerSVGElement.getBoundingClientRect();
    return r.left < box.left - 1 || r.right > box.right + 1 || r.top < box.top - 2 || r.bottom > box.bottom + 2;
  }).map(name);
  return JSON.stringify({ wide, outside, collisions, clipped });
})()
"""


class Page:
    """A browser page spoken to over the DevTools protocol through a pair of pipes; it keeps the page's complaints."""

    def __init__(self, profile: Path) -> None:
        assert CHROMIUM is not None
        (read_in, self._write), (self._read, write_out) = (_high_pipe(), _high_pipe())

        def three_and_four() -> None:
            os.dup2(read_in, 3)
            os.dup2(write_out, 4)

        root = ("--no-sandbox",) if os.geteuid() == 0 else ()
        self._browser = subprocess.Popen(
            (CHROMIUM, *FLAGS, *root, f"--user-data-dir={profile}", "--remote-debugging-pipe", "about:blank"),
            preexec_fn=three_and_four,
            close_fds=False,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(read_in)
        os.close(write_out)
        self._buffer, self._count = b"", 0
        self.session: str | None = None
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.loaded = False
        self.downloads = 0
        self.dialogs: list[str] = []
        target = next(t for t in self.call("Target.getTargets")["targetInfos"] if t["type"] == "page")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for part in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{part}.enable")
        self.call("Network.emulateNetworkConditions", offline=True, latency=0, downloadThroughput=0, uploadThroughput=0)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send one command and read until its answer; events on the way are noted."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": parameters}
        if self.session and not method.startswith(("Target.", "Browser.")):
            message["sessionId"] = self.session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._count:
                assert "error" not in answer, answer
                return dict(answer["result"])

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], PATIENCE)
            assert ready, f"the browser said nothing for {PATIENCE} s"
            chunk = os.read(self._read, 1 << 20)
            assert chunk, "the browser ended"
            self._buffer += chunk
        line, self._buffer = self._buffer.split(b"\0", 1)
        message: dict[str, Any] = json.loads(line)
        self._note(message.get("method", ""), message.get("params", {}))
        return message

    def _note(self, method: str, parameters: dict[str, Any]) -> None:
        if method == "Network.requestWillBeSent":
            self.requests.append(parameters["request"]["url"])
        if method in ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded", "Network.loadingFailed"):
            self.complaints.append(f"{method}: {json.dumps(parameters)[:300]}")
        self.loaded = self.loaded or method == "Page.loadEventFired"
        if method == "Page.javascriptDialogOpening":
            # Nobody waits for the answer, and no call has this id.
            accept = {"id": 0, "method": "Page.handleJavaScriptDialog", "params": {"accept": True}}
            os.write(self._write, json.dumps(accept | {"sessionId": self.session}).encode() + b"\0")
            self.dialogs.append(parameters["type"])
        self.downloads += method == "Browser.downloadProgress" and parameters["state"] == "completed"

    def open(self, path: Path, width: int, scheme: str = "light") -> None:
        """Open a file at a width in CSS pixels and wait until it has loaded."""
        self.complaints.clear()
        self.requests.clear()
        self.loaded = False
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600
        )
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.call("Page.navigate", url=path.as_uri())
        self._load()

    def reload(self) -> None:
        """As by a person's F5."""
        self.loaded = False
        self.call("Page.reload")
        self._load()

    def _load(self) -> None:
        while not self.loaded:
            self._receive()

    def evaluate(self, expression: str) -> Any:
        return self.call("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def press(self, key: str) -> None:
        """Press and release a key, by the name of KeyboardEvent.key; one letter is typed."""
        typed = {"text": key} if len(key) == 1 else {}
        for kind, text in (("keyDown", typed), ("keyUp", {})):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, **text)

    def save_to(self, folder: Path) -> None:
        """Downloads go to `folder` from now on, without a question."""
        self.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder), eventsEnabled=True)

    def downloaded(self) -> None:
        """Wait until a download is complete."""
        while self.downloads < 1:
            self._receive()
        self.downloads -= 1

    def screenshot(self, path: Path) -> None:
        """The whole page, however long."""
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        data = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)["data"]
        path.write_bytes(base64.b64decode(data))

    def close(self) -> None:
        with contextlib.suppress(AssertionError, OSError):
            self.session = None
            self.call("Browser.close")
        os.close(self._write)
        os.close(self._read)
        try:
            self._browser.wait(10)
        except subprocess.TimeoutExpired:
            self._browser.kill()
            self._browser.wait()


def _high_pipe() -> tuple[int, int]:
    """A pipe whose ends are above the numbers the browser wants for its own, and not inherited."""
    low = os.pipe()
    high = tuple(fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 20) for end in low)
    for end in low:
        os.close(end)
    return high[0], high[1]
