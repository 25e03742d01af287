"""Long files for tests, and the answers to them."""

import contextlib
import json
from collections.abc import Iterator
from typing import Any
from unittest import mock

import httpx
import numpy as np
import numpy.typing as npt

from server.audio.sandbox import Decoder
from server.audio.types import Samples
from server.engine.types.requests import Audio
from tests.support.clients.live_server import LiveServer, audio_file
from tests.support.fakes.fake_engine import FakeEngine
from tests.support.fakes.fake_live import FakeSession

RATE_HZ = 16_000


def recording(duration_s: float, container: str = "FLAC") -> bytes:
    """Return a file of a little noise, in which no two parts are the same."""
    noise = np.random.default_rng(0).normal(0, 0.1, round(duration_s * RATE_HZ)).astype(np.float32)
    return audio_file(noise, RATE_HZ, container, "PCM_16")


def transcript(seconds: int, instruction: str = "Transcribe.") -> str:
    """Return the text of the scripted engine for audio of this length."""
    return " ".join(f"{instruction} {number}" for number in range(seconds))


def heard(session: FakeSession) -> npt.NDArray[np.float32]:
    """Return all samples that were pushed."""
    return np.concatenate([item.samples for item in session.inputs if isinstance(item, Audio)])


@contextlib.contextmanager
def streaming(server: LiveServer, audio: bytes, instruction: str = "Transcribe.", **fields: str) -> Iterator[httpx.Response]:
    """Return the reply to a streamed request, not read yet."""
    form = {"instruction": instruction, "stream": "true", **fields}
    with server.client.stream("POST", "/v1/instruct", files={"audio": ("clip", audio)}, data=form) as response:
        yield response


def events_of(response: httpx.Response) -> Iterator[dict[str, Any]]:
    """Yield the events as they come."""
    return (json.loads(line.removeprefix("data: ")) for line in response.iter_lines() if line.startswith("data: "))


class Ledger:
    """The most seconds of audio that were decoded beyond the audio that the engine had listened to."""

    def __init__(self, engine: FakeEngine) -> None:
        self.decoded_s = 0.0
        self.most_s = 0.0
        self._engine = engine

    @contextlib.contextmanager
    def kept(self) -> Iterator["Ledger"]:
        """Count the audio from decode processes within the block."""
        read = Decoder.read

        async def counted(decoder: Decoder, count: int) -> tuple[int, Samples]:
            status, samples = await read(decoder, count)
            self.decoded_s += len(samples) / RATE_HZ
            self.most_s = max(self.most_s, self.decoded_s - sum(each.audio_s for each in self._engine.sessions.values()))
            return status, samples

        with mock.patch.object(Decoder, "read", counted):
            yield self
