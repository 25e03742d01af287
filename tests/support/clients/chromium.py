"""Chromium with a microphone that plays a file, driven over its DevTools protocol."""

import base64
import contextlib
import itertools
import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import httpx
from websockets.sync.client import ClientConnection, connect

from tests.support.clients.browser import ANSWER_TIMEOUT_S, FAR_HOST, START_TIMEOUT_S, Page

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class ChromiumPage(Page):
    """A page of Chromium."""

    def __init__(self, connection: ClientConnection) -> None:
        super().__init__()
        self._connection = connection
        self._numbers = itertools.count(1)
        for domain in ("Page", "Runtime", "Log"):
            self._ask(f"{domain}.enable")

    def load(self, url: str) -> None:
        self._ask("Page.navigate", url=url)

    def run(self, script: str) -> Any:
        result = self._ask("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True, userGesture=True)
        if "exceptionDetails" in result:
            raise RuntimeError(str(result["exceptionDetails"]))
        return result["result"].get("value")

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self._ask("Page.captureScreenshot")["data"]))

    def resize(self, width: int, height: int) -> None:
        """Show the page in a window of this size."""
        self._ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def prefer(self, scheme: Literal["light", "dark"]) -> None:
        """Act for a user who prefers these colours."""
        self._ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def press(self, key: str, code: str, text: str = "") -> None:
        """Press and release a key, such as `Tab`; `text` is what it types."""
        number = {"Tab": 9, "Enter": 13, "ArrowRight": 39}.get(key, 0)
        names = {"key": key, "code": code, "windowsVirtualKeyCode": number}
        self._ask("Input.dispatchKeyEvent", type="keyDown", text=text, **names)
        self._ask("Input.dispatchKeyEvent", type="keyUp", **names)

    def accessible_names(self) -> list[tuple[str, str]]:
        """Return role and name of each element that a screen reader stops at."""
        self._ask("Accessibility.enable")
        nodes = self._ask("Accessibility.getFullAXTree")["nodes"]
        return [(node["role"]["value"], node.get("name", {}).get("value", "")) for node in nodes if not node["ignored"]]

    def _ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self._numbers)
        self._connection.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._connection.recv(timeout=ANSWER_TIMEOUT_S))
            if message.get("id") == number:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']}")
                result: dict[str, Any] = message["result"]
                return result
            logged = message.get("params", {}).get("entry", {}).get("level") in ("warning", "error")
            if message.get("method") == "Runtime.exceptionThrown" or logged:
                self.log.append(json.dumps(message["params"]))


@contextlib.contextmanager
def chromium(profile: Path, microphone: Path | None) -> Iterator[ChromiumPage]:
    """Open an empty page until the block ends. The microphone is a WAV file, played once; without one its use is refused."""
    if PROGRAM is None:
        raise FileNotFoundError("chromium")
    sound = [f"--use-file-for-fake-audio-capture={microphone}%noloop"] if microphone else []
    access = "--use-fake-ui-for-media-stream" if microphone else "--deny-permission-prompts"
    command = [PROGRAM, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
    command += ["--remote-debugging-port=0", f"--user-data-dir={profile}", "--window-size=900,1000", "--hide-scrollbars"]
    command += [f"--host-resolver-rules=MAP {FAR_HOST} 127.0.0.1", "--use-fake-device-for-media-stream", access, *sound]
    with subprocess.Popen([*command, "about:blank"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            with connect(_page_address(profile, process), proxy=None, compression=None, max_size=2**26) as connection:
                yield ChromiumPage(connection)
        finally:
            process.terminate()
            process.wait(20)


def _page_address(profile: Path, process: subprocess.Popen[bytes]) -> str:
    """Return the WebSocket of the first page, once the browser has written down its port."""
    deadline_s = time.monotonic() + START_TIMEOUT_S
    file = profile / "DevToolsActivePort"
    while time.monotonic() < deadline_s and process.poll() is None:
        if file.exists() and (port := re.match(r"\d+\n", file.read_text())):
            with contextlib.suppress(httpx.HTTPError):
                pages = httpx.get(f"http://127.0.0.1:{port[0].strip()}/json", trust_env=False).json()
                if found := [page["webSocketDebuggerUrl"] for page in pages if page["type"] == "page"]:
                    return str(found[0])
        time.sleep(0.05)
    raise TimeoutError("Chromium did not start")
