"""What clients tell `/v1/stream`: JSON objects that say their `type`, of known fields, each within limits. Where the form of
`POST /v1/instruct` has the same field, the limits are the same."""

from dataclasses import dataclass
from typing import Any, Literal

from pydantic_core import from_json

from server.api.fields import Choice, Instruction, Integer, Number
from server.api.instruct_form import SAMPLING_FIELDS, constraint_of, text_fields
from server.api.json_fields import Flag, Json, JsonField, Object, Text
from server.api.multipart import MAX_TEXT_BYTES
from server.engine.types.options import SamplingOptions, VoiceOptions
from server.engine.types.requests import ChangeInstruction, EndOfAudio, Flush, LiveRequest
from server.errors import InvalidInstruction, InvalidRequest
from server.settings import Settings

Encoding = Literal["pcm16", "ogg_opus"]

DEFAULT_RATE_HZ = 16_000
SAMPLING = tuple(name for name in SAMPLING_FIELDS if name != "logprobs")


@dataclass(frozen=True)
class Start:
    """What a session is to be. The audio is at `sample_rate_hz`, which says nothing about Opus."""

    encoding: Encoding
    sample_rate_hz: int
    request: LiveRequest


class MessageReader:
    """Reads the messages of one server's clients. An utterance may have up to `max_audio_s`, which is the engine's limit."""

    def __init__(self, settings: Settings, max_audio_s: float) -> None:
        shared = text_fields(settings)
        instruction = Instruction(settings.max_instruction_characters)
        start: dict[str, JsonField] = {
            "instruction": instruction,
            "sample_rate_hz": Integer("Samples per second.", 8000, 48_000),
            "encoding": Choice("Of the audio.", ("pcm16", "ogg_opus")),
            "partials": Flag(True),
            "words": Flag(False),
            "scope": Choice("What the instruction is about.", ("utterance", "recording")),
            "voice": Object(_voice_fields(max_audio_s)),
            **{name: shared[name] for name in (*SAMPLING, "draft", "regex")},
            "json_schema": Json(),
            "choice": Json(),
        }
        self._messages: dict[str, Object] = {
            "start": Object(start),
            "flush": Object({"id": Text(64)}),
            "update": Object({"instruction": instruction}),
            "end": Object({}),
        }

    def read(self, text: str, session_id: str, client: str) -> Start | Flush | ChangeInstruction | EndOfAudio:
        """The message of one text frame; a `Start` is for a session of this id and client. Raises `InvalidRequest`."""
        kind, content = self._kind_and_content(text)
        match kind:
            case "start":
                return _start(content, session_id, client)
            case "flush":
                if content["id"] is None:
                    raise InvalidRequest("The field id is missing.", param="id")
                return Flush(content["id"])
            case "update":
                return ChangeInstruction(_instruction(content))
            case _:
                return EndOfAudio()

    def _kind_and_content(self, text: str) -> tuple[str, dict[str, Any]]:
        # Characters, of which there are no more than bytes.
        if len(text) > MAX_TEXT_BYTES:
            raise InvalidRequest(f"A message has at most {MAX_TEXT_BYTES} characters.")
        try:
            message = from_json(text, allow_inf_nan=False)
        except ValueError:
            raise InvalidRequest("The message is not valid JSON.") from None
        kind = message.pop("type", None) if isinstance(message, dict) else None
        if not isinstance(kind, str) or kind not in self._messages:
            raise InvalidRequest(f"A message is a JSON object whose type is one of {', '.join(self._messages)}.", param="type")
        return kind, self._messages[kind].check(kind, message)


def _voice_fields(max_audio_s: float) -> dict[str, Number | Integer]:
    default = VoiceOptions()
    return {
        "threshold": Number("What the voice detector gives at least where there is speech.", 0.05, 0.95, default.threshold),
        "prefix_padding_ms": _milliseconds(0, 1.0, default.prefix_padding_s),
        "silence_duration_ms": _milliseconds(0.1, 5.0, default.silence_s),
        "max_utterance_ms": _milliseconds(2.0, max_audio_s, min(default.max_utterance_s, max_audio_s)),
    }


def _milliseconds(low_s: float, high_s: float, default_s: float) -> Integer:
    return Integer("Milliseconds.", round(low_s * 1000), round(high_s * 1000), round(default_s * 1000))


def _start(content: dict[str, Any], session_id: str, client: str) -> Start:
    rate_hz = content["sample_rate_hz"]
    if content["encoding"] == "ogg_opus" and rate_hz is not None:
        raise InvalidRequest("An Opus stream says its sample rate itself.", param="sample_rate_hz")
    voice = content["voice"]
    request = LiveRequest(
        id=session_id,
        instruction=_instruction(content),
        sampling=SamplingOptions(**{name: content[name] for name in SAMPLING}, constraint=constraint_of(content)),
        client=client,
        draft=content["draft"],
        voice=VoiceOptions(
            threshold=voice["threshold"],
            prefix_padding_s=voice["prefix_padding_ms"] / 1000,
            silence_s=voice["silence_duration_ms"] / 1000,
            max_utterance_s=voice["max_utterance_ms"] / 1000,
        ),
        scope=content["scope"],
        partials=content["partials"],
        word_times=content["words"],
    )
    return Start(content["encoding"], rate_hz or DEFAULT_RATE_HZ, request)


def _instruction(content: dict[str, Any]) -> str:
    instruction: str | None = content["instruction"]
    if instruction is None:
        raise InvalidInstruction("The field instruction is missing.", param="instruction")
    return instruction
