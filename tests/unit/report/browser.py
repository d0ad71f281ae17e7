"""Headless Chromium over its DevTools pipe: enough of the protocol to open a page, look at it and press its keys.

Needs no package: commands and events are JSON with a zero byte between them, on file descriptors 3 and 4.
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

PROGRAM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-extensions", "--remote-debugging-pipe",
)  # fmt: skip
_LAUNCH = """
import fcntl, os, sys
ends = [fcntl.fcntl(int(end), fcntl.F_DUPFD, 20) for end in sys.argv[1:3]]
os.dup2(ends[0], 3)
os.dup2(ends[1], 4)
os.execv(sys.argv[3], sys.argv[3:])
"""


class Browser:
    """A browser of its own, ended with the `with` block; each wait is bounded."""

    def __init__(self, folder: Path, limit: float = 60.0) -> None:
        assert PROGRAM is not None
        self._limit = limit
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()
        launch = [sys.executable, "-c", _LAUNCH, str(theirs_in), str(theirs_out), PROGRAM, *_FLAGS]
        self._process = subprocess.Popen(
            [*launch, f"--user-data-dir={folder}", "about:blank"],
            pass_fds=(theirs_in, theirs_out), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(theirs_in)
        os.close(theirs_out)
        self._read, self._number = b"", 0
        self.events: list[dict] = []

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *error: object) -> None:
        try:
            self.send("Browser.close")
            self._process.wait(10)
        except (OSError, TimeoutError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait(10)
        os.close(self._in)
        os.close(self._out)

    def send(self, method: str, session: str | None = None, **parameters: object) -> dict:
        """A command's result; events that come before it are kept."""
        self._number += 1
        command = {"id": self._number, "method": method, "params": parameters}
        message = json.dumps(command if session is None else {**command, "sessionId": session})
        os.write(self._out, message.encode() + b"\0")
        until = time.monotonic() + self._limit
        while True:
            answer = self._next(until)
            if answer.get("id") == self._number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]
            if "method" in answer:
                self.events.append(answer)

    def _next(self, until: float) -> dict:
        while b"\0" not in self._read:
            if not select.select([self._in], [], [], max(0.0, until - time.monotonic()))[0]:
                raise TimeoutError("the browser does not answer")
            part = os.read(self._in, 1 << 16)
            if not part:
                raise TimeoutError("the browser has ended")
            self._read += part
        message, _, self._read = self._read.partition(b"\0")
        return json.loads(message)


class Page:
    """A file opened in a browser, once it says that it is ready."""

    def __init__(self, browser: Browser, file: Path, width: int = 1400, height: int = 900, dark: bool = False) -> None:
        self._browser = browser
        target = browser.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = browser.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.send(f"{domain}.enable")
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])
        self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        self.send("Performance.enable", timeDomain="threadTicks")
        self.send("Emulation.setTouchEmulationEnabled", enabled=width < 600, maxTouchPoints=1)
        started = time.monotonic()
        self.send("Page.navigate", url=file.resolve().as_uri())
        self.wait("document.documentElement?.dataset.ready === 'yes'")
        self.seconds = time.monotonic() - started

    def send(self, method: str, **parameters: object) -> dict:
        """A command to this page."""
        return self._browser.send(method, self._session, **parameters)

    def evaluate(self, expression: str) -> object:
        """The value of an expression, a promise's once it is there."""
        result = self.send("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def wait(self, condition: str) -> None:
        """Until an expression is true."""
        until = time.monotonic() + 60
        while not self.evaluate(f"Boolean({condition})"):
            assert time.monotonic() < until, f"the page is not ready: {condition}"
            time.sleep(0.02)

    def touch(self, x: float, y: float, across: float = 0, down: float = 0, moves: int = 9) -> None:
        """A finger: a tap, or where it moves, that many moves of some pixels each."""
        self.send("Input.dispatchTouchEvent", type="touchStart", touchPoints=[{"x": x, "y": y}])
        for move in range(1, moves + 1 if across or down else 1):
            points = [{"x": x + across * move, "y": y + down * move}]
            self.send("Input.dispatchTouchEvent", type="touchMove", touchPoints=points)
            time.sleep(0.02)
        self.send("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])

    @property
    def busy_seconds(self) -> float:
        """Processor time that the page's main thread has taken, however busy the machine is with other things."""
        metrics = self.send("Performance.getMetrics")["metrics"]
        return next(metric["value"] for metric in metrics if metric["name"] == "TaskDuration")

    def press(self, key: str, code: int) -> None:
        """A key, down and up."""
        text = {"text": "\r"} if key == "Enter" else {}
        self.send("Input.dispatchKeyEvent", type="keyDown", key=key, code=key, windowsVirtualKeyCode=code, **text)
        self.send("Input.dispatchKeyEvent", type="keyUp", key=key, code=key, windowsVirtualKeyCode=code)

    def screenshot(self, file: Path, whole: bool = True) -> None:
        """The page as a PNG, all of it or what the window shows."""
        self.wait("document.documentElement.dataset.settled || !document.documentElement.dataset.ready")
        size = self.send("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"clip": {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}} if whole else {}
        shot = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=whole, **clip)
        file.write_bytes(base64.b64decode(shot["data"]))

    @property
    def complaints(self) -> list[str]:
        """Errors and warnings of the console, uncaught exceptions, and what the browser itself logged."""
        found = []
        for event in self._events():
            given = event["params"]
            if event["method"] == "Runtime.exceptionThrown":
                found.append(str(given["exceptionDetails"]))
            elif event["method"] == "Runtime.consoleAPICalled" and given["type"] in ("error", "warning", "assert"):
                found.append(str(given["args"]))
            elif event["method"] == "Log.entryAdded":
                found.append(str(given["entry"]))
        return found

    @property
    def requests(self) -> list[str]:
        """Addresses that the page asked for, its own file and what it holds itself apart."""
        asked = [e["params"]["request"]["url"] for e in self._events() if e["method"] == "Network.requestWillBeSent"]
        return [url for url in asked[1:] if not url.startswith(("data:", "blob:"))]

    def _events(self) -> list[dict]:
        self.evaluate("0")  # whatever the page has sent is here by now
        return [event for event in self._browser.events if event.get("sessionId") == self._session]
