"""The page of docs/tutorial.md works: in Chromium, with a microphone that plays a file, it shows what the server sends."""

import functools
import re
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.support.clients import chromium
from tests.support.clients.live_server import audio_file, live_server, tone, wait_until
from tests.support.fakes.fake_engine import FakeEngine

TUTORIAL = (Path(__file__).parents[2] / "docs" / "tutorial.md").read_text()
PAGES = re.findall(r"^```html\n(.*?)^```$", TUTORIAL, re.MULTILINE | re.DOTALL)


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def folder_server(tmp_path: Path) -> Iterator[int]:
    """Serve the folder, as the reader does by `http.server`; yield the port."""
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(tmp_path))) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server.server_address[1]
        server.shutdown()


@pytest.mark.skipif(chromium.PROGRAM is None, reason="there is no Chromium")
def test_the_page_shows_live_text(tmp_path: Path, folder_server: int) -> None:
    (page,) = PAGES
    microphone = tmp_path / "microphone.wav"
    microphone.write_bytes(audio_file(tone(20.0, 48_000), 48_000, "WAV"))
    origin = f"http://localhost:{folder_server}"
    with live_server(FakeEngine(), allowed_origins=origin) as server:
        (tmp_path / "live.html").write_text(page.replace("127.0.0.1:8000", f"127.0.0.1:{server.port}"))
        with chromium.chromium(tmp_path / "profile", microphone) as browser:
            browser.load(f"{origin}/live.html")
            wait_until(lambda: bool(browser.run("document.readyState === 'complete'")))
            browser.run("document.getElementById('speak').click()")
            wait_until(lambda: str(browser.run("document.querySelector('p').textContent")).strip() != "")
            assert [each for each in browser.log if "favicon" not in each] == []
