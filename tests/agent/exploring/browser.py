"""A headless Chromium, driven over its debugging port: enough to press keys, ask the page, and take its picture."""

from __future__ import annotations

import base64
import itertools
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "chrome")
START_S, ANSWER_S = 60, 60
KEYS = {" ": "Space", ",": "Comma", ".": "Period"}


def find_browser() -> str | None:
    """Where Chromium is; None where it is not installed."""
    return next(filter(None, map(shutil.which, PROGRAMS)), None)


class Page:
    """One tab. errors: what went wrong in its scripts."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket, self.errors = socket, []
        self._numbers = itertools.count(1)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """A command of the debugging protocol."""
        number = next(self._numbers)
        self.socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self.socket.recv(timeout=ANSWER_S))
            if message.get("method") == "Runtime.exceptionThrown":
                details = message["params"]["exceptionDetails"]
                self.errors.append(details.get("exception", {}).get("description", details["text"]))
            if message.get("method") == "Log.entryAdded" and message["params"]["entry"]["level"] == "error":
                self.errors.append(message["params"]["entry"]["text"])
            if message.get("id") == number:
                assert "error" not in message, message
                return message["result"]

    def before(self, script: str) -> None:
        """Run a script in every page that is opened from now on, before its own."""
        self.call("Page.addScriptToEvaluateOnNewDocument", source=script)

    def open(self, address: str) -> None:
        for part in ("Page", "Runtime", "Log"):
            self.call(f"{part}.enable")
        self.call("Page.navigate", url=address)

    def ask(self, script: str) -> Any:
        """What an expression of the page is."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait(self, script: str, seconds: float = 60) -> Any:
        """Until an expression is true."""
        end = time.monotonic() + seconds
        while not (found := self.ask(script)):
            assert time.monotonic() < end, f"never true: {script}; {self.errors}"
            time.sleep(0.05)
        return found

    def press(self, key: str, seconds: float = 0.0) -> None:
        """Hold a key down for a while. key: a letter, a sign of KEYS, or a name such as `ArrowUp`."""
        named = {"key": key, "code": KEYS.get(key, f"Key{key.upper()}" if len(key) == 1 else key)}
        self.call("Input.dispatchKeyEvent", type="keyDown", **named)
        time.sleep(seconds)
        self.call("Input.dispatchKeyEvent", type="keyUp", **named)

    def size(self, width: int, height: int, dark: bool = False) -> None:
        """Of the window, in CSS pixels."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def picture(self, path: Path, whole: bool = False) -> None:
        """Write what it looks like, as PNG. whole: what lies below the window too."""
        data = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)["data"]
        path.write_bytes(base64.b64decode(data))


@contextmanager
def browser(program: str, folder: Path) -> Iterator[Page]:
    """A tab of a fresh browser, whose profile lies in `folder`."""
    started = subprocess.Popen(
        [
            program, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            "--remote-debugging-port=0", "--remote-debugging-address=127.0.0.1", f"--user-data-dir={folder}",
            "about:blank",
        ],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        port, path = folder / "DevToolsActivePort", None
        end = time.monotonic() + START_S
        while not (port.exists() and len(lines := port.read_text().split("\n")) >= 2):
            assert started.poll() is None and time.monotonic() < end, "the browser does not start"
            time.sleep(0.1)
        path = f"ws://127.0.0.1:{lines[0]}{lines[1]}"
        with connect(path, max_size=None, open_timeout=START_S) as root:
            page = Page(root)
            target = page.call("Target.createTarget", url="about:blank")["targetId"]
        with connect(f"ws://127.0.0.1:{lines[0]}/devtools/page/{target}", max_size=None) as socket:
            yield Page(socket)
    finally:
        started.terminate()
        try:
            started.wait(10)
        except subprocess.TimeoutExpired:
            started.kill()
            started.wait()
