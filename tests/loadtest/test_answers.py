"""The benchmark of answers asks every request, judges the answers, and measures the gap to the true text."""

import json
from pathlib import Path
from typing import Any

import pytest

from loadtest.answers import Judged, ask_all, main, measure_gap
from tests.support.clients.live_server import audio_file, live_server, tone, wait_until
from tests.support.fakes.fake_engine import FakeEngine


def row(id: str, kind: str, expected: list[list[str]], **other: Any) -> dict[str, Any]:
    fields: dict[str, Any] = {"text": "Tom has a dog.", "instruction": "Who has a dog?", "options": [], "slots": {}}
    fields |= {"is_choice": False, "json_schema": None}
    return (
        {"id": id, "half": "reported", "kind": kind, "expected": expected, "recording": None, "audio": "a.wav"} | fields | other
    )


def judged(id: str, answer: str) -> Judged:
    return Judged(id, "fact", "synthesis", answer, "right")


def test_the_gap_counts_equal_and_near_answers_of_the_same_requests() -> None:
    speech = [judged("a", "Tom has a dog"), judged("b", "Tom has a dog"), judged("c", "A cat."), judged("d", "alone")]
    texts = [judged("a", "Tom has a dog."), judged("b", "Tom had a dog"), judged("c", "Tom")]
    gap = measure_gap(speech, texts)
    assert (gap.requests, gap.equal, gap.thin) == (3, 1, 1)
    assert gap.f1 == pytest.approx((1 + 0.75 + 0) / 3)


def test_every_request_is_asked_and_judged(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(audio_file(tone(0.5, 16_000), 16_000, "WAV"))
    engine = FakeEngine()
    engine.text = "Tom"
    with live_server(engine) as server:
        wait_until(lambda: engine.stats().ready)
        rows = [row("a", "fact", [["Tom"]]), row("b", "fact", [["Eve"]])]
        found = ask_all(server.url, rows, tmp_path, tmp_path / "told.jsonl", parallel=2)
        again = ask_all(server.url, rows, tmp_path, tmp_path / "told.jsonl")
    assert [(each.id, each.outcome) for each in found] == [("a", "right"), ("b", "wrong")]
    assert again == found
    assert len(engine.submitted) == 2


def test_files_are_judged_without_a_server_and_reported(tmp_path: Path) -> None:
    rows = [row("a", "fact", [["Tom"]]), row("b", "fact", [["Tom"]]), row("c", "fact", [["Tom"]], half="tuning")]
    (tmp_path / "manifest.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "answers.json").write_text(json.dumps({"a": "Tom", "b": "Eve", "c": "Tom"}))
    main(["--data", str(tmp_path), "--beside", f"true text={tmp_path / 'answers.json'}", "--out", str(tmp_path / "out")])
    report = (tmp_path / "out" / "answers.md").read_text()
    assert "| **all** | 2 | 50 % |" in report
    results = json.loads((tmp_path / "out" / "answers.json").read_text())
    assert [each["outcome"] for each in results["true text"]] == ["right", "wrong"]


def test_something_has_to_be_judged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "manifest.jsonl").write_text("")
    with pytest.raises(SystemExit):
        main(["--data", str(tmp_path)])
    assert "--beside" in capsys.readouterr().err
