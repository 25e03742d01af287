"""The events for clients of OpenAI's Realtime API, as the content of text frames; in the shape of the GA API or of the beta."""

import json
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field

from server.api.openai_realtime.schema import BETA_FORMATS, SessionOptions
from server.engine.types.events import Done
from server.errors import ServeError


def make_id(kind: str) -> str:
    """Return a fresh id, such as `item_…` for the kind `item`."""
    return f"{kind}_{uuid.uuid4().hex[:24]}"


def frame(type: str, **fields: object) -> str:
    """Return the frame of an event."""
    return json.dumps({"type": type, "event_id": make_id("event"), **fields}, ensure_ascii=False)


@dataclass(eq=False)
class Item:
    """A piece of speech that the client gets one transcript of: an utterance, or all speech up to a commit.

    `start_ms` and `end_ms` span it in the audio. Its transcript is the utterances' texts, joined by spaces.
    """

    id: str = field(default_factory=lambda: make_id("item"))
    answers: list[Done] = field(default_factory=list)
    error: ServeError | None = None
    # The text of the current utterance that was sent as deltas, and whether any was sent of the item.
    sent: str = ""
    has_deltas: bool = False
    # Whether the client was told that its speech is over.
    has_stopped: bool = False

    @property
    def transcript(self) -> str:
        return " ".join(done.text for done in self.answers if done.text)

    def next_delta(self, text: str) -> str:
        """Return what has to be added to the deltas so far for the current utterance to read `text`.

        Nothing is added to deltas that the text takes back: deltas are never revised.
        """
        if not text.startswith(self.sent) or len(text) == len(self.sent):
            return ""
        delta = text[len(self.sent) :]
        if not self.sent and self.has_deltas:
            delta = f" {delta}"
        self.sent, self.has_deltas = text, True
        return delta

    def add_answer(self, done: Done) -> str:
        """Take the answer of the current utterance, and return the delta that it adds."""
        delta = self.next_delta(done.text)
        self.answers.append(done)
        self.sent = ""
        return delta


class Shape:
    """The events of the GA API. Every method returns frames."""

    def __init__(self, session_id: str, expires_at: int, model: str) -> None:
        self._session_id = session_id
        self._expires_at = expires_at
        self._model = model

    def created(self, options: SessionOptions) -> str:
        """Return the first event. It holds what clients of vLLM's dialect look for, too."""
        return frame("session.created", session=self.session(options), id=self._session_id, created=int(time.time()))

    def updated(self, options: SessionOptions) -> str:
        return frame("session.updated", session=self.session(options))

    def session(self, options: SessionOptions) -> dict[str, object]:
        """Return the session object: what is in force, so `noise_reduction` is null."""
        format: dict[str, object] = {"type": options.format.type}
        if options.format.type == "audio/pcm":
            format["rate"] = options.format.rate_hz
        return {
            "type": "transcription",
            "id": self._session_id,
            "object": "realtime.transcription_session",
            "expires_at": self._expires_at,
            "include": list(options.include) or None,
            "audio": {
                "input": {
                    "format": format,
                    "noise_reduction": None,
                    "transcription": self._transcription(options),
                    "turn_detection": None if options.turn_detection is None else options.turn_detection.shown(),
                }
            },
        }

    def item_events(self, item: Item, previous_id: str | None) -> Sequence[str]:
        content = {
            "id": item.id,
            "type": "message",
            "status": "completed",
            "role": "user",
            "content": [{"type": "input_audio", "transcript": None}],
        }
        return tuple(
            frame(f"conversation.item.{kind}", previous_item_id=previous_id, item={**content, "object": "realtime.item"})
            for kind in ("added", "done")
        )

    def _transcription(self, options: SessionOptions) -> dict[str, object]:
        asked = options.transcription.model_dump(exclude_none=True)
        return {"model": self._model, "language": None, "prompt": None, **asked}


