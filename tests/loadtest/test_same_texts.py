"""Two servers are found to give the same texts, or which ones differ."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from loadtest.same_texts import choose, main
from server.engine.types.events import Event
from server.engine.types.requests import InstructRequest
from tests.support.clients.live_server import audio_file, live_server, tone
from tests.support.fakes.fake_engine import FakeEngine


class Ears(FakeEngine):
    """Says how long the audio was."""

    def submit(self, request: InstructRequest, deliver: Callable[[Event], None]) -> None:
        self.text = f"{len(request.audio)} samples"
        super().submit(request, deliver)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rows = []
    for index, duration_s in enumerate([0.5, 0.6, 20.0]):
        name = f"{index}.wav"
        (tmp_path / name).write_bytes(audio_file(tone(min(duration_s, 1.0), 16_000), 16_000, "WAV"))
        rows.append(json.dumps({"file": name, "duration_s": duration_s}))
    (tmp_path / "eval.jsonl").write_text("\n".join(rows))
    return tmp_path


def compare(left: FakeEngine, right: FakeEngine, data: Path) -> int:
    with live_server(left) as one, live_server(right) as other:
        return main(["--left", one.url, "--right", other.url, "--data", str(data), "--clients", "2"])


def test_equal_servers(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare(FakeEngine(), FakeEngine(), data) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{name}: 2 of 2 texts are the same under {instruction!r}"
        for name in ("alone", "among 2")
        for instruction in ("Transcribe the speech to text.", "What is the speaker talking about?")
    ]


def test_what_differs_is_shown(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare(FakeEngine(), Ears(), data) == 1
    shown = capsys.readouterr().out
    assert "alone: 0 of 2 texts are the same under 'Transcribe the speech to text.'" in shown
    assert "0.wav, 'Transcribe the speech to text.'\n  hello world\n  8000 samples" in shown


def test_a_seed_chooses_the_same_recordings_none_too_long(data: Path) -> None:
    assert choose(data, 1, seed=1) == choose(data, 1, seed=1)
    assert sorted(each.name for each in choose(data, 9, seed=1)) == ["0.wav", "1.wav"]
