"""Chromium without a window, driven over its DevTools protocol as a person with a keyboard would."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--remote-debugging-port=0",
)  # fmt: skip
START_SECONDS = 30
KEYS = {"Tab": 9, "Enter": 13, "Escape": 27, " ": 32, "ArrowLeft": 37, "ArrowRight": 39, "ArrowDown": 40}


class Browser:
    """A page in Chromium; every call waits for its answer.

    Attributes:
        complaints: console messages of level error, and exceptions.
        requests: URLs that the page asked for, but for data: ones.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._loop, self._socket, self._number = loop, socket, 0
        self.complaints: list[str] = []
        self.requests: list[str] = []
        for domain in ("Page", "Log", "Runtime", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command of the protocol."""
        return self._loop.run_until_complete(self._call(method, parameters))

    def open(self, page: Path, width: int, dark: bool) -> None:
        """Loads a page as a screen of this width shows it; below 500 as a telephone."""
        screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        self.call("Emulation.setDeviceMetricsOverride", **screen)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.complaints.clear()
        self.requests.clear()
        self.call("Page.navigate", url=page.as_uri())
        deadline = time.monotonic() + START_SECONDS
        while self.value("document.readyState") != "complete" or "report" not in self.value("location.href"):
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def value(self, expression: str) -> Any:
        """Of a JavaScript expression."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def wait(self, expression: str) -> None:
        """Until it is true: events come after the key that caused them."""
        deadline = time.monotonic() + 5
        while not self.value(expression):
            assert time.monotonic() < deadline, f"{expression}: does not become true"
            time.sleep(0.01)

    def press(self, key: str, times: int = 1) -> None:
        """A key, down and up."""
        for _ in range(times):
            text = {"Enter": "\r", " ": " "}.get(key, key if len(key) == 1 else "")
            common: dict[str, Any] = {"key": key, "windowsVirtualKeyCode": KEYS.get(key, 0)}
            if key in KEYS:
                common["code"] = "Space" if key == " " else key
            down = {"type": "keyDown", "text": text} if text else {"type": "rawKeyDown"}
            self.call("Input.dispatchKeyEvent", **down, **common)
            self.call("Input.dispatchKeyEvent", type="keyUp", **common)

    def type(self, text: str) -> None:
        """Letters, one after the other."""
        for letter in text:
            self.press(letter)

    def tab_to(self, selector: str, most: int = 400) -> None:
        """Presses Tab until the focus is on an element that matches."""
        for _ in range(most):
            self.press("Tab")
            if self.value(f"document.activeElement.matches({json.dumps(selector)})"):
                return
        raise AssertionError(f"{selector}: cannot be reached by Tab")

    async def _call(self, method: str, parameters: dict[str, Any]) -> dict[str, Any]:
        self._number += 1
        await self._socket.send_json({"id": self._number, "method": method, "params": parameters})
        while True:
            message = json.loads((await asyncio.wait_for(self._socket.receive(), START_SECONDS)).data)
            if message.get("id") == self._number:
                assert "error" not in message, message
                return message["result"]
            self._note(message.get("method"), message.get("params", {}))

    def _note(self, method: str | None, told: dict[str, Any]) -> None:
        if method == "Log.entryAdded" and told["entry"]["level"] == "error":
            self.complaints.append(told["entry"]["text"])
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(told["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and told["type"] in ("error", "assert"):
            self.complaints.append(json.dumps(told["args"]))
        elif method == "Network.requestWillBeSent" and not told["request"]["url"].startswith("data:"):
            self.requests.append(told["request"]["url"])


@contextmanager
def chromium(folder: Path) -> Iterator[Browser]:
    """A browser with its profile in `folder`, ended at the end of the block."""
    command = [shutil.which("chromium") or "chromium", *FLAGS, f"--user-data-dir={folder}", "about:blank"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    loop = asyncio.new_event_loop()
    session = None
    try:
        port = _port(folder / "DevToolsActivePort", process)
        session, socket = loop.run_until_complete(_connect(port))
        yield Browser(loop, socket)
    finally:
        if session is not None:
            loop.run_until_complete(session.close())
        loop.close()
        process.terminate()
        process.wait(START_SECONDS)


def _port(file: Path, process: subprocess.Popen[bytes]) -> int:
    deadline = time.monotonic() + START_SECONDS
    while not (file.exists() and "\n" in file.read_text()):
        assert process.poll() is None, f"chromium ended with {process.returncode}"
        assert time.monotonic() < deadline, "chromium does not answer"
        time.sleep(0.05)
    return int(file.read_text().split("\n")[0])


async def _connect(port: int) -> tuple[aiohttp.ClientSession, aiohttp.ClientWebSocketResponse]:
    session = aiohttp.ClientSession()
    async with session.get(f"http://127.0.0.1:{port}/json") as answer:
        tabs = await answer.json()
    (url,) = [tab["webSocketDebuggerUrl"] for tab in tabs if tab["type"] == "page"]
    return session, await session.ws_connect(url, max_msg_size=0)
