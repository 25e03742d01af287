"""Firefox with a microphone that hums, driven over WebDriver BiDi (W3C)."""

import base64
import contextlib
import itertools
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

from tests.support.clients.browser import ANSWER_TIMEOUT_S, FAR_HOST, START_TIMEOUT_S, Page

PROGRAM = shutil.which("firefox") or shutil.which("firefox-esr")
PREFERENCES = {
    "media.navigator.streams.fake": True,  # the microphone hums without end
    "media.navigator.permission.disabled": True,
    "media.cubeb.force_mock_context": True,  # the clock of sounds goes on without a sound card
    "media.autoplay.default": 0,
    "network.proxy.type": 0,
    "network.dns.localDomains": FAR_HOST,
    "browser.shell.checkDefaultBrowser": False,
    "datareporting.policy.dataSubmissionEnabled": False,
    "app.update.disabledForTesting": True,
}


class FirefoxPage(Page):
    """A page of Firefox."""

    def __init__(self, connection: ClientConnection) -> None:
        super().__init__()
        self._connection = connection
        self._numbers = itertools.count(1)
        self._ask("session.new", capabilities={})
        self._ask("session.subscribe", events=["log.entryAdded"])
        self._context = self._ask("browsingContext.getTree", maxDepth=0)["contexts"][0]["context"]

    def load(self, url: str) -> None:
        self._ask("browsingContext.navigate", context=self._context, url=url, wait="complete")

    def run(self, script: str) -> Any:
        answer = self._ask(
            "script.evaluate",
            expression=f"(async () => JSON.stringify(await ({script})))()",
            target={"context": self._context},
            awaitPromise=True,
            userActivation=True,
        )
        if answer["type"] != "success":
            raise RuntimeError(str(answer["exceptionDetails"]))
        return json.loads(answer["result"].get("value", "null"))

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self._ask("browsingContext.captureScreenshot", context=self._context)["data"]))

    def _ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self._numbers)
        self._connection.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._connection.recv(timeout=ANSWER_TIMEOUT_S))
            if message.get("id") == number:
                if message["type"] == "error":
                    raise RuntimeError(f"{method}: {message['message']}")
                result: dict[str, Any] = message["result"]
                return result
            if message.get("method") == "log.entryAdded" and message["params"]["level"] in ("warn", "error"):
                self.log.append(json.dumps(message["params"]))


@contextlib.contextmanager
def firefox(profile: Path) -> Iterator[FirefoxPage]:
    """Open an empty page until the block ends."""
    if PROGRAM is None:
        raise FileNotFoundError("firefox")
    profile.mkdir(parents=True)
    lines = [f"user_pref({json.dumps(name)}, {json.dumps(value)});\n" for name, value in PREFERENCES.items()]
    (profile / "user.js").write_text("".join(lines))
    command = [PROGRAM, "--headless", "--no-remote", "--profile", str(profile), "--remote-debugging-port=0", "about:blank"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            with connect(_session_address(profile, process), proxy=None, compression=None, max_size=2**26) as connection:
                yield FirefoxPage(connection)
        finally:
            process.terminate()
            process.wait(20)


def _session_address(profile: Path, process: subprocess.Popen[bytes]) -> str:
    """Return the WebSocket for a new session, once the browser has written down its port."""
    deadline_s = time.monotonic() + START_TIMEOUT_S
    file = profile / "WebDriverBiDiServer.json"
    while time.monotonic() < deadline_s and process.poll() is None:
        if file.exists():
            with contextlib.suppress(ValueError):
                address = json.loads(file.read_text())
                return f"ws://{address['ws_host']}:{address['ws_port']}/session"
        time.sleep(0.05)
    raise TimeoutError("Firefox did not start")
