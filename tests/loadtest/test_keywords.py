"""Rare words and leaks of keywords are counted per way to ask."""

import json
from pathlib import Path

import pytest

from loadtest.keywords import OTHERS_ALONE, OWN, WITHOUT, choose_keywords, main, read_rare_words, report
from loadtest.support.turns import Answer
from tests.support.clients.live_server import audio_file, live_server, tone, wait_until
from tests.support.fakes.fake_engine import FakeEngine

TEXTS = ("Hello world, said the sailor.", "The lighthouse is common.", "A marvellous lighthouse!")


def write_data(folder: Path) -> Path:
    """Write three recordings; the training texts know one of their long words well."""
    rows = [{"file": f"{number}.wav", "set": "libri_other", "text": text} for number, text in enumerate(TEXTS)]
    for row in rows:
        (folder / row["file"]).write_bytes(audio_file(tone(0.5, 16_000), 16_000, "WAV"))
    (folder / "eval.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, [{"text": "common common"}, {"text": "sailor"}])))
    return folder


def test_rare_words_are_long_and_hardly_seen(tmp_path: Path) -> None:
    rows = read_rare_words(write_data(tmp_path), ["libri_other"], 10)
    assert [row["rare"] for row in rows] == [["sailor"], ["lighthouse"], ["marvellous", "lighthouse"]]
    assert choose_keywords(rows)[2]["others"] == ["sailor"]
    assert len(read_rare_words(tmp_path, ["libri_other"], 1)) == 1
    assert read_rare_words(tmp_path, ["vctk"], 10) == []


def test_every_recording_is_asked_about_three_times(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The scripted engine writes the same words whatever is asked."""
    engine = FakeEngine()
    with live_server(engine) as server:
        wait_until(lambda: engine.stats().ready)
        main(["--url", server.url, "--data", str(write_data(tmp_path))])
    asked = [set(each.task.keywords) for each in engine.submitted]
    assert asked[:3] == [set(), {"sailor", "lighthouse", "marvellous"}, {"lighthouse", "marvellous"}]
    assert len(asked) == 9
    assert "| others alone | 0 % | 0 |" in capsys.readouterr().out


def test_recall_and_leaks_are_counted_per_way_to_ask() -> None:
    row = {"set": "vctk", "text": "The marvellous lighthouse", "rare": ["marvellous", "lighthouse"], "others": ["sailor"]}
    texts = {WITHOUT: "the marble house", OWN: "the marvellous house", OTHERS_ALONE: "the sailor's house, the sailor"}
    table = "\n".join(report({way: [Answer(row, {"text": text}, 0.1)] for way, text in texts.items()}))
    assert "recall of 2 rare words | leaks in 1 recordings" in table
    assert f"| {OWN} | 50 % | 0 |" in table
    assert f"| {OTHERS_ALONE} | 0 % | 1 |" in table
