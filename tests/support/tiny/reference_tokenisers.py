"""SentencePiece's and tiktoken's tokenisers in a few plain lines, and tiny SentencePiece files."""

import math
import struct
from collections.abc import Mapping, Sequence
from itertools import pairwise

import regex

from export.importers.sentencepiece import BPE, BYTE, CONTROL, NORMAL, UNKNOWN, Piece

SPACE = "▁"
WORDS = (
    "▁the",
    "▁then",
    "the",
    "he",
    "th",
    "en",
    "▁t",
    "▁",
    "aa",
    "aaa",
    "ab",
    "ba",
    "aba",
    "▁▁",
    "s>",
    "ro",
    "or",
    "▁or",
    "roo",
)
"""Pieces of letters and of one another."""


def tiny_pieces(kind: int, *, spells_bytes: bool = True) -> list[Piece]:
    """Return the pieces of a tiny vocabulary: special ones, bytes, words, and single characters."""
    pieces = [Piece("<unk>", 0, UNKNOWN), Piece("<s>", 0, CONTROL), Piece("</s>", 0, CONTROL), Piece("[INST]", 0, CONTROL)]
    if spells_bytes:
        pieces += [Piece(f"<0x{byte:02X}>", 0, BYTE) for byte in range(256)]
    # In a BPE vocabulary a word is made of two earlier ones.
    words = sorted(WORDS, key=len)
    scores = [-float(number) if kind == BPE else -3.0 - 0.37 * number for number in range(len(words))]
    pieces += [Piece(word, score, NORMAL) for word, score in zip(words, scores, strict=True)]
    return pieces + [Piece(character, -30.0 - number, NORMAL) for number, character in enumerate("▁theorabns<>/[]INT")]


def write_model(pieces: Sequence[Piece], kind: int, *, byte_fallback: bool = True, joins_spaces: bool = False) -> bytes:
    """Return the content of a `tokenizer.model`."""
    message = b""
    for piece in pieces:
        body = _field(1, piece.text.encode()) + bytes([2 << 3 | 5]) + struct.pack("<f", piece.score) + _number(3, piece.kind)
        message += _field(1, body)
    message += _field(2, _number(3, kind) + _number(35, byte_fallback))
    return message + _field(3, _number(3, True) + _number(4, joins_spaces))


def encode_sentencepiece(text: str, pieces: Sequence[Piece], kind: int) -> list[int]:
    """Return the ids of a text, with a space before it."""
    if not text:
        return []
    whole = (SPACE + text).replace(" ", SPACE)
    usable = {piece.text: (id, piece.score) for id, piece in enumerate(pieces) if piece.kind == NORMAL}
    parts = _merge_pieces(list(whole), usable) if kind == BPE else _best_pieces(whole, usable)
    ids = {piece.text: id for id, piece in enumerate(pieces)}
    found: list[int] = []
    for part in parts:
        if part in usable:
            found.append(usable[part][0])
        elif "<0x00>" in ids:
            found += [ids[f"<0x{byte:02X}>"] for byte in part.encode()]
        elif found[-1:] != [0]:
            found.append(0)
    return found


def _merge_pieces(parts: list[str], usable: Mapping[str, tuple[int, float]]) -> list[str]:
    """Join the two neighbours that make the best piece, the first of equal ones, until none do."""
    while True:
        scores = [usable.get(first + second, (0, -math.inf))[1] for first, second in pairwise(parts)]
        if not scores or max(scores) == -math.inf:
            return parts
        place = scores.index(max(scores))
        parts[place : place + 2] = ["".join(parts[place : place + 2])]


def _best_pieces(text: str, usable: Mapping[str, tuple[int, float]]) -> list[str]:
    """Return the cut into pieces of the best sum of scores; a character that is no piece costs more than any."""
    worst = min(score for _, score in usable.values()) - 10
    best: list[tuple[float, list[str]]] = [(0.0, [])]
    for end in range(1, len(text) + 1):
        candidates = []
        for start in range(end):
            part = text[start:end]
            score = usable[part][1] if part in usable else worst if len(part) == 1 else None
            if score is not None:
                candidates.append((best[start][0] + score, [*best[start][1], part]))
        best.append(max(candidates, key=lambda candidate: candidate[0]))
    return best[-1][1]


def encode_tiktoken(text: str, ranks: Mapping[bytes, int], words: str) -> list[int]:
    """Return the ids of a text by tiktoken's rule: within a word the two neighbours whose token comes first are joined."""
    found: list[int] = []
    for word in regex.findall(words, text):
        parts = [bytes([byte]) for byte in word.encode()]
        if word.encode() in ranks:
            parts = [word.encode()]
        while len(parts) > 1:
            scores = [ranks.get(first + second, math.inf) for first, second in pairwise(parts)]
            if min(scores) == math.inf:
                break
            place = scores.index(min(scores))
            parts[place : place + 2] = [b"".join(parts[place : place + 2])]
        found += [ranks[part] for part in parts]
    return found


def _field(number: int, content: bytes) -> bytes:
    return bytes([number << 3 | 2]) + _varint(len(content)) + content


def _number(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(int(value))


def _varint(value: int) -> bytes:
    encoded = b""
    while value > 127:
        encoded += bytes([value & 127 | 128])
        value >>= 7
    return encoded + bytes([value])
