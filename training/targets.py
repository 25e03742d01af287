"""The vocabulary of a CTC draft: the LLM's tokens, Whisper's tokens, or characters."""

import json
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor

from export.importers.byte_level_bpe import restore_merges
from export.importers.ctranslate2 import read_ctranslate2
from export.importers.gguf import read_llama, read_tokeniser
from training.cache_states import CachedUtterance
from training.spelling import restore_case

ALPHABET = "".join(map(chr, range(32, 127)))
"""Printable ASCII, a symbol each: Whisper writes English with hardly anything else."""
CHARACTERS_PER_FRAME = 4
"""Speech has up to 20 characters a second, and an adapter frame lasts 80 ms: each writes up to four of them."""

TARGETS = ("llm", "whisper", "characters")


class TargetVocabulary(ABC):
    """Symbols of a draft. The adapter's output is scored against `table` [symbols, embedding], which is frozen."""

    name: str
    outputs_per_frame = 1

    def __init__(self, table: Tensor) -> None:
        self.table = table

    def text(self, utterance: CachedUtterance) -> str:
        """Return what the draft of this utterance should say."""
        return utterance.text

    @abstractmethod
    def encode(self, utterance: CachedUtterance) -> list[int]:
        """Return the symbols that the draft of this utterance should consist of."""

    @abstractmethod
    def decode(self, symbols: Sequence[int]) -> str: ...


class LlmTokens(TargetVocabulary):
    """The LLM's tokens of what was really said, as far as that is known, in the case and punctuation that Whisper wrote."""

    name = "llm"

    def __init__(self, table: Tensor, tokeniser: Tokenizer) -> None:
        super().__init__(table)
        self.tokeniser = tokeniser

    def text(self, utterance: CachedUtterance) -> str:
        return restore_case(utterance.reference, utterance.text) if utterance.reference else utterance.text

    def encode(self, utterance: CachedUtterance) -> list[int]:
        return list(self.tokeniser.encode(self.text(utterance), add_special_tokens=False).ids)

    def decode(self, symbols: Sequence[int]) -> str:
        return str(self.tokeniser.decode(list(symbols)))


class WhisperTokens(LlmTokens):
    """The tokens that Whisper's decoder wrote, scored against that decoder's own output table without its special tokens."""

    name = "whisper"

    def text(self, utterance: CachedUtterance) -> str:
        return utterance.text

    def encode(self, utterance: CachedUtterance) -> list[int]:
        if utterance.tokens:
            return list(utterance.tokens)
        return list(self.tokeniser.encode(f" {utterance.text}", add_special_tokens=False).ids)

    def decode(self, symbols: Sequence[int]) -> str:
        return super().decode(symbols).strip()


class Characters(TargetVocabulary):
    """Spelling: the adapter's output has one score per character, so the table is the identity."""

    name = "characters"
    outputs_per_frame = CHARACTERS_PER_FRAME

    def __init__(self) -> None:
        super().__init__(torch.eye(len(ALPHABET)))
        self.numbers = {character: number for number, character in enumerate(ALPHABET)}

    def encode(self, utterance: CachedUtterance) -> list[int]:
        plain = unicodedata.normalize("NFKD", utterance.text)
        return [self.numbers[character] for character in plain if character in self.numbers]

    def decode(self, symbols: Sequence[int]) -> str:
        return " ".join("".join(ALPHABET[symbol] for symbol in symbols).split())


def open_targets(name: str, weights: Path | None = None) -> TargetVocabulary:
    """Return the vocabulary of that name. `weights` is the LLM's GGUF, or a folder with Whisper in CTranslate2's format."""
    if name == "characters":
        return Characters()
    if weights is None:
        raise ValueError(f"targets {name!r} need the weights whose embedding table they are scored against")
    if name == "llm":
        table = read_llama(weights).weights["model.embed_tokens.weight"]
        return LlmTokens(torch.from_numpy(table), read_tokeniser(weights))
    if name == "whisper":
        definition = json.loads((weights / "tokenizer.json").read_text(encoding="utf-8"))
        restore_merges(definition)
        tokeniser = Tokenizer.from_str(json.dumps(definition))
        table = read_ctranslate2(weights / "model.bin")["decoder/projection/weight"].astype("float32")
        return WhisperTokens(torch.from_numpy(table[: tokeniser.token_to_id("<|endoftext|>")]), tokeniser)
    raise ValueError(f"targets are one of {', '.join(TARGETS)}, not {name!r}")
