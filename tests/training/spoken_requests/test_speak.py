"""Audio is made once, recordings are copied, and the manifest lists the requests whose audio is there."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import soundfile

from training.spoken_requests import speak
from training.spoken_requests.request import read_requests


class FakeKokoro:
    """Says everything as 0.1 s of silence, and counts."""

    spoken = 0

    def __init__(self, _folder: Path, _threads: int) -> None:
        pass

    def speak(self, _text: str, _voice: str, _speed: float) -> npt.NDArray[np.float32]:
        FakeKokoro.spoken += 1
        return np.zeros(2400, np.float32)


def test_audio_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speak, "Kokoro", FakeKokoro)
    requests = [each for each in read_requests(speak.REQUESTS) if each.half == "reported"]
    for request in requests:
        if request.recording is not None:
            file = tmp_path / "data" / request.recording
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(b"a recording")
    run = ["--data", str(tmp_path / "data"), "--models", str(tmp_path), "--out", str(tmp_path / "out")]
    speak.main([*run, "--minutes", "0"])
    recorded = read_requests(tmp_path / "out" / "manifest.jsonl")
    assert recorded == [request for request in requests if request.recording is not None]
    assert (tmp_path / "out" / recorded[0].audio).read_bytes() == b"a recording"
    speak.main(run)
    speak.main(run)
    assert read_requests(tmp_path / "out" / "manifest.jsonl") == requests
    assert FakeKokoro.spoken == len({request.audio for request in requests if request.recording is None})
    samples, rate_hz = soundfile.read(tmp_path / "out" / requests[0].audio)
    assert (len(samples), rate_hz) == (1600, 16_000)


def test_the_first_requests_have_each_kind_in_proportion() -> None:
    requests = [each for each in read_requests(speak.REQUESTS) if each.half == "reported"]
    first = speak.spread_kinds(requests)[: len(requests) // 2]
    for kind in {request.kind for request in requests}:
        total, early = (sum(request.kind == kind for request in each) for each in (requests, first))
        assert abs(early - total / 2) <= 1
