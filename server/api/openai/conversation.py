"""The messages of a chat as one piece of audio and one instruction.

The model's prompt has one instruction and one piece of audio behind it, so system messages and earlier turns become a part of the
instruction. A message that does not fit into that is refused by its place, such as `messages[1].content[0]`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from server.api.openai.fields import decode_audio
from server.errors import InvalidInstruction, InvalidRequest, UnsupportedOption

AUDIO_ALONE = "Answer the speaker."
"""The instruction of audio that comes without any text."""
SPEECH_MARK = "[the speech]"
"""Stands for the audio in a conversation of several turns."""

Role = Literal["system", "user", "assistant"]
ROLES: dict[object, Role] = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


@dataclass(frozen=True)
class Conversation:
    audio: bytes
    instruction: str


@dataclass(frozen=True)
class _Turn:
    role: Role
    texts: tuple[str, ...]
    audios: tuple[bytes, ...]

    @property
    def text(self) -> str:
        return "\n".join(self.texts)


def read_conversation(messages: Sequence[object], longest_instruction: int) -> Conversation:
    """Return what the messages hold. Raises `InvalidRequest`, `UnsupportedOption` or `InvalidInstruction`."""
    turns = [_read_turn(message, f"messages[{place}]") for place, message in enumerate(messages)]
    audios = [audio for turn in turns for audio in turn.audios]
    if not audios:
        raise InvalidRequest("The messages hold no input_audio; this model is asked about speech.", param="messages")
    if len(audios) > 1:
        raise UnsupportedOption("The messages hold several pieces of audio; the model takes one.", param="messages")
    if turns[-1].role != "user":
        raise UnsupportedOption("The last message has to be the user's.", param=f"messages[{len(turns) - 1}].role")
    instruction = _instruction(turns)
    if "\0" in instruction:
        raise InvalidInstruction("The messages hold a NUL character.", param="messages")
    if len(instruction) > longest_instruction:
        raise InvalidInstruction(f"The messages have more than {longest_instruction} characters of text.", param="messages")
    return Conversation(audios[0], instruction)


def _instruction(turns: Sequence[_Turn]) -> str:
    """Return the system's text, then the user's; of several turns each in a line of its own, with its role."""
    system = [turn.text for turn in turns if turn.role == "system" and turn.text.strip()]
    spoken = [turn for turn in turns if turn.role != "system"]
    if len(spoken) > 1:
        return "\n\n".join([*system, "\n".join(_line(turn) for turn in spoken)])
    own = [spoken[0].text] if spoken[0].text.strip() else []
    return "\n\n".join([*system, *own]) or AUDIO_ALONE


def _line(turn: _Turn) -> str:
    marks = [SPEECH_MARK] * len(turn.audios)
    return f"{turn.role.capitalize()}: {' '.join([*marks, *turn.texts])}"


def _read_turn(message: object, place: str) -> _Turn:
    if not isinstance(message, dict):
        raise InvalidRequest(f"{place} has to be a JSON object.", param=place)
    role = message.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise UnsupportedOption(f"{place} has to be of the role system, developer, user or assistant.", param=f"{place}.role")
    for name in ("tool_calls", "function_call", "audio"):
        if message.get(name):
            raise UnsupportedOption(f"{place}.{name} is not offered by this model.", param=f"{place}.{name}")
    texts: list[str] = []
    audios: list[bytes] = []
    for part in _parts(message.get("content"), f"{place}.content"):
        (audios if isinstance(part, bytes) else texts).append(part)  # type: ignore[arg-type]
    return _Turn(ROLES[role], tuple(texts), tuple(audios))


def _parts(content: object, place: str) -> Iterator[str | bytes]:
    """Yield the texts and pieces of audio of a message."""
    match content:
        case None:
            return
        case str():
            yield content
        case list():
            for number, part in enumerate(content):
                yield _read_part(part, f"{place}[{number}]")
        case _:
            raise InvalidRequest(f"{place} has to be text or a list of parts.", param=place)


def _read_part(part: Any, place: str) -> str | bytes:
    match part:
        case {"type": "text", "text": str(text)} | {"type": "refusal", "refusal": str(text)}:
            return text
        case {"type": "input_audio", "input_audio": {"data": data}}:
            return decode_audio(data, f"{place}.input_audio.data")
        case {"type": "audio_url", "audio_url": {"url": str(url)}}:
            if not url.startswith("data:"):
                raise UnsupportedOption("The server fetches nothing; send a data: URL.", param=f"{place}.audio_url.url")
            return decode_audio(url, f"{place}.audio_url.url")
        case {"type": ("text" | "input_audio" | "audio_url") as kind}:
            raise InvalidRequest(f"{place} has no {kind} in it.", param=place)
    raise UnsupportedOption(f"{place} has to be of the type text or input_audio.", param=f"{place}.type")
