"""Clients that people use, each in a process of its own, give the text that the server's scripted engine wrote.

They need other versions of packages than the server does, and live in an environment of their own: `make test-clients`.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import soundfile

from tests.support.clients.live_server import LiveServer, live_server, wait_until
from tests.support.fakes.fake_engine import FakeEngine

pytestmark = pytest.mark.clients

ROOT = Path(__file__).parents[2]
PROGRAMS = Path(__file__).with_name("programs")
CLIENTS = Path(os.environ.get("CLIENTS", ROOT / ".venv-clients")).resolve()
CLIP = ROOT / "tests" / "clips" / "ljspeech-LJ001-0016.flac"
TEXT = "The Middle Ages brought calligraphy to perfection."
SPOKEN = "Transcribe the speech to text. 0"
"""The first utterance of a live session, as the scripted engine answers it."""
TIMEOUT_S = 120.0
WAYS = [
    ("livekit_client.py", "openai-file", TEXT),
    ("livekit_client.py", "openai-live", SPOKEN),
    ("livekit_client.py", "deepgram-file", TEXT),
    ("livekit_client.py", "deepgram-live", SPOKEN),
    ("pipecat_client.py", "openai-file", TEXT),
    ("pipecat_client.py", "openai-live", SPOKEN),
    ("pipecat_client.py", "deepgram-live", SPOKEN),
    ("agents_client.py", "file", TEXT),
    ("agents_client.py", "live", SPOKEN),
    ("litellm_client.py", "file", TEXT),
    ("litellm_client.py", "chat", TEXT),
    ("deepgram_client.py", "file", TEXT),
    ("deepgram_client.py", "live", SPOKEN),
    ("openai_client.mjs", "file", TEXT),
    ("openai_client.mjs", "stream", TEXT),
    ("openai_client.mjs", "chat", TEXT),
]


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    engine = FakeEngine()
    engine.text = TEXT
    with live_server(engine, wyoming_port=0) as running:
        wait_until(lambda: engine.stats().ready)
        yield running


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recording") / "speech.wav"
    samples, rate_hz = soundfile.read(CLIP, dtype="int16")
    soundfile.write(path, samples, rate_hz, subtype="PCM_16")
    return path


def run(command: list[str]) -> str:
    environment = {**os.environ, "CLIENTS": str(CLIENTS), "NO_PROXY": "127.0.0.1", "OPENAI_API_KEY": "unused"}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@pytest.mark.parametrize(("program", "way", "text"), WAYS, ids=[f"{program}-{way}" for program, way, _ in WAYS])
def test_a_client_gets_the_text(server: LiveServer, recording: Path, program: str, way: str, text: str) -> None:
    interpreter = CLIENTS / "bin" / "python" if program.endswith(".py") else shutil.which("node")
    assert text in run([str(interpreter), str(PROGRAMS / program), way, server.url, str(recording)])


def test_home_assistants_protocol_gets_the_text(server: LiveServer, recording: Path) -> None:
    address = f"tcp://127.0.0.1:{server.other_ports[0]}"
    command = [str(CLIENTS / "bin" / "python"), str(PROGRAMS / "wyoming_client.py"), "tcp", address, str(recording)]
    assert SPOKEN in run(command)


def test_curl_gets_the_text(server: LiveServer, recording: Path) -> None:
    fields = ["-F", f"file=@{recording}", "-F", "model=whisper-1", "-F", "response_format=text"]
    assert run(["curl", "--silent", "--fail", f"{server.url}/v1/audio/transcriptions", *fields]).strip() == TEXT