class BetaShape(Shape):
    """The events of the beta API."""

    def created(self, options: SessionOptions) -> str:
        return frame("transcription_session.created", session=self.session(options))

    def updated(self, options: SessionOptions) -> str:
        return frame("transcription_session.updated", session=self.session(options))

    def session(self, options: SessionOptions) -> dict[str, object]:
        names = {type: name for name, type in BETA_FORMATS.items()}
        return {
            "id": self._session_id,
            "object": "realtime.transcription_session",
            "expires_at": self._expires_at,
            "input_audio_format": names[options.format.type],
            "input_audio_transcription": self._transcription(options),
            "turn_detection": None if options.turn_detection is None else options.turn_detection.shown(),
            "input_audio_noise_reduction": None,
            "include": list(options.include) or None,
        }

    def item_events(self, item: Item, previous_id: str | None) -> Sequence[str]:
        content = {
            "id": item.id,
            "object": "realtime.item",
            "type": "message",
            "status": "completed",
            "role": "user",
            "content": [{"type": "input_audio", "transcript": None}],
        }
        return (frame("conversation.item.created", previous_item_id=previous_id, item=content),)


def speech_started(item: Item, start_s: float) -> str:
    return frame("input_audio_buffer.speech_started", audio_start_ms=round(start_s * 1000), item_id=item.id)


def speech_stopped(item: Item, end_s: float) -> str:
    return frame("input_audio_buffer.speech_stopped", audio_end_ms=round(end_s * 1000), item_id=item.id)


def committed(item: Item, previous_id: str | None) -> str:
    return frame("input_audio_buffer.committed", item_id=item.id, previous_item_id=previous_id)


def delta(item: Item, text: str) -> Sequence[str]:
    """Return the event for more text, if there is any."""
    fields = {"item_id": item.id, "content_index": 0, "delta": text}
    return (frame("conversation.item.input_audio_transcription.delta", **fields),) if text else ()


def completed(item: Item) -> str:
    """Return the event for the whole transcript of an item, or for its failure."""
    if item.error is not None:
        error = {"type": "transcription_error", **_details(item.error, ("code", "message", "param"))}
        return frame("conversation.item.input_audio_transcription.failed", item_id=item.id, content_index=0, error=error)
    fields: dict[str, object] = {"transcript": item.transcript, "usage": usage(item.answers)}
    languages = dict.fromkeys(done.language for done in item.answers if done.language is not None)
    if languages:
        fields["languages"] = [{"code": code} for code in languages]
    tokens = [token for done in item.answers for token in done.logprobs or ()]
    if tokens:
        fields["logprobs"] = [
            {"token": token.bytes.decode("utf-8", "replace"), "bytes": list(token.bytes), "logprob": token.logprob}
            for token in tokens
        ]
    return frame("conversation.item.input_audio_transcription.completed", item_id=item.id, content_index=0, **fields)


def usage(answers: Sequence[Done]) -> dict[str, object]:
    """Return the tokens of these answers together."""
    audio = sum(done.usage.audio_frames for done in answers)
    text = sum(done.usage.text_tokens for done in answers)
    output = sum(done.usage.output_tokens for done in answers)
    return {
        "type": "tokens",
        "total_tokens": audio + text + output,
        "input_tokens": audio + text,
        "input_token_details": {"text_tokens": text, "audio_tokens": audio},
        "output_tokens": output,
    }


def cleared() -> str:
    return frame("input_audio_buffer.cleared")


def error_frame(error: ServeError, client_event_id: object = None, code: str | None = None) -> str:
    """Return the event of an error; `client_event_id` is that of the message that made it."""
    details = _details(error, ("type", "code", "message", "param"))
    id = client_event_id if isinstance(client_event_id, str) else None
    return frame("error", error={**details, **({"code": code} if code else {}), "event_id": id})


def _details(error: ServeError, names: Sequence[str]) -> dict[str, object]:
    body = error.body()["error"]
    return {name: body[name] for name in names}
