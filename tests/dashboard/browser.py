"""Headless Chromium, by its own DevTools protocol: what a person at the dashboard would do and see.

Nothing is needed but the browser: scripts/set_up_browser.sh installs it.
"""

from __future__ import annotations

import base64
import itertools
import json
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--remote-debugging-port=0", "--hide-scrollbars"),
)
KEYS = {"Tab": 9, "Enter": 13, "Escape": 27, "End": 35, "Home": 36, "ArrowLeft": 37}
ANSWER_S = 20.0
MEDIA = "prefers-color-scheme"


def find_browser() -> str | None:
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Failed(Exception):
    """What was asked of the browser."""


class Page:
    """A tab. ``complaints`` are what its console says, ``sizes`` the bytes of each answer."""

    def __init__(self, link: ClientConnection) -> None:
        self.complaints: list[str] = []
        self.sizes: dict[str, int] = {}
        self._urls: dict[str, str] = {}
        self._link = link
        self._ids = itertools.count()
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **arguments: Any) -> Any:
        number = next(self._ids)
        self._link.send(json.dumps({"id": number, "method": method, "params": arguments}))
        while True:
            message = json.loads(self._link.recv(ANSWER_S))
            if message.get("id") == number:
                if "error" in message:
                    raise Failed(message["error"])
                return message["result"]
            self._note(message["method"], message["params"])

    def _note(self, event: str, told: dict[str, Any]) -> None:
        match event:
            case "Runtime.consoleAPICalled":
                self.complaints.append(f"{told['type']}: {told['args']}")
            case "Runtime.exceptionThrown":
                self.complaints.append(str(told["exceptionDetails"]))
            case "Log.entryAdded":
                self.complaints.append(told["entry"]["text"])
            case "Network.requestWillBeSent":
                self._urls[told["requestId"]] = told["request"]["url"]
            case "Network.loadingFinished":
                self.sizes[self._urls[told["requestId"]]] = told["encodedDataLength"]

    # --- what a person does --------------------------------------------------------------------

    def open(self, url: str) -> None:
        self.call("Page.navigate", url=url)
        self.wait_for("document.readyState === 'complete'")

    def resize(self, width: int, height: int, scale: float = 1.0) -> None:
        size = {"width": width, "height": height, "deviceScaleFactor": scale}
        self.call("Emulation.setDeviceMetricsOverride", mobile=width < 600, **size)

    def prefer(self, scheme: str) -> None:
        self.call("Emulation.setEmulatedMedia", features=[{"name": MEDIA, "value": scheme}])

    def press(self, key: str, modifiers: int = 0) -> None:
        code = {"windowsVirtualKeyCode": KEYS[key], "key": key, "code": key}
        text = {"text": "\r"} if key == "Enter" else {}
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, modifiers=modifiers, **code, **text)

    # --- what a person sees --------------------------------------------------------------------

    def value(self, expression: str) -> Any:
        """Of a JavaScript expression in the page."""
        asked = {"expression": expression, "returnByValue": True, "awaitPromise": True}
        result = self.call("Runtime.evaluate", **asked)
        if "exceptionDetails" in result:
            raise Failed(result["exceptionDetails"])
        return result["result"].get("value")

    def text(self, selector: str) -> str:
        found: str = self.value(f"document.querySelector({json.dumps(selector)}).textContent")
        return found

    def wait_for(self, expression: str, seconds: float = 15.0) -> Any:
        """Until the expression is true in the page; its value."""
        end = time.monotonic() + seconds
        while True:
            try:
                found = self.value(expression)
            except Failed as error:  # perhaps amid a change to another page
                found, why = None, str(error)
            else:
                why = f"is {found!r}"
            if found:
                return found
            assert time.monotonic() < end, f"{expression}: {why}"
            time.sleep(0.05)

    def shoot(self, file: Path, *, whole: bool = True) -> None:
        shot = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        file.write_bytes(base64.b64decode(shot["data"]))


class Browser:
    def __init__(self, address: str) -> None:
        self._address = address

    @contextmanager
    def page(self) -> Iterator[Page]:
        new = urllib.request.Request(f"http://{self._address}/json/new?about:blank", method="PUT")
        with urllib.request.urlopen(new, timeout=ANSWER_S) as answer:
            target = json.load(answer)
        with connect(target["webSocketDebuggerUrl"], max_size=None) as link:
            page = Page(link)
            try:
                yield page
            finally:
                page.call("Page.close")


@contextmanager
def running_browser(program: str, folder: Path) -> Iterator[Browser]:
    """``folder`` is where it keeps what it remembers."""
    command = [program, *FLAGS, f"--user-data-dir={folder}", "about:blank"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            for line in process.stderr:
                if line.startswith("DevTools listening on ws://"):
                    break
            else:
                raise AssertionError(f"{program} did not start")
            yield Browser(line.split("/")[2])
        finally:
            process.kill()
