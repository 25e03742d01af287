"""The page of examples has the first recordings of a set, all of them, with every instruction."""

import json
from pathlib import Path

from loadtest.examples import INSTRUCTIONS, main
from tests.support.clients.live_server import audio_file, live_server, tone, wait_until
from tests.support.fakes.fake_engine import FakeEngine


def test_the_first_recordings_are_told_with_all_answers(tmp_path: Path) -> None:
    rows = [
        {"file": f"{name}.wav", "set": set_name, "text": f"text {name}", "duration_s": 0.5}
        for name, set_name in (("a", "other"), ("b", "chosen"), ("c", "chosen"), ("d", "chosen"))
    ]
    for row in rows:
        (tmp_path / str(row["file"])).write_bytes(audio_file(tone(0.5, 16_000), 16_000, "WAV"))
    (tmp_path / "eval.jsonl").write_text("\n".join(map(json.dumps, rows)))
    engine = FakeEngine()
    engine.text = "an\nanswer"
    with live_server(engine) as server:
        wait_until(lambda: engine.stats().ready)
        page = tmp_path / "examples.md"
        main(["--url", server.url, "--data", str(tmp_path), "--set", "chosen", "--count", "2", "--out", str(page)])
    text = page.read_text()
    assert [name for name in "abcd" if f"text {name}" in text] == ["b", "c"]
    assert text.count("\n> an answer\n") == 2 * len(INSTRUCTIONS)
