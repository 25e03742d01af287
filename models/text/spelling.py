"""The bytes that tokens spell: those of byte-level BPE, and SentencePiece's, whose spaces are `▁`.

A definition is the content of a `tokenizer.json`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

SPACE = "▁"
BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
Prefix = Literal["never", "first", "always"]


@dataclass(frozen=True)
class Spelling:
    """How a vocabulary is spelled, and a definition that encodes text as it stands.

    `prefix` says where the model's own tokeniser puts a space before text: at the beginning (`first`), or behind special tokens
    too (`always`). `definition` puts none anywhere.
    """

    definition: dict[str, Any]
    is_byte_level: bool
    prefix: Prefix

    def spell(self, vocabulary: Mapping[str, int]) -> dict[int, bytes]:
        """Return the bytes of every token id. Raises `ValueError` for a token outside the byte-level alphabet."""
        return spell(vocabulary) if self.is_byte_level else spell_pieces(vocabulary)


def read_spelling(definition: dict[str, Any]) -> Spelling:
    """Return how a definition spells. Raises `ValueError` where that is neither byte-level BPE nor SentencePiece."""
    kind = definition["model"].get("type")
    parts = [*_parts(definition.get("normalizer"), "normalizers"), *_parts(definition.get("pre_tokenizer"), "pretokenizers")]
    spaced = any(_replaces_spaces(part) for part in parts)
    if kind == "BPE" and not spaced:
        return Spelling(definition, True, "never")
    if kind not in ("BPE", "Unigram") or not spaced:
        raise ValueError(f"Only byte-level BPE and SentencePiece tokenisers are supported, not {kind}.")
    prefix: Prefix = "always" if any(part["type"] == "Prepend" for part in parts) else "never"
    for part in parts:
        if part["type"] == "Metaspace":
            prefix = part.get("prepend_scheme") or ("always" if part.get("add_prefix_space", True) else "never")
    return Spelling(_without_prefix(definition), False, prefix)


def byte_alphabet() -> dict[str, int]:
    """Return the byte of each character of a byte-level BPE vocabulary (GPT-2's table)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + index): byte for index, byte in enumerate(others)}


def spell(vocabulary: Mapping[str, int]) -> dict[int, bytes]:
    """Return the bytes of every token id. Raises `ValueError` for a token outside the byte-level alphabet."""
    alphabet = byte_alphabet()
    try:
        return {id: bytes(alphabet[character] for character in text) for text, id in vocabulary.items()}
    except KeyError as error:
        raise ValueError(
            f"Only byte-level BPE and SentencePiece tokenisers are supported: a token holds the character {error}."
        ) from None


def spell_pieces(vocabulary: Mapping[str, int]) -> dict[int, bytes]:
    """Return the bytes of every piece's id: those of `<0x0A>` and the like are one byte."""
    spelled = {}
    for text, id in vocabulary.items():
        byte = BYTE_PIECE.fullmatch(text)
        spelled[id] = bytes([int(byte[1], 16)]) if byte else text.replace(SPACE, " ").encode("utf-8", "replace")
    return spelled


def _parts(whole: dict[str, Any] | None, name: str) -> list[dict[str, Any]]:
    """Return a normaliser or pre-tokeniser as a list."""
    if whole is None:
        return []
    return list(whole[name]) if whole.get("type") == "Sequence" else [whole]


def _replaces_spaces(part: Mapping[str, Any]) -> bool:
    return part["type"] == "Metaspace" or (part["type"] == "Replace" and part.get("content") == SPACE)


def _without_prefix(definition: dict[str, Any]) -> dict[str, Any]:
    """Return a definition that adds no space to a text."""
    normalisers = [part for part in _parts(definition.get("normalizer"), "normalizers") if part["type"] != "Prepend"]
    pre_tokenisers = [
        {**part, "prepend_scheme": "never"} if part["type"] == "Metaspace" else part
        for part in _parts(definition.get("pre_tokenizer"), "pretokenizers")
    ]
    return {
        **definition,
        "normalizer": {"type": "Sequence", "normalizers": normalisers} if normalisers else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": pre_tokenisers} if pre_tokenisers else None,
    }
