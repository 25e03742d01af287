"""Translations of the sets that have one are asked for, told by set, and scored."""

import json
from functools import partial
from pathlib import Path

import pytest

from loadtest import translations
from loadtest.support.turns import group_by_set, take_turns
from loadtest.transcripts import ask_peer
from loadtest.translations import main
from tests.support.clients.live_server import audio_file, live_server, tone, wait_until
from tests.support.fakes.fake_engine import FakeEngine

ROWS = [
    {"file": "a.wav", "set": "to_en_es", "text": "hola", "translation_en": "hello"},
    {"file": "b.wav", "set": "to_en_fr", "text": "salut", "translation_en": "hi"},
]


def test_systems_take_turns_and_peers_know_the_language() -> None:
    asked: list[tuple[str, str, str]] = []

    def transcribe(name: str, file: Path, language: str) -> str:
        asked.append((name, file.name, language))
        return "hello"

    one, two = (ask_peer(partial(transcribe, name), Path("data"), only) for name, only in (("one", None), ("two", "fr")))
    answers = take_turns(ROWS, {"one": one, "two": two})
    assert asked == [("one", "a.wav", "es"), ("one", "b.wav", "fr"), ("two", "b.wav", "fr")]
    assert [each.row["translation_en"] for each in group_by_set(answers["two"])["to_en_fr"]] == ["hi"]


def test_the_server_is_asked_and_the_table_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(translations, "score", lambda _answers: (12.34, 56.78))
    for row in ROWS:
        (tmp_path / row["file"]).write_bytes(audio_file(tone(0.5, 16_000), 16_000, "WAV"))
    others = [{"file": "c.wav", "set": "libri_other", "text": "no"}]
    (tmp_path / "eval.jsonl").write_text("\n".join(map(json.dumps, [*ROWS, *others])))
    engine = FakeEngine()
    with live_server(engine) as server:
        wait_until(lambda: engine.stats().ready)
        main(["--url", server.url, "--data", str(tmp_path), "--out", str(tmp_path / "out")])
    assert {each.task.instruction for each in engine.submitted} == {translations.INSTRUCTION}
    assert "| `to_en_es` | 1 | 12.3 | 56.8 |" in (tmp_path / "out" / "translations.md").read_text()
    assert json.loads((tmp_path / "out" / "translations.json").read_text())["server"]["to_en_fr"][0]["text"] == "hello world"
