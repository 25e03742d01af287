"""The work of one request: audio that the engine takes in one piece, or longer audio, cut at its pauses.

Which of the two it is shows once the audio is decoded, as far as one piece may last.
"""

import asyncio
import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from server.audio.raw import RawFormat
from server.audio.sandbox import DecoderPool
from server.audio.stream import AudioStream, Channel
from server.engine.types.events import Basis, Done, Event, Segment
from server.engine.types.options import Scope, VoiceOptions
from server.engine.types.protocol import Engine
from server.engine.types.requests import InstructRequest
from server.jobs.events import ResultFuture
from server.jobs.long_audio import BLOCK_S, VOICE, CountAudio, LongAudioJob


class Job(Protocol):
    """The work of one request: started once, with one terminal event unless aborted before. Call `close` at the end.

    Once the terminal event has come, the length of the audio and the time of its decoding are known, and for long audio what the
    answer is based on, in how many sections, and the `utterances` whose texts it is joined of. `warnings` then says in sentences
    what of the audio was missing.
    """

    @property
    def id(self) -> str: ...

    @property
    def audio_s(self) -> float: ...

    @property
    def audio_decode_s(self) -> float: ...

    @property
    def basis(self) -> Basis | None: ...

    @property
    def sections(self) -> int | None: ...

    @property
    def utterances(self) -> tuple[Segment, ...]: ...

    @property
    def warnings(self) -> tuple[str, ...]: ...

    def start(self, on_event: Callable[[Event], None]) -> None:
        """Submit the work; `on_event` may be called on any thread. Raises a `ServeError` if the engine refuses at once."""
        ...

    def abort(self) -> None:
        """Stop the work because its client has left; no event comes any more."""
        ...

    def close(self) -> None:
        """Free the audio that is not decoded yet."""
        ...


@dataclass(frozen=True)
class ShortAudioJob:
    """Audio that the engine takes in one piece."""

    engine: Engine
    request: InstructRequest
    audio_decode_s: float
    count_audio: CountAudio
    warnings: tuple[str, ...] = ()
    basis: None = None
    sections: None = None
    utterances: tuple[()] = ()

    @property
    def id(self) -> str:
        return self.request.id

    @property
    def audio_s(self) -> float:
        return len(self.request.audio) / self.engine.sample_rate_hz

    def start(self, on_event: Callable[[Event], None]) -> None:
        self.engine.submit(self.request, on_event)
        self.count_audio(self.audio_s)

    def abort(self) -> None:
        self.engine.abort(self.request.id)

    def close(self) -> None:
        pass


async def build_job(
    engine: Engine,
    decode_pool: DecoderPool,
    file: bytes,
    request: InstructRequest,
    *,
    cut_at_pauses: bool,
    on_progress: Callable[[], None],
    count_audio: CountAudio,
    voice: VoiceOptions = VOICE,
    raw: RawFormat | None = None,
    scope: Scope | None = None,
    channel: Channel | None = None,
) -> ShortAudioJob | LongAudioJob:
    """Decode the audio of `request` from `file`, and return its work, ready to be started. `raw` is for files without a header.
    Of several channels all are mixed, unless one is asked for.

    `request.audio` is ignored, and `request.deadline_s` counts from this call. Short audio is decoded to its end, longer audio
    only until it is known to be long; with `cut_at_pauses` all audio counts as long. Long audio is cut by `voice` and answered by
    `scope`, without one as its instruction needs, and its job calls `on_progress` whenever it gets on. A job calls `count_audio`
    with the seconds of audio that the engine took. Raises the errors of `AudioStream`, and `InvalidRequest` for a request that
    long audio cannot have.
    """
    started_s = time.perf_counter()
    audio = await AudioStream.open(decode_pool, file, request.client, raw, channel)
    try:
        head_s = BLOCK_S if cut_at_pauses else engine.max_audio_s
        # One sample more, so that audio of exactly this length is known to be all.
        head = await audio.read(int(head_s * engine.sample_rate_hz) + 1)
        decode_s = time.perf_counter() - started_s
        deadline_s = None if request.deadline_s is None else max(0.0, request.deadline_s - decode_s)
        request = dataclasses.replace(request, audio=head, deadline_s=deadline_s)
        if audio.ended and not cut_at_pauses:
            audio.close()
            return ShortAudioJob(engine, request, decode_s, count_audio, audio.warnings)
        return LongAudioJob(engine, request, audio, decode_s, on_progress, count_audio, voice, scope)
    except BaseException:
        audio.close()
        raise


async def run_job(job: Job) -> tuple[Done, float | None]:
    """Start a job, and return its answer and when its first text came, by `time.perf_counter`.

    A caller that leaves ends the work. Raises the `ServeError` of a request that fails.
    """
    result = ResultFuture()
    job.start(result.put)
    try:
        return await result.wait(), result.first_text_s
    except asyncio.CancelledError:
        job.abort()
        raise


async def find_channels(
    decode_pool: DecoderPool, file: bytes, client: str, raw: RawFormat | None, head_s: float
) -> tuple[Channel, ...]:
    """Return the channels that a file has at its beginning, of which `head_s` is decoded. Raises the errors of `AudioStream`."""
    # A file that is read to its end gives its decoder back at once.
    with await AudioStream.open(decode_pool, file, client, raw) as audio:
        await audio.read(int(head_s * decode_pool.limits.sample_rate_hz) + 1)
        return tuple(Channel(number, audio.channels) for number in range(audio.channels))
