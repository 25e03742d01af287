"""Rare words and leaks of keywords are counted per way to ask."""

import json
from pathlib import Path
from random import Random

from loadtest.keywords import OTHERS_ALONE, OWN, WITHOUT, choose_others, measure, read_clips, report
from loadtest.support.asking import open_client
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
    clips = read_clips(write_data(tmp_path), ["libri_other"], 10)
    assert [clip.rare for clip in clips] == [("sailor",), ("lighthouse",), ("marvellous", "lighthouse")]
    assert choose_others(clips, clips[2], Random(0)) == ["sailor"]
    assert len(read_clips(tmp_path, ["libri_other"], 1)) == 1
    assert read_clips(tmp_path, ["vctk"], 10) == []


def test_every_clip_is_asked_three_times(tmp_path: Path) -> None:
    """The scripted engine writes the same words whatever is asked."""
    clips = read_clips(write_data(tmp_path), ["libri_other"], 10)
    engine = FakeEngine()
    with live_server(engine) as server:
        wait_until(lambda: engine.stats().ready)
        with open_client(server.url) as client:
            columns = measure(clips, client)
    asked = [set(each.task.keywords) for each in engine.submitted]
    assert asked[:3] == [set(), {"sailor", "lighthouse", "marvellous"}, {"lighthouse", "marvellous"}]
    assert len(asked) == 9
    assert list(columns) == [WITHOUT, OWN, OTHERS_ALONE]
    assert [(column.found, column.leaks) for column in columns.values()] == [(0, 0)] * 3
    columns[OWN].found, columns[OTHERS_ALONE].leaks = 3, 2
    table = "\n".join(report(clips, columns))
    assert "recall of 4 rare words | leaks in 3 recordings" in table
    assert f"| {OWN} | 75 % | 0 |" in table
    assert f"| {OTHERS_ALONE} | 0 % | 2 |" in table
