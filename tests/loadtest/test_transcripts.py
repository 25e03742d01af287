"""Transcripts are compared as the field does it: numbers and spellings that sound the same are the same."""

from loadtest.transcripts import Column, language_of, report


def column(reference: str, text: str) -> Column:
    return Column([reference], [text], [0.25], [3])


def test_english_is_normalised_and_other_languages_are_plain() -> None:
    results = {
        "server": {
            "vctk": column("Six spoons of colour.", "6 spoons of color"),
            "common_voice_de": column("Sechs Löffel.", "6 löffel"),
        }
    }
    table = "\n".join(report(results))
    assert "| `vctk` | 1 | 0.0 % | 0 | 250 | 3.0 |" in table
    assert "| `common_voice_de` | 1 | 50.0 % | 0 | 250 | 3.0 |" in table


def test_a_set_tells_its_language() -> None:
    assert [language_of(name) for name in ("vctk", "common_voice_de", "to_en_it")] == ["en", "de", "it"]
