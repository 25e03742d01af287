"""`thinbridge mic` against a scripted server: the audio sent and its pace, the output, and the end."""

import contextlib
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from server import cli
from server.client.mic import DIM, PLAIN, fit_line
from tests.support.clients.live_server import audio_file, live_server, tone, wait_until
from tests.support.fakes.fake_engine import FakeEngine
from tests.support.fakes.scripted_stream import Event, ScriptedServer, scripted_server

ROOT = Path(__file__).parents[3]
RATE_HZ = 16_000
SPOKEN = np.concatenate([tone(0.8, RATE_HZ), np.zeros(RATE_HZ, np.float32), tone(0.6, RATE_HZ), np.zeros(RATE_HZ, np.float32)])
RAW = (SPOKEN * 32767).astype("<i2").tobytes()
TEXTS = ["alpha bravo charlie", "alpha bravo"]


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with scripted_server() as scripted:
        yield scripted


@pytest.fixture
def clip(tmp_path: Path) -> str:
    path = tmp_path / "clip.flac"
    path.write_bytes(audio_file(SPOKEN, RATE_HZ, "FLAC"))
    return str(path)


@contextlib.contextmanager
def mic(*arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run the command as a process, with pipes."""
    command = [sys.executable, "-m", "server", "mic", *arguments]
    with subprocess.Popen(command, cwd=ROOT, stdin=-1, stdout=-1, stderr=-1) as process:
        try:
            yield process
        finally:
            process.kill()


def test_a_file_is_played_and_answered(server: ScriptedServer, clip: str, capsys: pytest.CaptureFixture[str]) -> None:
    started_s = time.monotonic()
    assert cli.main(["mic", clip, "--url", server.url, "-i", "Say it.", "--speed", "4"]) == 0
    assert time.monotonic() - started_s >= len(SPOKEN) / RATE_HZ / 4
    captured = capsys.readouterr()
    assert [line.split("  [")[0].split(" s  ")[1] for line in captured.out.splitlines()] == TEXTS
    assert captured.err.startswith("2 utterances in 3.4 s of audio\nend of speech to answer: median ")
    assert "onset of speech to first text: median " in captured.err
    assert server.starts == [{"type": "start", "sample_rate_hz": RATE_HZ, "instruction": "Say it."}]
    sent = b"".join(server.audio)
    assert np.abs(np.frombuffer(sent, "<i2") - np.frombuffer(RAW, "<i2").astype(int)).max() <= 1
    assert server.messages == [{"type": "end"}]


def test_every_event_as_json(server: ScriptedServer, clip: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["mic", clip, "--url", server.url, "--speed", "0", "--json"]) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [event["text"] for event in events if event["type"] == "final"] == TEXTS
    assert (events[0]["type"], events[-1]["type"]) == ("ready", "ended")
    arrivals_s = [event["received_s"] for event in events[1:]]
    assert arrivals_s == sorted(arrivals_s)


@pytest.mark.parametrize(
    ("data", "arguments", "rate_hz"),
    [
        (RAW, [], RATE_HZ),
        (RAW, ["--rate", "8000"], 8_000),
        (audio_file(SPOKEN, RATE_HZ, "FLAC"), [], RATE_HZ),
        (audio_file(SPOKEN, RATE_HZ, "OGG", "VORBIS"), [], RATE_HZ),
        (RAW[:-1], [], RATE_HZ),
    ],
    ids=["raw", "raw at another rate", "a FLAC file", "an Ogg file", "half a sample at the end"],
)
def test_stdin(server: ScriptedServer, data: bytes, arguments: list[str], rate_hz: int) -> None:
    with mic("-", "--url", server.url, "--speed", "0", *arguments) as process:
        out, errors = process.communicate(data, timeout=60)
    assert process.returncode == 0, errors
    assert server.starts[0]["sample_rate_hz"] == rate_hz
    # A decoder of Vorbis drops half a block at the beginning.
    assert abs(len(b"".join(server.audio)) - len(RAW)) <= (512 if data.startswith(b"OggS") else 2)
    assert len(out.splitlines()) == 2


def test_a_microphone_is_heard_while_it_is_open(server: ScriptedServer) -> None:
    with mic("-", "--url", server.url) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(RAW[: 2 * round(1.6 * RATE_HZ)])
        process.stdin.flush()
        assert TEXTS[0].encode() in process.stdout.readline()
        process.stdin.close()
        assert process.wait(20) == 0


def speak(process: subprocess.Popen[bytes]) -> None:
    """Return once the server has received audio; stdin stays open."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(RAW[: 2 * round(0.6 * RATE_HZ)])
    process.stdin.flush()
    while b"speech_started" not in process.stdout.readline():
        pass


def test_ctrl_c_ends_the_audio_and_waits_for_the_answer(server: ScriptedServer) -> None:
    with mic("-", "--url", server.url, "--json") as process:
        speak(process)
        process.send_signal(signal.SIGINT)
        assert process.stdout is not None
        events = [json.loads(line)["type"] for line in process.stdout]
        assert process.wait(20) == 0
    assert events[-2:] == ["final", "ended"]


@pytest.mark.parametrize("inherited", [signal.default_int_handler, signal.SIG_IGN], ids=["in front", "in the background"])
def test_a_second_ctrl_c_waits_for_nothing(server: ScriptedServer, inherited: Any) -> None:
    may_answer = threading.Event()

    def hold(event: Event) -> list[Event]:
        if event["type"] == "final":
            may_answer.wait(60)
        return [event]

    server.twist = hold
    before = signal.signal(signal.SIGINT, inherited)
    with mic("-", "--url", server.url, "--json") as process:
        signal.signal(signal.SIGINT, before)
        speak(process)
        process.send_signal(signal.SIGINT)
        wait_until(lambda: server.messages == [{"type": "end"}])
        process.send_signal(signal.SIGINT)
        try:
            assert process.wait(20) == 130
        finally:
            may_answer.set()


def test_refusals_and_failures_are_told(server: ScriptedServer, clip: str, capsys: pytest.CaptureFixture[str]) -> None:
    server.refusal = (429, "overloaded")
    assert cli.main(["mic", clip, "--url", server.url]) == 2
    assert capsys.readouterr().err == "thinbridge: No.\n"
    server.refusal = None

    def fail(event: Event) -> list[Event]:
        error = {"message": "It broke.", "type": "server_error", "param": None, "code": "engine_failed"}
        return [{**event, "type": "error", "error": error, "fatal": False}] if event["type"] == "final" else [event]

    server.twist = fail
    assert cli.main(["mic", clip, "--url", server.url, "--speed", "0"]) == 1
    assert capsys.readouterr().err.startswith("It broke.\nIt broke.\n0 utterances")


def test_a_session_that_the_server_drops_is_a_failure(clip: str, capsys: pytest.CaptureFixture[str]) -> None:
    with scripted_server(twist=lambda event: [] if event["type"] == "ended" else [event], close_code=1011) as server:
        assert cli.main(["mic", clip, "--url", server.url, "--speed", "0"]) == 1
    assert "The server closed the session" in capsys.readouterr().err


def test_where_there_is_no_server_or_no_file(server: ScriptedServer, clip: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["mic", clip, "--url", "http://127.0.0.1:1"]) == 2
    assert "`thinbridge serve` starts one" in capsys.readouterr().err
    assert cli.main(["mic", "absent.wav", "--url", server.url]) == 2
    assert capsys.readouterr().err == "thinbridge: absent.wav: No such file or directory\n"
    assert cli.main(["mic", __file__, "--url", server.url]) == 2
    assert "no format that is read" in capsys.readouterr().err
    assert server.starts == []


@pytest.mark.parametrize("arguments", [["--speed", "-1"], ["--speed", "inf"], ["--rate", "0"]])
def test_options_out_of_range(arguments: list[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(["mic", "-", *arguments])


def test_partial_text_fits_on_one_line() -> None:
    assert fit_line("so far", " and on", 20) == f"so far{DIM} and on{PLAIN}"
    assert fit_line("so far", " and on", 10) == f"…ar{DIM} and on{PLAIN}"
    assert fit_line("so far", " and on", 4) == f"…{DIM} an{PLAIN}"
    assert fit_line("a\x1b[31mb\n", "", 20) == f"a[31mb{DIM}{PLAIN}"


def test_the_real_edge_understands_it(clip: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The scripted engine makes an utterance of every second."""
    engine = FakeEngine()
    with live_server(engine) as server:
        wait_until(lambda: engine.stats().ready)
        assert cli.main(["mic", clip, "--url", server.url, "-i", "Say it.", "--speed", "0"]) == 0
    texts = [line.split("  [")[0].split(" s  ")[1] for line in capsys.readouterr().out.splitlines()]
    assert texts == ["Say it. 0", "Say it. 1", "Say it. 2", "Say it. 3"]


def test_a_server_with_keys_gets_the_key_of_the_environment(
    clip: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = FakeEngine()
    with live_server(engine, api_keys="k" * 16) as server:
        wait_until(lambda: engine.stats().ready)
        command = ["mic", clip, "--url", server.url, "--speed", "0"]
        assert cli.main(command) == 2
        assert "needs an API key" in capsys.readouterr().err
        monkeypatch.setenv("THINBRIDGE_API_KEY", "k" * 16)
        assert cli.main(command) == 0
