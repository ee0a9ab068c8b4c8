"""A headless Chromium to look at pages with, spoken to through two pipes (DevTools protocol), without any library."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
_PAPER = {"paperWidth": 8.27, "paperHeight": 11.69, "printBackground": True, "preferCSSPageSize": True}
"""A4, in inches."""
# The shell puts its own input and output where Chromium looks for the pipes, which Popen alone cannot.
_ON_PIPES = 'exec "$0" "$@" 3<&0 4>&1 0</dev/null 1>/dev/null 2>/dev/null'


def find_chromium() -> str | None:
    """Its path; None where it is not installed."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


class Tab:
    """One page on the screen, or on paper."""

    def __init__(self, writes: IO[bytes], reads: IO[bytes]):
        self._writes, self._reads = writes, reads
        self._count, self._session, self._rest = 0, "", bytearray()
        self._events: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.call("Page.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command of the protocol, and what it returns.

        Raises:
            RuntimeError: Chromium refuses it, or is gone.
        """
        self._count += 1
        message = {"id": self._count, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        self._writes.write(json.dumps(message).encode() + b"\0")
        self._writes.flush()
        while (reply := self._read()).get("id") != self._count:
            self._events.append(str(reply.get("method")))
        if "error" in reply:
            raise RuntimeError(f"{method}: {reply['error']['message']}")
        return dict(reply["result"])

    def show(self, page: Path, width: int, *, scheme: str = "light", media: str = "screen", height: int = 900) -> None:
        """Load a file.

        Args:
            page: an HTML file.
            width, height: of the window, in CSS pixels.
            scheme: light or dark.
            media: screen or print.
        """
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.call(
            "Emulation.setEmulatedMedia", media=media, features=[{"name": "prefers-color-scheme", "value": scheme}]
        )
        self._events.clear()
        self.call("Page.navigate", url=page.resolve().as_uri())
        while "Page.loadEventFired" not in self._events:
            self._events.append(str(self._read().get("method")))

    def value(self, expression: str) -> Any:
        """What a line of JavaScript gives on the page; the page's own policy forbids scripts to the page alone."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        if "exceptionDetails" in found:
            raise RuntimeError(str(found["exceptionDetails"]))
        return found["result"].get("value")

    def screenshot(self) -> bytes:
        """All of the page, beyond the window too, as PNG."""
        found = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        return base64.b64decode(found["data"])

    def pdf(self) -> bytes:
        """The page on A4."""
        return base64.b64decode(self.call("Page.printToPDF", **_PAPER)["data"])

    def _read(self) -> dict[str, Any]:
        """The next message: JSON up to a zero byte."""
        while (end := self._rest.find(0)) < 0:
            found = os.read(self._reads.fileno(), 1 << 20)
            if not found:
                raise RuntimeError("Chromium has ended")
            self._rest += found
        message = json.loads(self._rest[:end])
        del self._rest[: end + 1]
        return dict(message)


@contextmanager
def open_tab(chromium: str) -> Iterator[Tab]:
    """A Chromium of its own, with a profile that is thrown away."""
    # Its helpers outlive it for a moment and may still write to the profile while that is being removed.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = ["--headless", "--remote-debugging-pipe", "--disable-gpu", "--hide-scrollbars", "--no-first-run"]
        # It refuses to sandbox itself for root.
        options += ["--no-sandbox"] if os.geteuid() == 0 else []
        command = ["sh", "-c", _ON_PIPES, chromium, *options, f"--user-data-dir={profile}"]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        ) as process:
            if process.stdin is None or process.stdout is None:
                raise RuntimeError("no pipes")
            try:
                yield Tab(process.stdin, process.stdout)
            finally:
                process.terminate()
                process.wait()
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
