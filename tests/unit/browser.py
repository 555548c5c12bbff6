"""A page in a real browser without a screen: Chromium, spoken to by its DevTools protocol."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

SECONDS_TO_START = 60.0
NAMES = ("chromium", "chromium-browser", "google-chrome")


class Page:
    """Controls the page of one file. `complaints` are errors, warnings and refused requests of its console."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket, self._numbers = socket, itertools.count(1)
        self.complaints: list[str] = []
        self.requests: list[str] = []

    async def open(self, path: Path) -> None:
        for domain in ("Page", "Runtime", "Log", "Network"):
            await self._call(f"{domain}.enable")
        await self._call("Page.navigate", url=path.resolve().as_uri())
        while await self.value("document.readyState") != "complete":
            await asyncio.sleep(0.05)

    async def value(self, expression: str) -> Any:
        result = await self._call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    async def screenshot(self, scheme: str, width: int, height: int) -> bytes:
        """A PNG. scheme: light or dark."""
        await self._call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        await self._call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        return base64.b64decode((await self._call("Page.captureScreenshot", format="png"))["data"])

    async def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self._numbers)
        await self._socket.send_json({"id": number, "method": method, "params": parameters})
        while True:
            message = await self._socket.receive_json(timeout=SECONDS_TO_START)
            if message.get("id") == number:
                assert "error" not in message, message
                return message["result"]
            self._heard(message["method"], message["params"])

    def _heard(self, event: str, parameters: dict[str, Any]) -> None:
        if event == "Network.requestWillBeSent":
            self.requests.append(parameters["request"]["url"])
        elif event in ("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled"):
            self.complaints.append(json.dumps(parameters))


@asynccontextmanager
async def page() -> AsyncIterator[Page]:
    """Without the sandbox, which root in a container cannot have: for our own pages."""
    program = next(filter(None, map(shutil.which, NAMES)), None)
    assert program, f"none of {', '.join(NAMES)} is installed; run tests/install_system_packages.sh"
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:  # the browser may still write
        flags = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars", "--no-first-run")
        command = [program, *flags, "--remote-debugging-port=0", f"--user-data-dir={profile}", "about:blank"]
        browser = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            port = await asyncio.wait_for(_port(Path(profile) / "DevToolsActivePort"), SECONDS_TO_START)
            async with aiohttp.ClientSession() as session:
                async with session.get(f"http://127.0.0.1:{port}/json/list") as response:
                    target = next(entry for entry in await response.json() if entry["type"] == "page")
                async with session.ws_connect(target["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                    yield Page(socket)
        finally:
            browser.terminate()
            browser.wait(SECONDS_TO_START)


async def _port(path: Path) -> int:
    while not (path.exists() and path.read_text().count("\n")):
        await asyncio.sleep(0.05)
    return int(path.read_text().splitlines()[0])
