"""Transcripts are compared as the field does it: numbers and spellings that sound the same are the same."""

from pathlib import Path

from loadtest.support.turns import Answer
from loadtest.transcripts import ask_peer, ask_peer_without_language, language_of, report


def answer(set_name: str, reference: str, text: str) -> Answer:
    row = {"set": set_name, "text": reference, "duration_s": 2.0}
    return Answer(row, {"text": text, "speculation": {"llm_passes": 3}}, 0.25)


def test_english_is_normalised_and_other_languages_are_plain() -> None:
    from_server = [
        answer("vctk", "Six spoons of colour.", "6 spoons of color"),
        answer("common_voice_de", "Sechs Löffel.", "6 löffel"),
    ]
    table = "\n".join(report({"server": from_server}))
    assert "| `vctk` | 1 | 0.0 % | 0 | 250 | 3.0 |" in table
    assert "| `common_voice_de` | 1 | 50.0 % | 0 | 250 | 3.0 |" in table


def test_a_set_tells_its_language() -> None:
    assert [language_of(name) for name in ("vctk", "common_voice_de", "to_en_it")] == ["en", "de", "it"]


def test_a_peer_is_given_the_language_or_has_to_find_it() -> None:
    asked: list[str | None] = []

    def transcribe(_file: Path, language: str | None) -> str:
        asked.append(language)
        return "hola"

    row = {"set": "to_en_es", "file": "a.wav"}
    for ask in (ask_peer(transcribe, Path("data")), ask_peer_without_language(transcribe, Path("data"))):
        assert ask(row) == {"text": "hola"}
    assert asked == ["es", None]
