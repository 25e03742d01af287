"""A headless Chromium with a microphone that plays a file, driven over its DevTools protocol."""

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
from typing import Any

import httpx
from websockets.sync.client import ClientConnection, connect

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
START_TIMEOUT_S = 30.0
FAR_HOST = "thinbridge.test"
"""A name of this machine that the browser does not know for its own."""


class Page:
    """One page of the browser."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._numbers = itertools.count(1)
        self.log: list[str] = []
        for domain in ("Page", "Runtime", "Log"):
            self._ask(f"{domain}.enable")

    def open(self, url: str) -> None:
        """Load an address and wait for it."""
        self._ask("Page.navigate", url=url)
        self.wait_for("document.readyState === 'complete' && location.href !== 'about:blank'")

    def run(self, script: str) -> Any:
        """Return the value of an expression or of its promise, as if a user had asked for it. Raises `RuntimeError`."""
        result = self._ask("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True, userGesture=True)
        if "exceptionDetails" in result:
            raise RuntimeError(str(result["exceptionDetails"]))
        return result["result"].get("value")

    def wait_for(self, condition: str, timeout_s: float = 20.0) -> None:
        """Return once an expression is true. Raises `TimeoutError` with what the page logged."""
        deadline_s = time.monotonic() + timeout_s
        while not self.run(condition):
            if time.monotonic() > deadline_s:
                raise TimeoutError(
                    f"{condition} did not come true; the page says {self.run('document.body.innerText')!r}, {self.log}"
                )
            time.sleep(0.05)

    def text(self, selector: str) -> str:
        """Return the text of an element."""
        return str(self.run(f"document.querySelector({selector!r}).innerText"))

    def click(self, selector: str) -> None:
        self.run(f"document.querySelector({selector!r}).click()")

    def screenshot(self, path: Path) -> None:
        """Return a screenshot as PNG."""
        path.write_bytes(base64.b64decode(self._ask("Page.captureScreenshot")["data"]))

    def _ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self._numbers)
        self._connection.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._connection.recv(timeout=30))
            if message.get("id") == number:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']}")
                result: dict[str, Any] = message["result"]
                return result
            if message.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded"):
                self.log.append(json.dumps(message["params"]))


@contextlib.contextmanager
def browser(profile: Path, microphone: Path | None) -> Iterator[Page]:
    """Open an empty page until the block ends. The microphone is a WAV file, played once; without one its use is refused."""
    if PROGRAM is None:
        raise FileNotFoundError("chromium")
    sound = [f"--use-file-for-fake-audio-capture={microphone}%noloop"] if microphone else []
    access = "--use-fake-ui-for-media-stream" if microphone else "--deny-permission-prompts"
    command = [PROGRAM, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
    command += ["--remote-debugging-port=0", f"--user-data-dir={profile}", "--window-size=900,1000"]
    command += [f"--host-resolver-rules=MAP {FAR_HOST} 127.0.0.1", "--use-fake-device-for-media-stream", access, *sound]
    with subprocess.Popen([*command, "about:blank"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            with connect(_page_address(profile, process), proxy=None, compression=None, max_size=2**26) as connection:
                yield Page(connection)
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
    raise TimeoutError("the browser did not start")
