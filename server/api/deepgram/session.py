"""The dialect of Deepgram's live `/v1/listen`: audio in binary frames and three commands in, results out."""

import hashlib
from collections.abc import Sequence
from typing import Any

from pydantic_core import from_json

from server.api.deepgram import replies
from server.api.deepgram.options import ListenOptions
from server.api.deepgram.replies import Origin
from server.api.live.outbox import CloseReason
from server.api.live.session import Dialect, SocketSession
from server.audio.pcm import PcmStream, SampleStream
from server.audio.stream import OpusStream
from server.audio.wave_header import PcmFormat
from server.engine.types.events import Ended, Flushed, Listened, LiveEvent, Partial, Problem, SpeechStarted, UtteranceDone
from server.engine.types.requests import Flush
from server.errors import InvalidRequest, UndecodableAudio

MAX_MESSAGE_BYTES = 4 * 2**20
MAX_TEXT_CHARACTERS = 65_536
# Audio that is decoded at a time, so that a large message holds up no other session.
PIECE_BYTES = 65_536
WAVE_RATE_HZ = 16_000


class ListenDialect(Dialect):
    """`Dialect` of one live stream. Its options are those of the URL, and its audio is opened with the first binary frame."""

    def __init__(self, session: SocketSession, options: ListenOptions) -> None:
        self._session = session
        self._options = options
        self._origin = Origin.of(session.request_id, options)
        self._sha256 = hashlib.sha256()
        self._has_audio = False
        # The answer that a pending finalisation may turn out to have caused.
        self._held: UtteranceDone | None = None
        self._finalising = 0
        # The number of the utterance that is going on.
        self._speaking: int | None = None
        self._last_word_end_s: float | None = None
        self._listened_s = 0.0

    @property
    def idle_timeout_s(self) -> float:
        return self._session.context.settings.live_idle_timeout_s

    @property
    def silence_s(self) -> float:
        return self._options.silence_s

    async def take_message(self, message: str | bytes) -> None:
        if self._session.audio_has_ended:
            return
        if isinstance(message, bytes):
            # Older clients end their audio with an empty frame.
            await (self._take_audio(message) if message else self._session.end_audio())
            return
        try:
            await self._follow(_read_type(message))
        except InvalidRequest as error:
            self._session.put(replies.error_message(error))

    def frames_of(self, event: LiveEvent) -> Sequence[str]:
        match event:
            case SpeechStarted(utterance=number, start_s=start_s):
                self._speaking, self._last_word_end_s = number, None
                started = (replies.speech_started(start_s),) if self._options.vad_events else ()
                return (*self._release_held(from_finalize=False), *started)
            case Partial():
                return (replies.interim_results(self._origin, event),)
            case UtteranceDone():
                return self._end_utterance(event)
            case Flushed():
                self._finalising -= 1
                empty = () if self._held is not None else (replies.empty_results(self._origin, self._listened_s),)
                return (*self._release_held(from_finalize=True), *empty)
            case Listened(audio_s=audio_s):
                self._listened_s = audio_s
                return self._tell_utterance_end()
            case Problem(error=error):
                return (replies.error_message(error),)
            case Ended(audio_s=audio_s):
                metadata = replies.metadata(self._origin, audio_s, self._sha256.hexdigest())
                return (*self._release_held(from_finalize=False), metadata)
        return ()

    def closing_frames(self, reason: CloseReason) -> Sequence[str]:
        return () if reason.error is None else (replies.error_message(reason.error),)

    async def _follow(self, type: str) -> None:
        match type:
            case "KeepAlive":
                pass
            case "Finalize":
                self._finalising += 1
                self._session.push_flush(Flush("finalize"))
            case "CloseStream":
                await self._session.end_audio()
            case other:
                raise InvalidRequest(f"There is no message of the type {other[:64]!r}.", param="type")

    async def _take_audio(self, data: bytes) -> None:
        self._sha256.update(data)
        if not self._has_audio:
            self._has_audio = True
            with self._session.waiting():
                audio = await self._open_audio(data)
            self._session.configure(self._options.live_request(self._session.client), audio)
        for start in range(0, len(data), PIECE_BYTES):
            await self._session.push_audio(data[start : start + PIECE_BYTES])

    async def _open_audio(self, data: bytes) -> SampleStream:
        context = self._session.context
        rate_hz = self._session.model.sample_rate_hz
        if self._options.encoding is not None:
            return PcmStream(self._options.encoding, rate_hz)
        if self._options.container == "ogg_opus" or data.startswith(b"OggS"):
            return await OpusStream.open(context.decode_pool, self._session.client)
        if data.startswith(b"RIFF"):
            return PcmStream(PcmFormat(WAVE_RATE_HZ), rate_hz)
        raise UndecodableAudio("Live audio has to be WAV or Ogg Opus, or has to name its encoding.", param="encoding")

    def _end_utterance(self, event: UtteranceDone) -> Sequence[str]:
        frames = self._release_held(from_finalize=False)
        # Speech may have gone on before this answer came.
        if self._speaking == event.utterance:
            self._speaking = None
        if event.done.text:
            self._last_word_end_s = event.done.words[-1].end_s if event.done.words else event.end_s
        self._held = event
        if not self._finalising:
            frames = (*frames, *self._release_held(from_finalize=False))
        return (*frames, *self._tell_utterance_end())

    def _release_held(self, *, from_finalize: bool) -> Sequence[str]:
        held, self._held = self._held, None
        return () if held is None else (replies.final_results(self._origin, held, from_finalize=from_finalize),)

    def _tell_utterance_end(self) -> Sequence[str]:
        gap_s, end_s = self._options.utterance_end_s, self._last_word_end_s
        if gap_s is None or end_s is None or self._speaking is not None or self._listened_s < end_s + gap_s:
            return ()
        self._last_word_end_s = None
        return (*self._release_held(from_finalize=False), replies.utterance_end(end_s))


def _read_type(message: str) -> str:
    if len(message) > MAX_TEXT_CHARACTERS:
        raise InvalidRequest(f"A message has at most {MAX_TEXT_CHARACTERS} characters.")
    try:
        content: Any = from_json(message)
    except ValueError:
        raise InvalidRequest("The message is not valid JSON.") from None
    type = content.get("type") if isinstance(content, dict) else None
    if not isinstance(type, str):
        raise InvalidRequest("A message is a JSON object with a type.", param="type")
    return type
