"""The page in real browsers, from a click to answers. Chromium's microphone plays a file, Firefox's hums."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.support.clients import chromium, firefox
from tests.support.clients.browser import FAR_HOST, Page
from tests.support.clients.chromium import ChromiumPage
from tests.support.clients.firefox import FirefoxPage
from tests.support.clients.live_server import LiveServer, audio_file, live_server, tone, wait_until
from tests.support.fakes.fake_engine import FakeEngine
from tests.support.fakes.scripted_stream import Event, ScriptedServer, scripted_server

RATE_HZ = 16_000
SPOKEN = ((0.5, False), (1.2, True), (1.0, False), (0.8, True), (3.0, False))
IDLE = "!document.querySelector('#speak').disabled && document.querySelector('#speak').innerText === 'Speak live'"
LISTENING = "document.querySelector('#note').innerText === 'Listening…'"
ANSWERED = "!document.querySelector('#times').hidden && document.querySelector('#progress').hidden"
READY = "document.querySelector('#state').innerText === 'Ready'"
TRANSCRIBE = "Transcribe the speech to text."
BEFORE_A_FILE = ("open-access", "file", "sample", "record", "speak", "instruction", "language", "copy")
NAMED_ROLES = ("button", "combobox", "textbox", "slider", "radio", "link", "region")
KEY = "a-key-of-the-tests-0123456789"

# Act as a browser that does not resample microphones.
FIXED_RATE = """(() => {
  const hear = AudioContext.prototype.createMediaStreamSource;
  AudioContext.prototype.createMediaStreamSource = function (stream) {
    if (this.sampleRate === 16000) throw new DOMException("", "NotSupportedError");
    return hear.call(this, stream);
  };
})()"""

needs_chromium = pytest.mark.skipif(chromium.PROGRAM is None, reason="no Chromium is installed")
needs_firefox = pytest.mark.skipif(firefox.PROGRAM is None, reason="no Firefox is installed")
pytestmark = pytest.mark.skipif(chromium.PROGRAM is None and firefox.PROGRAM is None, reason="no browser is installed")


@pytest.fixture
def scripted() -> Iterator[ScriptedServer]:
    with scripted_server() as server:
        yield server


@pytest.fixture
def engine(engine: FakeEngine) -> FakeEngine:
    engine.text = "Well, hello. World!"
    return engine


@pytest.fixture
def url(server: LiveServer) -> str:
    return server.url


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
def speaking(tmp_path: Path, microphone: Path) -> Iterator[ChromiumPage]:
    """Open a page whose microphone plays the audio from the first use on."""
    with chromium.chromium(tmp_path / "profile", microphone) as opened:
        yield opened


@pytest.fixture(scope="module")
def in_chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChromiumPage]:
    with chromium.chromium(tmp_path_factory.mktemp("chromium") / "profile", None) as opened:
        yield opened


@pytest.fixture(scope="module")
def in_firefox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FirefoxPage]:
    with firefox.firefox(tmp_path_factory.mktemp("firefox") / "profile") as opened:
        yield opened


@pytest.fixture(params=[pytest.param("in_chromium", marks=needs_chromium), pytest.param("in_firefox", marks=needs_firefox)])
def page(request: pytest.FixtureRequest) -> Page:
    page: Page = request.getfixturevalue(request.param)
    page.log.clear()
    return page


@needs_chromium
def test_speech_becomes_text_while_it_is_spoken(scripted: ScriptedServer, speaking: ChromiumPage) -> None:
    speaking.open(scripted.url)
    speaking.click("#speak")
    speaking.wait_for("document.querySelector('#stable').innerText === 'alpha'")
    assert speaking.text("#tail").strip() in ("bravo", "")
    speaking.wait_for("document.querySelectorAll('#said li').length === 2")
    lines = speaking.text("#said").splitlines()
    assert lines[::2] == ["alpha bravo charlie delta", "alpha bravo charlie"]
    assert all("ms after the end of speech, first text" in line for line in lines[1::2])
    speaking.run("document.querySelector('#instruction').value = 'Say it.'")
    speaking.run("document.querySelector('#instruction').dispatchEvent(new Event('change'))")
    speaking.click("#speak")
    speaking.wait_for(IDLE)
    assert (speaking.text("#note"), speaking.text("#saying")) == ("", "")
    assert scripted.starts == [{"type": "start", "instruction": TRANSCRIBE, "sample_rate_hz": RATE_HZ}]
    assert scripted.messages == [{"type": "update", "instruction": "Say it."}, {"type": "end"}]
    assert {len(piece) for piece in scripted.audio} == {2 * round(0.04 * RATE_HZ)}
    assert speaking.log == []


@needs_chromium
def test_a_browser_that_does_not_resample_sends_its_own_rate(scripted: ScriptedServer, speaking: ChromiumPage) -> None:
    speaking.open(scripted.url)
    speaking.run(FIXED_RATE)
    speaking.click("#speak")
    speaking.wait_for("document.querySelectorAll('#said li').length === 1")
    rate_hz = scripted.starts[0]["sample_rate_hz"]
    assert rate_hz in (44_100, 48_000)
    assert {len(piece) for piece in scripted.audio} == {2 * round(0.04 * rate_hz)}
    assert speaking.text("#said").splitlines()[0] == "alpha bravo charlie delta"


@needs_chromium
def test_an_error_is_shown_and_the_page_can_speak_again(scripted: ScriptedServer, speaking: ChromiumPage) -> None:
    def fail(event: Event) -> list[Event]:
        error = {"message": "It broke.", "type": "server_error", "param": None, "code": "engine_failed"}
        return [{"type": "error", "error": error, "request_id": "r", "fatal": True}] if event["type"] == "ended" else [event]

    scripted.twist = fail
    speaking.open(scripted.url)
    speaking.click("#speak")
    speaking.wait_for(LISTENING)
    speaking.click("#speak")
    speaking.wait_for(IDLE)
    assert speaking.text("#audio-error") == "It broke. (engine_failed, request r)"
    scripted.refusal = (429, "overloaded")
    speaking.click("#speak")
    speaking.wait_for(f"{IDLE} && document.querySelector('#audio-error').innerText.includes('did not take the session')")


@needs_chromium
def test_a_recording_can_be_sent(engine: FakeEngine, url: str, speaking: ChromiumPage) -> None:
    speaking.open(url)
    speaking.click("#record")
    speaking.wait_for("document.querySelector('#note').innerText === 'Recording…'")
    speaking.run("new Promise((done) => setTimeout(done, 300))")
    speaking.click("#record")
    speaking.wait_for("!document.querySelector('#send').disabled")
    assert speaking.text("#chosen") == "recording.wav"
    speaking.wait_for("document.querySelector('#player').duration > 0.1")
    speaking.click("#send")
    speaking.wait_for(ANSWERED)
    assert len(engine.submitted[0].audio) > 0.1 * RATE_HZ


@needs_firefox
def test_firefox_speaks(scripted: ScriptedServer, in_firefox: FirefoxPage) -> None:
    in_firefox.open(scripted.url)
    in_firefox.click("#speak")
    in_firefox.wait_for("document.querySelector('#stable').innerText.startsWith('alpha')")
    in_firefox.click("#speak")
    in_firefox.wait_for(IDLE)
    assert in_firefox.text("#said").startswith("alpha bravo")
    assert in_firefox.text("#audio-error") == ""


def test_a_page_from_elsewhere_says_why_it_has_no_microphone(scripted: ScriptedServer, page: Page) -> None:
    page.open(scripted.url.replace("127.0.0.1", FAR_HOST))
    page.click("#speak")
    page.wait_for("document.querySelector('#audio-error').innerText.includes('only to https pages and to localhost')")
    assert page.run(IDLE)


@needs_chromium
def test_a_microphone_that_is_refused(scripted: ScriptedServer, in_chromium: ChromiumPage) -> None:
    in_chromium.open(scripted.url)
    in_chromium.click("#speak")
    in_chromium.wait_for(
        "document.querySelector('#audio-error').innerText === 'The browser does not let this page use the microphone.'"
    )
    assert in_chromium.run(IDLE)
    assert scripted.starts == []


@needs_chromium
def test_the_real_edge_understands_the_page(url: str, speaking: ChromiumPage) -> None:
    """The scripted engine makes an utterance of every second."""
    speaking.open(url)
    speaking.wait_for(READY)
    speaking.click("#speak")
    speaking.wait_for("document.querySelectorAll('#said li').length === 2")
    assert speaking.text("#said").splitlines()[::2] == [f"{TRANSCRIBE} 0", f"{TRANSCRIBE} 1"]
    speaking.click("#speak")
    speaking.wait_for(IDLE)
    assert (speaking.text("#note"), speaking.log) == ("", [])


def test_the_first_answer_takes_one_click_and_its_words_light_up(engine: FakeEngine, url: str, page: Page) -> None:
    page.open(url)
    page.wait_for(READY)
    page.click("#sample")
    page.wait_for(ANSWERED)
    assert page.text("#text") == engine.text
    assert "2.1 s of audio" in page.text("#about")
    assert "in all" in page.text("#legend")
    page.run("document.querySelector('#text span:last-child').click()")
    page.wait_for("document.querySelector('#text .now')?.innerText === 'World!'")
    assert page.run("document.querySelectorAll('#text .past').length") == 2
    page.wait_for("document.querySelector('#player').paused")
    assert page.log == []


def test_an_example_is_one_click_too(engine: FakeEngine, url: str, page: Page) -> None:
    page.open(url)
    page.wait_for(READY)
    page.click("#examples button:last-child")
    page.wait_for(ANSWERED)
    (asked,) = engine.submitted
    assert asked.task.instruction == page.run("document.querySelector('#instruction').value") != TRANSCRIBE
    assert page.text("#examples [aria-pressed=true]") == "Summary"


def test_files_are_answered_in_turn(engine: FakeEngine, url: str, page: Page) -> None:
    page.open(url)
    page.wait_for(READY)
    page.run("""(async () => {
      const sound = await (await fetch('sample.flac')).blob(), files = new DataTransfer();
      files.items.add(new File([sound], 'one.flac'));
      files.items.add(new File(['not audio'], 'two.txt'));
      files.items.add(new File([sound], 'three.flac'));
      document.dispatchEvent(new DragEvent('drop', { dataTransfer: files, cancelable: true }));
    })()""")
    page.run("document.querySelector('#language').value = 'de'")
    page.click("#send")
    page.wait_for(ANSWERED)
    names, statuses = (
        page.run(f"[...document.querySelectorAll('#files span:{place}-child')].map((each) => each.innerText)")
        for place in ("first", "last")
    )
    assert names == ["one.flac", "two.txt", "three.flac"]
    assert [status.endswith("ms") for status in statuses] == [True, False, True]
    assert [each.task.language for each in engine.submitted] == ["de", "de"]
    page.click("#files li:nth-child(2) button")
    assert "undecodable_audio" in page.text("#audio-error")


def test_an_error_stands_beside_its_field(engine: FakeEngine, url: str, page: Page) -> None:
    page.open(url)
    page.wait_for(READY)
    page.run("document.querySelector('#instruction').value = ' '")
    page.click("#sample")
    page.wait_for("document.querySelector('#instruction-error').innerText !== ''")
    assert "invalid_instruction" in page.text("#instruction-error")
    assert page.run("document.querySelector('#instruction').ariaInvalid") == "true"
    page.click("#examples button")
    page.wait_for(ANSWERED)
    assert (page.text("#instruction-error"), page.text("#text")) == ("", engine.text)


def test_a_key_is_asked_for(page: Page) -> None:
    engine = FakeEngine()
    with live_server(engine, api_keys=KEY) as server:
        wait_until(lambda: engine.stats().ready)
        page.open(server.url)
        page.wait_for("document.querySelector('#state').innerText === 'An API key is needed.'")
        page.click("#sample")
        page.wait_for("document.querySelector('#access').matches(':popover-open')")
        assert "invalid_api_key" in page.text("#answer-error")
        page.run(f"document.querySelector('#key').value = '{KEY}'")
        page.run("['input', 'change'].forEach((kind) => document.querySelector('#key').dispatchEvent(new Event(kind)))")
        page.wait_for(READY)
        page.click("#send")
        page.wait_for(ANSWERED)
        assert page.text("#text") == engine.text
        page.run("sessionStorage.clear()")


@pytest.mark.parametrize("example", [0, 2])
@needs_chromium
def test_the_programs_that_it_shows_work(
    engine: FakeEngine, url: str, in_chromium: ChromiumPage, tmp_path: Path, example: int
) -> None:
    page = in_chromium
    page.open(url)
    page.wait_for(READY)
    page.run(f"document.querySelectorAll('#examples button')[{example}].click()")
    page.wait_for(ANSWERED)
    (tmp_path / "sample.flac").write_bytes(audio_file(tone(1.0, RATE_HZ), RATE_HZ, "FLAC"))
    environment = {**os.environ, "NO_PROXY": "127.0.0.1"}
    for name, command in (("curl", ["sh", "-c"]), ("Python", [sys.executable, "-c"]), ("OpenAI client", [sys.executable, "-c"])):
        engine.submitted.clear()
        page.click(f"#languages input[value='{name}']")
        program = [*command, page.text("#code")]
        ended = subprocess.run(program, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=True)
        assert engine.text in ended.stdout
        assert engine.submitted[0].task.instruction == page.run("document.querySelector('#instruction').value")


@needs_chromium
def test_it_is_used_by_keyboard_and_screen_reader(url: str, in_chromium: ChromiumPage) -> None:
    page = in_chromium
    page.open(url)
    page.wait_for(READY)
    stops: list[str] = []
    while "code" not in stops and len(stops) < 40:
        page.press("Tab", "Tab")
        stops.append(str(page.run("document.activeElement.id")))
    assert [each for each in stops if each] == [*BEFORE_A_FILE, "code"]
    page.run("document.querySelector('#sample').focus()")
    page.press("Enter", "Enter", "\r")
    page.wait_for(ANSWERED)
    page.run("document.querySelector('#seek').focus()")
    page.press("ArrowRight", "ArrowRight")
    page.wait_for("document.querySelector('#player').currentTime > 0")
    names = page.accessible_names()
    assert all(name for role, name in names if role in NAMED_ROLES), names
    assert {("slider", "Place in the recording"), ("region", "Answer"), ("button", "Play")} <= set(names)


def test_a_choice_of_models_is_shown_where_there_is_one(url: str, page: Page) -> None:
    page.open(url)
    page.wait_for(READY)
    assert page.run("document.querySelector('#model').hidden")
    first, second = FakeEngine(), FakeEngine()
    second.model_name, second.text = "second-model", "It was the second."
    with live_server([first, second]) as server:
        wait_until(lambda: first.stats().ready and second.stats().ready)
        page.open(server.url)
        page.wait_for(READY)
        assert page.run("[...document.querySelector('#model').options].map((each) => each.value)") == [
            "fake-model",
            second.model_name,
        ]
        page.run("document.querySelector('#model').value = 'second-model'")
        page.run("document.querySelector('#model').dispatchEvent(new Event('change'))")
        assert "model=second-model" in page.text("#code")
        page.click("#sample")
        page.wait_for(ANSWERED)
        assert page.text("#text") == second.text
