"""Turn text into token ids and back, at once or as they arrive, and lay out prompts."""

import codecs
import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from tokenizers import Tokenizer

from models.text.spelling import read_spelling

REPLACEMENT_CHARACTER = "\ufffd"


class Tokeniser:
    """A vocabulary of byte-level BPE or SentencePiece, in which text never becomes a special token.

    `special_tokens` maps the special tokens' names to ids. They are taken out of the vocabulary that text is encoded with,
    so no input can produce their ids; `encode_template` is the only way to them. A vocabulary without bytes has one for what it
    cannot spell, the unknown token.
    """

    def __init__(self, definition: dict[str, Any]) -> None:
        """`definition` is the content of a `tokenizer.json`. Raises `ValueError` where it is of another kind."""
        self._spelling = read_spelling(definition)
        self.special_tokens: dict[str, int] = {token["content"]: token["id"] for token in definition["added_tokens"]}
        model = _without_specials(definition["model"], self.special_tokens)
        self._special_ids = frozenset(self.special_tokens.values())
        vocabulary = model["vocab"]
        if model["type"] == "Unigram":
            vocabulary = {piece: id for id, (piece, _) in enumerate(vocabulary) if id not in self._special_ids}
        self._token_bytes = self._spelling.spell(vocabulary)
        missing = set(range(256)).difference(*self._token_bytes.values())
        self._missing_bytes = missing if self._spelling.is_byte_level else set()
        text_only = {
            **self._spelling.definition,
            "added_tokens": [],
            "post_processor": None,
            "truncation": None,
            "padding": None,
            "model": model,
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

    def encode_after(self, before: Sequence[int], text: str) -> list[int]:
        """Return all the ids where `text` follows `before`, as the model's own tokeniser reads such a prompt.

        SentencePiece begins a text with a space, behind special tokens too, and joins spaces to the word behind them.
        """
        if self._spelling.is_byte_level or not text:
            return [*before, *self.encode(text)]
        kept = list(before)
        while kept and self.token_bytes(kept[-1]).strip(b" ") == b"" != self.token_bytes(kept[-1]):
            kept.pop()
        if spaces := b"".join(map(self.token_bytes, before[len(kept) :])):
            return [*kept, *self.encode(spaces.decode() + text)]
        is_begun = bool(before) and (self._spelling.prefix != "always" or before[-1] not in self._special_ids)
        return [*before, *self.encode(text if is_begun or self._spelling.prefix == "never" else f" {text}")]

    def encode_template(self, text: str, before: Sequence[int] = ()) -> list[int]:
        """Return the ids of trusted template text, in which the names of special tokens stand for those tokens.

        Text that stands first begins as it would behind the tokens `before`, which are not in the result.
        """
        longest_first = sorted(self.special_tokens, key=len, reverse=True)
        names = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        ids, end = list(before), 0
        for match in names.finditer(text):
            ids = [*self.encode_after(ids, text[end : match.start()]), self.special_tokens[match.group()]]
            end = match.end()
        return self.encode_after(ids, text[end:])[len(before) :]

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
        """Return a text with U+FFFD for the characters that the vocabulary cannot spell."""
        whole = "".join(REPLACEMENT_CHARACTER if "\ud800" <= character <= "\udfff" else character for character in text)
        if self._missing_bytes.isdisjoint(whole.encode()):
            return whole
        return "".join(
            character if self._missing_bytes.isdisjoint(character.encode()) else REPLACEMENT_CHARACTER for character in whole
        )


def _without_specials(model: dict[str, Any], specials: Mapping[str, int]) -> dict[str, Any]:
    """Return a `tokenizer.json`'s model whose text never becomes one of the special tokens."""
    if model["type"] == "Unigram":
        # An id is a place in the list. No text holds a space once it is normalised.
        names = {id: name for name, id in specials.items()}
        pieces = [[f" {id}" if names.get(id) == piece else piece, score] for id, (piece, score) in enumerate(model["vocab"])]
        return {**model, "vocab": pieces}
    vocabulary = {text: id for text, id in model["vocab"].items() if specials.get(text) != id}
    unknown = model.get("unk_token")
    kept = model["merges"]
    if len(vocabulary) < len(model["vocab"]):
        pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in kept]
        kept = [merge for merge, pair in zip(kept, pairs, strict=True) if {*pair, "".join(pair)} <= vocabulary.keys()]
    return {**model, "vocab": vocabulary, "merges": kept, "unk_token": unknown if unknown in vocabulary else None}


