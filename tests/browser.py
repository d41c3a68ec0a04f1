"""Headless Chromium for tests: a page is loaded, asked questions and photographed over the devtools
protocol, through pipes, so that no port is opened."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-dev-shm-usage", "--hide-scrollbars", "--remote-debugging-pipe",
)  # fmt: skip

HAND_OVER = """
import fcntl, os, sys
high = [fcntl.fcntl(int(end), fcntl.F_DUPFD, 10) for end in sys.argv[1:3]]
for number, end in zip((3, 4), high):
    os.dup2(end, number)
os.execv(sys.argv[3], sys.argv[3:])
"""
"""The browser reads at 3 and writes at 4."""


class Page:
    """One tab. `said` is what its console and the browser's log have held, `asked_for` every
    address that it wanted."""

    def __init__(self, out: Any, back: Any) -> None:
        self._out, self._back = out, back
        self._number = 0
        self._pending = b""
        self._session: str | None = None
        self.said: list[str] = []
        self.asked_for: list[str] = []
        target = self("Target.createTarget", url="about:blank")["targetId"]
        self._session = self("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self(f"{domain}.enable")

    def __call__(self, method: str, **given: Any) -> Any:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": given}
        if self._session is not None:
            message["sessionId"] = self._session
        self._out.write(json.dumps(message).encode() + b"\0")
        self._out.flush()
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]

    def show(self, file: Path, *, width: int, height: int, scheme: str = "light") -> None:
        """Load a file at a size in CSS pixels, in `light` or `dark`, up to its end."""
        self("Emulation.setDeviceMetricsOverride", width=width, height=height,
             deviceScaleFactor=1, mobile=width < 500)  # fmt: skip
        self("Emulation.setEmulatedMedia",
             features=[{"name": "prefers-color-scheme", "value": scheme}])  # fmt: skip
        self("Page.navigate", url=file.as_uri())
        while self._next().get("method") != "Page.loadEventFired":
            pass

    def value(self, expression: str) -> Any:
        """What an expression comes to in the page."""
        told = self("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in told, told
        return told["result"].get("value")

    def picture(self, *, whole: bool = True) -> bytes:
        """A PNG of the page, down to its end."""
        data = self("Page.captureScreenshot", captureBeyondViewport=whole, format="png")["data"]
        return base64.b64decode(data)

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._pending:
            read = os.read(self._back.fileno(), 1 << 20)
            assert read, "the browser has gone"
            self._pending += read
        line, _, self._pending = self._pending.partition(b"\0")
        answer: dict[str, Any] = json.loads(line)
        told = answer.get("params", {})
        match answer.get("method"):
            case "Runtime.consoleAPICalled" | "Runtime.exceptionThrown" | "Log.entryAdded":
                self.said.append(json.dumps(told))
            case "Network.requestWillBeSent":
                self.asked_for.append(told["request"]["url"])
        return answer


def chromium() -> str:
    """The browser; skips where there is none, unless this is CI."""
    for name in NAMES:
        if found := shutil.which(name):
            return found
    if os.environ.get("CI"):
        pytest.fail("no Chromium is installed: apt-get install chromium")
    pytest.skip("no Chromium is installed: apt-get install chromium")


@contextmanager
def page(profile: Path) -> Iterator[Page]:
    """A tab of a browser of its own while inside; `profile` is an empty folder."""
    to_browser, out = os.pipe()
    back, from_browser = os.pipe()

    ends = (to_browser, from_browser)
    process = subprocess.Popen(
        [sys.executable, "-c", HAND_OVER, *map(str, ends), chromium(), *FLAGS,
         f"--user-data-dir={profile}", "about:blank"],
        pass_fds=ends,
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    os.close(to_browser)
    os.close(from_browser)
    try:
        with os.fdopen(out, "wb") as write, os.fdopen(back, "rb") as read:
            yield Page(write, read)
    finally:
        process.terminate()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
