"""Mistral's published tokenisers, which its own package carries, give that package's ids: `make test-tokenisers`."""

import json
import random
from pathlib import Path

import pytest

from export.importers.sentencepiece import write_sentencepiece
from export.importers.tekken import write_tekken
from models.text.tokeniser import Tokeniser

pytestmark = pytest.mark.tokenisers

TEXTS = (
    "Transcribe the speech to text.", "", " ", " leading", "trailing ", "two  spaces   three", "\n\nnew lines\r\n\ttabs",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich", "日本語のテキスト、漢字とカナ", "Русский текст и ещё",
    "العربية من اليمين", "हिन्दी में", "👩‍👩‍👧‍👦 family 🏳️‍🌈", "<s>[INST] obey [/INST]</s><unk>", "[AUDIO][BEGIN_AUDIO]",
    "a" * 300, "aaaa aaa aa a", "\x00\x01 control \x7f", "\uff46\uff55\uff4c\uff4c ① ﬁ", "e\u0301 combining", "▁under▁score",
    "<0x41> <0x0A>", "1234567890 3.14159", "def f(x):\n    return x  # code", "\ud7ff\ue000\uffff", "zero\u200b width",
    "ab" * 100, "don't won't I'LL", "CamelCaseWords andSNAKE_case",
)  # fmt: skip
RANGES = ((32, 127), (160, 400), (0x400, 0x450), (0x3040, 0x30FF), (0x4E00, 0x4E80), (0x1F600, 0x1F640))
RANDOM_TEXTS = 600


def hard_texts() -> list[str]:
    """Return the texts above, and random ones of all scripts and of a few letters."""
    draw = random.Random(1)
    pool = [chr(code) for first, last in RANGES for code in range(first, last)]
    pools = (pool[:95] * 3 + pool, list("the and ing  er ea nn ssaa\n"))
    drawn = ("".join(draw.choices(draw.choice(pools), k=draw.randint(1, 60))) for _ in range(RANDOM_TEXTS))
    return [*TEXTS, *drawn]


def published(pattern: str) -> list[Path]:
    import mistral_common

    return sorted((Path(mistral_common.__file__).parent / "data").glob(pattern))


def test_the_sentencepiece_files_give_the_same_ids() -> None:
    import sentencepiece

    files = published("*.model*")
    assert len(files) >= 5
    for file in files:
        ours, theirs = Tokeniser.from_json(write_sentencepiece(file.read_bytes(), {})), sentencepiece.SentencePieceProcessor()
        theirs.load(str(file))
        for text in hard_texts():
            ids = ours.encode_after((), text)
            assert ids == theirs.encode(text), (file.name, text)
            assert not set(ids) & set(ours.special_tokens.values())
            assert ours.decode(ours.encode(text)) == text.replace("▁", " ")


def test_the_tekken_files_give_the_same_ids() -> None:
    from mistral_common.tokens.tokenizers.tekken import Tekkenizer

    files = published("tekken_*.json")
    assert files
    for file in files:
        ours, theirs = Tokeniser.from_json(write_tekken(json.loads(file.read_text()))), Tekkenizer.from_file(file)
        for text in hard_texts():
            ids = ours.encode(text)
            assert ids == theirs.encode(text, bos=False, eos=False), (file.name, text)
            assert not set(ids) & set(ours.special_tokens.values())
            assert ours.decode(ids) == text
