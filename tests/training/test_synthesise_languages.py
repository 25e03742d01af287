"""Speech in other languages: every sentence keeps its language, up to what Whisper's decoder is told of a cache's recordings."""

import json
import shutil
import sys
from collections import Counter
from pathlib import Path

import pytest

from training import synthesise_languages
from training.cache_whisper import plan as plan_cache
from training.spoken_requests.request import VOICES
from training.synthesise_languages import ACCENTS, KOKORO_VOICES, plan


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    for language in ACCENTS:
        sentences = [f"Ein Satz mit der Nummer {chr(97 + number)}." for number in range(20)]
        (tmp_path / f"common_voice.{language}.txt").write_text("\n".join([*sentences, "kurz", "mit Ziffern 12 darin"]))
        (tmp_path / f"tatoeba.en-{language}.tsv").write_text("A sentence.\tNoch ein anderer Satz.\n")
    return tmp_path


def test_each_language_has_its_share_of_each_engine_and_no_voice_that_is_measured_with(texts: Path) -> None:
    jobs = list(plan(texts, {"espeak": 12, "kokoro": 3}, seed=0))
    assert Counter((job.language, job.engine) for job in jobs) == {
        (language, engine): count for language in ACCENTS for engine, count in (("espeak", 12), ("kokoro", 3))
    }
    assert len({job.file for job in jobs}) == len(jobs)
    assert not any("12" in job.text or job.text == "kurz" for job in jobs)
    assert jobs == list(plan(texts, {"espeak": 12, "kokoro": 3}, seed=0))
    assert set(KOKORO_VOICES).isdisjoint(voice for voices in VOICES.values() for voice in voices)


@pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="there is no espeak-ng")
def test_joined_sentences_are_cached_in_their_language(texts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = texts / "out"
    options = ["--text", str(texts), "--models", str(texts), "--out", str(out), "--espeak", "4", "--kokoro", "0"]
    monkeypatch.setattr(sys, "argv", ["synthesise_languages", *options])
    synthesise_languages.main()
    rows = [json.loads(line) for line in (out / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 16
    recordings = plan_cache([row | {"speaker": row["language"]} for row in rows])
    assert any(len(each.files) > 1 for each in recordings)
    assert all(Path(file).name.startswith(each.language) for each in recordings for file in each.files)
