"""The page in a real browser, whose microphone plays a file: from a click to answers."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.support.clients import browser
from tests.support.clients.live_server import audio_file, live_server, tone, wait_until
from tests.support.fakes.fake_engine import FakeEngine
from tests.support.fakes.scripted_stream import Event, ScriptedServer, scripted_server

RATE_HZ = 16_000
SPOKEN = ((0.5, False), (1.2, True), (1.0, False), (0.8, True), (3.0, False))
IDLE = "!document.querySelector('#speak').disabled && document.querySelector('#speak').innerText === 'Speak'"

# Act as a browser that does not resample microphones.
FIXED_RATE = """(() => {
  const hear = AudioContext.prototype.createMediaStreamSource;
  AudioContext.prototype.createMediaStreamSource = function (stream) {
    if (this.sampleRate === 16000) throw new DOMException("", "NotSupportedError");
    return hear.call(this, stream);
  };
})()"""

pytestmark = pytest.mark.skipif(browser.PROGRAM is None, reason="no Chromium is installed")


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with scripted_server() as scripted:
        yield scripted


@pytest.fixture
def microphone(tmp_path: Path) -> Path:
    """Return the audio: two utterances of 1.2 and 0.8 s."""
    pieces = [
        tone(seconds, RATE_HZ) if is_loud else np.zeros(round(seconds * RATE_HZ), np.float32) for seconds, is_loud in SPOKEN
    ]
    path = tmp_path / "microphone.wav"
    path.write_bytes(audio_file(np.concatenate(pieces), RATE_HZ, "WAV", "PCM_16"))
    return path


@pytest.fixture
def page(tmp_path: Path, microphone: Path) -> Iterator[browser.Page]:
    with browser.browser(tmp_path / "profile", microphone) as opened:
        yield opened


def test_speech_becomes_text_while_it_is_spoken(server: ScriptedServer, page: browser.Page) -> None:
    page.open(server.url)
    page.click("#speak")
    page.wait_for("document.querySelector('#stable').innerText === 'alpha'")
    assert page.text("#tail").strip() in ("bravo", "")
    page.wait_for("document.querySelectorAll('#said li').length === 2")
    lines = page.text("#said").splitlines()
    assert lines[::2] == ["alpha bravo charlie delta", "alpha bravo charlie"]
    assert all("ms after the end of speech, first text" in line for line in lines[1::2])
    page.run("document.querySelector('#instruction').value = 'Say it.'")
    page.run("document.querySelector('#instruction').dispatchEvent(new Event('change'))")
    page.click("#speak")
    page.wait_for(IDLE)
    assert (page.text("#note"), page.text("#saying")) == ("", "")
    assert server.starts == [{"type": "start", "instruction": "Transcribe the speech to text.", "sample_rate_hz": RATE_HZ}]
    assert server.messages == [{"type": "update", "instruction": "Say it."}, {"type": "end"}]
    assert {len(piece) for piece in server.audio} == {2 * round(0.04 * RATE_HZ)}
    assert page.log == []


def test_a_browser_that_does_not_resample_sends_its_own_rate(server: ScriptedServer, page: browser.Page) -> None:
    page.open(server.url)
    page.run(FIXED_RATE)
    page.click("#speak")
    page.wait_for("document.querySelectorAll('#said li').length === 1")
    rate_hz = server.starts[0]["sample_rate_hz"]
    assert rate_hz in (44_100, 48_000)
    assert {len(piece) for piece in server.audio} == {2 * round(0.04 * rate_hz)}
    assert page.text("#said").splitlines()[0] == "alpha bravo charlie delta"


def test_an_error_is_shown_and_the_page_can_speak_again(server: ScriptedServer, page: browser.Page) -> None:
    def fail(event: Event) -> list[Event]:
        error = {"message": "It broke.", "type": "server_error", "param": None, "code": "engine_failed"}
        return [{"type": "error", "error": error, "request_id": "r", "fatal": True}] if event["type"] == "ended" else [event]

    server.twist = fail
    page.open(server.url)
    page.click("#speak")
    page.wait_for("document.querySelector('#note').innerText === 'Listening…'")
    page.click("#speak")
    page.wait_for(IDLE)
    assert page.text("#note") == "It broke. (engine_failed, request r)"
    server.refusal = (429, "overloaded")
    page.click("#speak")
    page.wait_for(f"{IDLE} && document.querySelector('#note').innerText.includes('did not take the session')")


def test_a_recording_is_made_as_before(server: ScriptedServer, page: browser.Page) -> None:
    page.open(server.url)
    page.click("#record")
    page.wait_for("document.querySelector('#note').innerText === 'Recording…'")
    page.run("new Promise((done) => setTimeout(done, 300))")
    page.click("#record")
    page.wait_for("!document.querySelector('#send').disabled")
    assert page.text("#chosen").startswith("recording.wav (")
    page.wait_for("document.querySelector('#player').duration > 0.1")


def test_a_page_from_elsewhere_says_why_it_has_no_microphone(server: ScriptedServer, page: browser.Page) -> None:
    page.open(server.url.replace("127.0.0.1", browser.FAR_HOST))
    page.click("#speak")
    page.wait_for("document.querySelector('#note').innerText.includes('only to https pages and to localhost')")
    assert page.run(IDLE)


def test_a_microphone_that_is_refused(server: ScriptedServer, tmp_path: Path) -> None:
    with browser.browser(tmp_path / "profile", microphone=None) as page:
        page.open(server.url)
        page.click("#speak")
        page.wait_for("document.querySelector('#note').innerText === 'The browser does not let this page use the microphone.'")
        assert page.run(IDLE)
    assert server.starts == []


def test_the_real_edge_understands_the_page(page: browser.Page) -> None:
    """The scripted engine makes an utterance of every second."""
    engine = FakeEngine()
    with live_server(engine) as live:
        wait_until(lambda: engine.stats().ready)
        page.open(live.url)
        page.click("#speak")
        page.wait_for("document.querySelectorAll('#said li').length === 2")
        assert page.text("#said").splitlines()[::2] == ["Transcribe the speech to text. 0", "Transcribe the speech to text. 1"]
        page.click("#speak")
        page.wait_for(IDLE)
        assert (page.text("#note"), page.log) == ("", [])
