"""The dialect of vLLM's `/v1/realtime`: 16 kHz PCM between two commits, one transcript of it.

Source: vLLM's documentation of its realtime API, and what guidellm's client sends.
"""

import json
from collections.abc import Sequence

from server.api.body import parse_beside_loop
from server.api.live.outbox import CloseReason
from server.api.live.session import Dialect, SocketSession
from server.api.openai_realtime import events
from server.api.openai_realtime.events import Item
from server.api.openai_realtime.schema import Append, Lenient, SessionOptions, parse, read_object
from server.api.openai_realtime.session import decode_audio
from server.audio.pcm import PcmStream
from server.audio.wave_header import PcmFormat
from server.engine.types.events import Flushed, LiveEvent, Partial, Problem, UtteranceDone
from server.engine.types.requests import Flush
from server.errors import InvalidRequest, ServeError

RATE_HZ = 16_000


class Update(Lenient):
    model: str


class Commit(Lenient):
    final: bool = False


class VllmDialect(Dialect):
    """`Dialect` of one transcript after another: it begins with `commit` and ends with a commit that is `final`."""

    def __init__(self, session: SocketSession) -> None:
        self._session = session
        self._item = Item()
        options = SessionOptions()
        stream = PcmStream(PcmFormat(RATE_HZ), session.model.sample_rate_hz)
        session.configure(options.live_request(session.client), stream)
        self._silence_s = options.voice().silence_s

    @property
    def idle_timeout_s(self) -> None:
        """This protocol has no keep-alive message: a client that answers pings may stay."""
        return None

    @property
    def silence_s(self) -> float:
        return self._silence_s

    async def take_message(self, message: str | bytes) -> None:
        try:
            if isinstance(message, bytes):
                raise InvalidRequest("Messages are JSON objects in text frames.")
            content = await parse_beside_loop(read_object, message)
            match content["type"]:
                case "session.update":
                    await self._choose_model(parse(Update, content).model)
                case "input_audio_buffer.append":
                    await self._session.push_audio(await parse_beside_loop(decode_audio, parse(Append, content).audio))
                case "input_audio_buffer.commit":
                    # A commit that is not final begins a transcript, which audio does anyway.
                    if parse(Commit, content).final:
                        self._session.push_flush(Flush("final"))
                case other:
                    raise InvalidRequest(f"There is no event {other[:64]!r}.", param="type")
        except InvalidRequest as error:
            self._session.put(error_frame(error))

    def frames_of(self, event: LiveEvent) -> Sequence[str]:
        match event:
            case Partial(stable=stable):
                return delta_frames(self._item.next_delta(stable))
            case UtteranceDone(done=done):
                return delta_frames(self._item.add_answer(done))
            case Problem(error=error):
                return (error_frame(error),)
            case Flushed():
                return (self._done(),)
        return ()

    def closing_frames(self, reason: CloseReason) -> Sequence[str]:
        return () if reason.error is None else (error_frame(reason.error),)

    async def _choose_model(self, name: str) -> None:
        model = self._session.context.models.find(name)
        if model is not self._session.model:
            await self._session.renew()
            self._session.choose_model(model)

    def _done(self) -> str:
        item, self._item = self._item, Item()
        tokens = events.usage(item.answers)
        usage = {
            "prompt_tokens": tokens["input_tokens"],
            "completion_tokens": tokens["output_tokens"],
            "total_tokens": tokens["total_tokens"],
        }
        return json.dumps({"type": "transcription.done", "text": item.transcript, "usage": usage}, ensure_ascii=False)


def speaks_vllm(content: dict[str, object]) -> bool:
    """Return whether a client's first event shows that it speaks this dialect: a model beside, not within, a session."""
    return content["type"] == "session.update" and "model" in content and "session" not in content


def delta_frames(text: str) -> Sequence[str]:
    """Return the event for more text, if there is any."""
    return (json.dumps({"type": "transcription.delta", "delta": text}, ensure_ascii=False),) if text else ()


def error_frame(error: ServeError) -> str:
    """Return the event of an error, which is a plain sentence here."""
    return json.dumps({"type": "error", "error": error.message, "code": error.code})