class Detokeniser:
    """The text of one answer, in deltas that never split a character.

    The deltas joined equal `tokeniser.decode(tokens).strip(padding)`, cut before the stop string that is complete first, or the
    longest of several that end together. Stop strings are found before stripping. Padding is held back until text follows it,
    and a possible beginning of a stop string until it is decided.

    A label before the text may name its `language`, or say that nothing was said (`is_silent`); `marker` is the token that ends
    the label that is being written. Here is none.
    """

    language: str | None = None
    is_silent: bool = False
    marker: int | None = None

    def __init__(self, tokeniser: Tokeniser, stop: tuple[str, ...] = (), padding: str | None = None) -> None:
        """`stop` holds no empty string. `padding` is as for `str.strip`: characters, or None for whitespace."""
        self.text = ""
        self.stopped = False
        self._tokeniser = tokeniser
        self._stop = stop
        self._padding = padding
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._undecided = ""
        self._held_back = ""

    def push(self, token: int) -> str:
        """Return the text that this token completes: often none, and none for special tokens or once `stopped` is set."""
        return self._search(self._decoder.decode(self._tokeniser.token_bytes(token)))

    def finish(self) -> str:
        """Return the last delta: the text that was held back, and U+FFFD if the answer ended within a character."""
        delta = self._search(self._decoder.decode(b"", final=True))
        undecided, self._undecided = self._undecided, ""
        return delta + self._append(undecided)

    def _search(self, piece: str) -> str:
        if self.stopped or not piece:
            return ""
        if not self._stop:
            return self._append(piece)
        text = self._undecided + piece
        found = [(start + len(stop), start) for stop in self._stop if (start := text.find(stop)) >= 0]
        if found:
            self.stopped, self._undecided = True, ""
            return self._append(text[: min(found)[1]])
        decided = len(text) - max(overlap(text, stop) for stop in self._stop)
        self._undecided = text[decided:]
        return self._append(text[:decided])

    def _append(self, piece: str) -> str:
        pending = self._held_back + piece if self.text else piece.lstrip(self._padding)
        delta = pending.rstrip(self._padding)
        self._held_back = pending[len(delta) :]
        self.text += delta
        return delta


def overlap(text: str, stop: str) -> int:
    """Return the length of the longest end of `text` that is a proper beginning of `stop`."""
    return next(length for length in range(min(len(text), len(stop) - 1), -1, -1) if text.endswith(stop[:length]))


def plain_words(instruction: str) -> str:
    """Return an instruction without case, punctuation and spacing."""
    return " ".join(re.findall(r"\w+", instruction.casefold()))


def is_transcription(instruction: str, known: Collection[str] | None) -> bool:
    """Return whether an instruction is one of those `known` to ask for a transcript, regardless of case and punctuation.

    None means that every instruction does.
    """
    return known is None or plain_words(instruction) in map(plain_words, known)


def _with_tuples(value: Any) -> Any:
    """Return a value of JSON with its lists as tuples, also those in an object."""
    if isinstance(value, dict):
        return {name: _with_tuples(each) for name, each in value.items()}
    return tuple(value) if isinstance(value, list) else value


@dataclass(frozen=True)
class PromptTemplate:
    """The fixed token ids of a prompt, and those that end an answer.

    The prompt is `[prefix][instruction][after_instruction] speech [suffix]`, or, where `after_speech` is given,
    `[prefix] speech [after_speech][instruction][after_instruction][suffix]`.

    A published model may know its own instructions: `transcription` stands in the place of all that ask for a transcript,
    and `published` has others by their plain words. To a transcript belong the keywords of a request, behind the instruction and
    `before_keywords`, where that is given; and behind the suffix the tokens of the language that is named, of `languages` by
    their codes, and `transcription_end`.
    """

    prefix: tuple[int, ...]
    after_instruction: tuple[int, ...]
    suffix: tuple[int, ...]
    end_tokens: tuple[int, ...]
    after_speech: tuple[int, ...] | None = None
    transcription: tuple[int, ...] | None = None
    before_keywords: str | None = None
    languages: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    transcription_end: tuple[int, ...] = ()
    published: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Self:
        """Raises `TypeError` where a field is missing or unknown."""
        given: dict[str, Any] = {name: _with_tuples(value) for name, value in fields.items()}
        return cls(**given)

    def to_json(self) -> dict[str, Any]:
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


@dataclass(frozen=True)
class PromptIds:
    """The ids of a prompt's text before and after the speech."""

    before_speech: tuple[int, ...]
    after_speech: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.before_speech) + len(self.after_speech)


def lay_out_prompt(
    template: PromptTemplate,
    tokeniser: Tokeniser,
    instruction: str,
    *,
    transcribes: bool = False,
    language: str | None = None,
    keywords: Sequence[str] = (),
) -> PromptIds:
    """Fill the template with an instruction, whose text is never parsed for special tokens.

    One that `transcribes`, or that is published in other words, gives way to the template's own, if that has one. Language and
    keywords are those of a transcript. Raises `KeyError` for a language that the template does not have.
    """
    own = template.transcription if transcribes else template.published.get(plain_words(instruction))
    lead = template.prefix if template.after_speech is None else template.after_speech
    asked = tokeniser.encode_after(lead, instruction) if own is None else [*lead, *own]
    if transcribes and keywords and template.before_keywords is not None:
        asked = tokeniser.encode_after(asked, template.before_keywords + ", ".join(keywords))
    spoken = template.languages[language] if transcribes and language is not None else ()
    suffix = (*template.suffix, *spoken, *(template.transcription_end if transcribes else ()))
    if template.after_speech is None:
        return PromptIds((*asked, *template.after_instruction), suffix)
    return PromptIds(template.prefix, (*asked, *template.after_instruction, *suffix))
