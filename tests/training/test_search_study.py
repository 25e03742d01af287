"""The study of the search picks recordings evenly over the speakers, and measures a real bundle's search."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from models.bundle.io import open_bundle, write_bundle
from models.bundle.schema import BundleDescription
from tests.support.tiny.tiny_bundle import with_search, write_speaking_bundle
from training.search_study import main, pick_rows


def test_speakers_take_turns() -> None:
    rows = [{"speaker": speaker, "file": f"{speaker}{number}"} for speaker in "aaaaaabbc" for number in range(1)]
    assert sorted(row["speaker"] for row in pick_rows(rows, 5)) == ["a", "a", "b", "b", "c"]
    assert len(pick_rows(rows, 50)) == 9


def test_a_table_is_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    folder, data = tmp_path / "bundle", tmp_path / "data"
    write_speaking_bundle(folder)
    searched = with_search(open_bundle(folder)).manifest
    (folder / "bundle.json").unlink()
    names = BundleDescription.model_fields
    write_bundle(folder, BundleDescription(**{name: value for name, value in dict(searched).items() if name in names}))
    data.mkdir()
    rows = [{"set": "all", "file": f"{number}.wav", "speaker": "a", "text": "the end"} for number in range(2)]
    (data / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for number, row in enumerate(rows):
        noise = np.random.default_rng(number).normal(0, 0.2, 24_000).astype(np.float32)
        soundfile.write(data / str(row["file"]), noise, 16_000)
    options = ["--bundle", str(folder), "--data", str(data), "--sets", "all", "--unheard", "all", "--token-bonuses", "6"]
    monkeypatch.setattr("sys.argv", ["search_study", *options])
    main()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[2] for line in lines[2:]] == ["no search", "4", "4", "4"]
