"""The form of `POST /v1/instruct`: its fields, their limits, and what a client asked for with them."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from server.api.fields import Choice, Field, Instruction, Integer, Notation, Number, Share, Strings
from server.api.multipart import FILE_FIELD, Form
from server.api.native.schema import Timestamps
from server.api.reply_format import MEDIA_TYPES, SUBTITLES, ReplyFormat
from server.engine.types.options import Constraint, ConstraintKind, DraftPolicy, Priority, SamplingOptions
from server.errors import AudioTooShort, InvalidInstruction, InvalidRequest
from server.settings import Settings

AUDIO_SCHEMA = {"type": "string", "format": "binary", "description": "WAV, FLAC, OGG Vorbis, OGG Opus or MP3."}
# Live speech has a door of its own.
PRIORITIES = {"interactive": Priority.INTERACTIVE, "batch": Priority.BATCH}
SAMPLING_FIELDS = tuple(field.name for field in fields(SamplingOptions) if field.name != "constraint")

Chunking = Literal["auto", "voice"]


@dataclass(frozen=True)
class InstructForm:
    """What a client asks for, every field within its limits. `audio` is a file; `deadline_s` counts from the request's start."""

    audio: bytes
    instruction: str
    sampling: SamplingOptions
    stream: bool
    priority: Priority
    deadline_s: float | None
    draft: DraftPolicy
    timestamps: Timestamps
    format: ReplyFormat
    chunking: Chunking

    @property
    def word_times(self) -> bool:
        """Whether it takes the times of the words to answer it."""
        return self.timestamps != "none" or self.format in SUBTITLES


def text_fields(settings: Settings) -> dict[str, Field]:
    """All fields but the audio, by name."""
    return {
        "instruction": Instruction(settings.max_instruction_characters),
        "max_tokens": Integer("The longest answer in tokens.", 1, settings.max_tokens_limit, settings.default_max_tokens),
        "temperature": Number("0 takes the likeliest token; above it, tokens are drawn.", 0, 2, 0),
        "top_k": Integer("Draw among so many of the likeliest tokens; 0: among all.", 0, 1000, 0),
        "top_p": Share("Draw among the fewest likeliest tokens that have this probability together."),
        "repetition_penalty": Number(
            "Divides the scores above 0 of tokens that the answer already holds, and multiplies those below.", 0.5, 2, 1
        ),
        "presence_penalty": Number("Is taken off the scores of tokens that the answer already holds.", -2, 2, 0),
        "seed": Integer("Repeats a drawn answer; without one every answer is drawn anew.", 0, 2**63 - 1),
        "stop": Strings('The answer ends before the first of these strings: a JSON array of up to 4, such as ["###"].', 4, 64),
        "json_schema": Notation(
            "The answer is compact JSON that is valid under this JSON schema; at most one of json_schema, regex and choice.",
            "application/json",
        ),
        "regex": Notation(
            "The answer as a whole matches this regular expression (no look-around, no back-references).", "text/plain"
        ),
        "choice": Notation('The answer is one of these strings: a JSON array such as ["yes", "no"].', "application/json"),
        "logprobs": Integer("Adds the log-probability of every token, and so many of the likeliest in its place.", 0, 20),
        "stream": Choice("`true` sends the text as it arises, in server-sent events.", ("false", "true")),
        "priority": Choice("`batch` waits while there is interactive work.", tuple(PRIORITIES)),
        "deadline_ms": Integer("Milliseconds from the request's start after which the answer is worth nothing.", 1, 3_600_000),
        "draft": Choice(
            "How the speech model's own draft may speed up the answer: `exact` never changes it, `relaxed`, for transcription "
            "only, keeps a draft that the LLM finds likely enough, `off` uses none.",
            ("exact", "relaxed", "off"),
        ),
        "timestamps": Choice(
            "Adds when it was said, for transcription only: `segments` as subtitles show them, or these and each of the `words`.",
            ("none", "segments", "words"),
        ),
        "format": Choice(
            "What the reply is written as: `json`, or nothing but the `text`, or that as subtitles, for transcription only.",
            tuple(MEDIA_TYPES),
        ),
        "chunking": Choice(
            "How audio is cut: `auto` not at all where the model takes it in one piece, and else at its pauses; `voice` always "
            "at its pauses, as live speech is.",
            get_args(Chunking),
        ),
    }


def check_form(form: Form, known: dict[str, Field]) -> InstructForm:
    """What a form asks for, by the fields that `text_fields` gave. Raises `InvalidRequest`."""
    if form.audio is None:
        raise InvalidRequest(f"The field {FILE_FIELD} is missing.", param=FILE_FIELD)
    if not form.audio:
        raise AudioTooShort("The audio is empty.", param=FILE_FIELD)
    if "instruction" not in form.texts:
        raise InvalidInstruction("The field instruction is missing.", param="instruction")
    values: dict[str, Any] = {
        name: field.read(name, form.texts[name]) if name in form.texts else field.default for name, field in known.items()
    }
    if values["stream"] == "true" and values["format"] != "json":
        raise InvalidRequest("A stream is written as json only.", param="format")
    if values["format"] == "text" and values["timestamps"] != "none":
        raise InvalidRequest("Plain text has no place for timestamps.", param="timestamps")
    return InstructForm(
        audio=form.audio,
        instruction=values["instruction"],
        sampling=SamplingOptions(**{name: values[name] for name in SAMPLING_FIELDS}, constraint=constraint_of(values)),
        stream=values["stream"] == "true",
        priority=PRIORITIES[values["priority"]],
        deadline_s=None if values["deadline_ms"] is None else values["deadline_ms"] / 1000,
        draft=values["draft"],
        timestamps=values["timestamps"],
        format=values["format"],
        chunking=values["chunking"],
    )


def constraint_of(values: Mapping[str, Any]) -> Constraint | None:
    """What the answer has to match; each kind is text, or None where it is not asked for. Raises `InvalidRequest`."""
    given: list[ConstraintKind] = [kind for kind in get_args(ConstraintKind) if values[kind] is not None]
    if len(given) > 1:
        raise InvalidRequest(f"An answer cannot follow more than one of {', '.join(given)}.", param=given[1])
    return Constraint(given[0], values[given[0]]) if given else None


def body_description(known: dict[str, Field]) -> dict[str, Any]:
    """The form for the OpenAPI page."""
    schema = {
        "type": "object",
        "required": [FILE_FIELD, "instruction"],
        "additionalProperties": False,
        "properties": {FILE_FIELD: AUDIO_SCHEMA, **{name: field.schema() for name, field in known.items()}},
    }
    return {"required": True, "content": {"multipart/form-data": {"schema": schema}}}
