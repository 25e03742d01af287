"""Turn text into token ids and back, and lay out prompts."""

import json
import re
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from tokenizers import Tokenizer

REPLACEMENT_CHARACTER = "\ufffd"


def byte_alphabet() -> dict[str, int]:
    """Return the byte of each character of a byte-level BPE vocabulary (GPT-2's table)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + index): byte for index, byte in enumerate(others)}


class Tokeniser:
    """A byte-level BPE vocabulary in which text never becomes a special token.

    `special_tokens` maps the special tokens' names to ids. They are taken out of the vocabulary that text is encoded with,
    so no input can produce their ids; `encode_template` is the only way to them.
    """

    def __init__(self, definition: dict[str, Any]) -> None:
        """`definition` is the content of a `tokenizer.json`. Raises `ValueError` where it is not byte-level BPE."""
        if definition["model"].get("type") != "BPE":
            raise ValueError(f"Only byte-level BPE tokenisers are supported, not {definition['model'].get('type')}.")
        self.special_tokens: dict[str, int] = {token["content"]: token["id"] for token in definition["added_tokens"]}
        vocabulary = {text: id for text, id in definition["model"]["vocab"].items() if text not in self.special_tokens}
        self._token_bytes = spell(vocabulary)
        self._missing_bytes = set(range(256)).difference(*self._token_bytes.values())
        text_only = {
            **definition,
            "added_tokens": [],
            "post_processor": None,
            "truncation": None,
            "padding": None,
            "model": {**definition["model"], "vocab": vocabulary},
        }
        self._tokenizer: Any = Tokenizer.from_str(json.dumps(text_only))

    @classmethod
    def from_file(cls, path: Path) -> Self:
        return cls.from_json(path.read_text(encoding="utf-8"))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Return the tokeniser of the text of a `tokenizer.json`."""
        return cls(json.loads(text))

    def encode(self, text: str) -> list[int]:
        """Return the ids of any text, none of them special; `decode` gives the text back.

        Characters that the vocabulary has no bytes for (SmolLM2's lacks six control characters and the unassigned planes)
        become U+FFFD; without this they would vanish or break up without a trace. So do lone surrogates.
        """
        ids: list[int] = self._tokenizer.encode(self._spellable(text), add_special_tokens=False).ids
        return ids

    def encode_template(self, text: str) -> list[int]:
        """Return the ids of trusted template text, in which the names of special tokens stand for those tokens."""
        longest_first = sorted(self.special_tokens, key=len, reverse=True)
        names = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        ids: list[int] = []
        end = 0
        for match in names.finditer(text):
            ids += [*self.encode(text[end : match.start()]), self.special_tokens[match.group()]]
            end = match.end()
        return ids + self.encode(text[end:])

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids; special tokens have none, bytes that are not UTF-8 become U+FFFD."""
        return b"".join(map(self.token_bytes, ids)).decode("utf-8", errors="replace")

    def token_bytes(self, id: int) -> bytes:
        """Return the bytes that a token adds to the text: none for special tokens and unused ids."""
        return self._token_bytes.get(id, b"")

    @property
    def vocabulary_size(self) -> int:
        """One more than the largest id, special tokens included."""
        return max((*self._token_bytes, *self.special_tokens.values()), default=-1) + 1

    def begins_word(self, id: int) -> bool:
        """Return whether a token's text begins with a space."""
        return self.token_bytes(id).startswith(b" ")

    def _spellable(self, text: str) -> str:
        whole = "".join(REPLACEMENT_CHARACTER if "\ud800" <= character <= "\udfff" else character for character in text)
        if self._missing_bytes.isdisjoint(whole.encode()):
            return whole
        return "".join(
            character if self._missing_bytes.isdisjoint(character.encode()) else REPLACEMENT_CHARACTER for character in whole
        )


def plain_words(instruction: str) -> str:
    """Return an instruction without case, punctuation and spacing."""
    return " ".join(re.findall(r"\w+", instruction.casefold()))


def is_transcription(instruction: str, known: Collection[str] | None) -> bool:
    """Return whether an instruction is one of those `known` to ask for a transcript, regardless of case and punctuation.

    None means that every instruction does.
    """
    return known is None or plain_words(instruction) in map(plain_words, known)


def spell(vocabulary: dict[str, int]) -> dict[int, bytes]:
    """Return the bytes of every token id. Raises `ValueError` for a token outside the byte-level alphabet."""
    alphabet = byte_alphabet()
    try:
        return {id: bytes(alphabet[character] for character in text) for text, id in vocabulary.items()}
    except KeyError as error:
        raise ValueError(f"Only byte-level BPE tokenisers are supported: a token holds the character {error}.") from None


@dataclass(frozen=True)
class PromptTemplate:
    """The fixed token ids of a prompt, and those that end an answer.

    The prompt is `[prefix][instruction][after_instruction] speech [suffix]`, or, where `after_speech` is given,
    `[prefix] speech [after_speech][instruction][after_instruction][suffix]`. A published model may know one instruction for a
    transcript: `transcription` stands in the place of all that ask for one.
    """

    prefix: tuple[int, ...]
    after_instruction: tuple[int, ...]
    suffix: tuple[int, ...]
    end_tokens: tuple[int, ...]
    after_speech: tuple[int, ...] | None = None
    transcription: tuple[int, ...] | None = None

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Self:
        """Raises `TypeError` where a field is missing or unknown."""
        ids: dict[str, Any] = {name: None if value is None else tuple(value) for name, value in fields.items()}
        return cls(**ids)

    def to_json(self) -> dict[str, list[int] | None]:
        return {name: None if ids is None else list(ids) for name, ids in asdict(self).items()}


@dataclass(frozen=True)
class PromptIds:
    """The ids of a prompt's text before and after the speech."""

    before_speech: tuple[int, ...]
    after_speech: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.before_speech) + len(self.after_speech)


def lay_out_prompt(template: PromptTemplate, tokeniser: Tokeniser, instruction: str, *, transcribes: bool = False) -> PromptIds:
    """Fill the template with an instruction, whose text is never parsed for special tokens.

    One that `transcribes` gives way to the template's own, if that has one.
    """
    own = template.transcription if transcribes else None
    asked = (*(tokeniser.encode(instruction) if own is None else own), *template.after_instruction)
    if template.after_speech is None:
        return PromptIds((*template.prefix, *asked), template.suffix)
    return PromptIds(template.prefix, (*template.after_speech, *asked, *template.suffix))
