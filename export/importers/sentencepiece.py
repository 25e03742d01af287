"""SentencePiece's `tokenizer.model` as a `tokenizer.json`.

The file is a message of protocol buffers, of which the fields below are read (`sentencepiece_model.proto` of
github.com/google/sentencepiece; the encoding is protobuf.dev/programming-guides/encoding).
"""

import base64
import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from export.importers.byte_level_bpe import list_merges
from models.text.spelling import SPACE

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
UNIGRAM, BPE = 1, 2
MODEL_KINDS = {UNIGRAM: "unigram", BPE: "bpe", 3: "word", 4: "char"}
VARINT, FIXED_64, BYTES, FIXED_32 = 0, 1, 2, 5


@dataclass(frozen=True)
class Piece:
    """A token: its text, its score and its kind, by the numbers above."""

    text: str
    score: float
    kind: int


@dataclass(frozen=True)
class SentencePieceModel:
    """The parts of a model that say how text becomes pieces. `charsmap` is its table of normalisations, empty for none."""

    pieces: tuple[Piece, ...]
    kind: int
    byte_fallback: bool
    charsmap: bytes
    adds_prefix: bool
    joins_spaces: bool


def read_fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield the numbers and values of a message's fields. Raises `ValueError` for bytes that are no message."""
    place = 0
    while place < len(message):
        key, place = _read_varint(message, place)
        number, kind = key >> 3, key & 7
        if kind == VARINT:
            value, place = _read_varint(message, place)
            yield number, value
            continue
        if kind not in (FIXED_64, BYTES, FIXED_32):
            raise ValueError("it is no message of protocol buffers")
        length, place = _read_varint(message, place) if kind == BYTES else ({FIXED_64: 8, FIXED_32: 4}[kind], place)
        if place + length > len(message):
            raise ValueError("it is cut short")
        yield number, message[place : place + length]
        place += length


def _read_varint(message: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while place < len(message) and shift < 64:
        byte = message[place]
        value |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if byte < 128:
            return value, place
    raise ValueError("it is cut short")


def read_model(content: bytes) -> SentencePieceModel:
    """Return the model of a file's content. Raises `ValueError`."""
    pieces: list[Piece] = []
    trainer: dict[int, Any] = {}
    normaliser: dict[int, Any] = {}
    for number, value in read_fields(content):
        if not isinstance(value, bytes):
            continue
        if number == 1:
            pieces.append(_read_piece(value))
        elif number == 2:
            trainer = dict(read_fields(value))
        elif number == 3:
            normaliser = dict(read_fields(value))
    if not pieces:
        raise ValueError("it has no pieces")
    kind = trainer.get(3, UNIGRAM)
    if kind not in (UNIGRAM, BPE):
        raise ValueError(f"it is of the kind {MODEL_KINDS.get(kind, kind)}; known are bpe and unigram")
    return SentencePieceModel(
        pieces=tuple(pieces),
        kind=kind,
        byte_fallback=bool(trainer.get(35, False)),
        charsmap=normaliser.get(2, b""),
        adds_prefix=bool(normaliser.get(3, True)),
        joins_spaces=bool(normaliser.get(4, True)),
    )


def _read_piece(message: bytes) -> Piece:
    fields = dict(read_fields(message))
    text, score = fields.get(1, b""), fields.get(2, b"\0" * 4)
    if not isinstance(text, bytes) or not isinstance(score, bytes) or len(score) != 4:
        raise ValueError("a piece has no text")
    return Piece(text.decode("utf-8"), struct.unpack("<f", score)[0], int(fields.get(3, NORMAL)))


def write_sentencepiece(content: bytes, added: Mapping[str, Any]) -> str:
    """Return the `tokenizer.json` of a `tokenizer.model`. Raises `ValueError`.

    `added` are further tokens by their ids, as `added_tokens_decoder` of a `tokenizer_config.json` has them.
    """
    model = read_model(content)
    specials = {id: piece.text for id, piece in enumerate(model.pieces) if piece.kind in (UNKNOWN, CONTROL)}
    specials |= {id: piece.text for id, piece in enumerate(model.pieces) if piece.kind == USER_DEFINED and not _is_blank(piece)}
    specials |= {int(id): str(each["content"]) for id, each in added.items()}
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    definition = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{**plain, "id": id, "content": text} for id, text in sorted(specials.items())],
        "normalizer": {"type": "Sequence", "normalizers": _normalisers(model)},
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": None,
        "model": _bpe(model) if model.kind == BPE else _unigram(model),
    }
    return json.dumps(definition, ensure_ascii=False)


def _is_blank(piece: Piece) -> bool:
    return not piece.text.replace(SPACE, " ").strip()


def _normalisers(model: SentencePieceModel) -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = []
    if model.charsmap:
        parts.append({"type": "Precompiled", "precompiled_charsmap": base64.b64encode(model.charsmap).decode()})
    if model.joins_spaces:
        parts.append({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "})
        parts.append({"type": "Replace", "pattern": {"Regex": " $"}, "content": ""})
    if model.adds_prefix:
        parts.append({"type": "Prepend", "prepend": SPACE})
    return [*parts, {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}]


def _bpe(model: SentencePieceModel) -> dict[str, Any]:
    vocabulary = {piece.text: id for id, piece in enumerate(model.pieces)}
    made = sorted((piece for piece in model.pieces if piece.kind in (NORMAL, USER_DEFINED)), key=lambda piece: -piece.score)
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": next((piece.text for piece in model.pieces if piece.kind == UNKNOWN), None),
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "byte_fallback": model.byte_fallback,
        "ignore_merges": False,
        "vocab": vocabulary,
        "merges": [list(pair) for pair in list_merges([piece.text for piece in made], vocabulary)],
    }


def _unigram(model: SentencePieceModel) -> dict[str, Any]:
    unknown = next((id for id, piece in enumerate(model.pieces) if piece.kind == UNKNOWN), None)
    pieces = [[piece.text, piece.score] for piece in model.pieces]
    return {"type": "Unigram", "unk_id": unknown, "byte_fallback": model.byte_fallback, "vocab": pieces}
