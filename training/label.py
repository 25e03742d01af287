"""Give real recordings the cased, punctuated text that the adapter learns: labels of Whisper base where needed.

    python -m training.label --data DATA_DIR --whisper CT2_DIR --out work/real

Recordings with an exact text keep its words and take only case and punctuation from Whisper; prompts read by
non-native speakers, whom Whisper base mishears, become plain sentences; recordings without text are labelled by Whisper,
and left out where it is unsure. Only the train manifest is read. A second run goes on where the first stopped.
"""

import argparse
import json
import re
from pathlib import Path
from typing import Any

from tqdm import tqdm

from training.manifest import Utterance, write_manifest
from training.recordings import read_audio, read_rows
from training.spelling import restore_case
from training.synthesise import sentence_case

MIN_AVERAGE_LOGPROB = -0.7


def transcribe(model: Any, audio: Path) -> tuple[str, float]:
    """Whisper's text of a clip, and its mean log-probability per token (the worst segment's)."""
    options = {"beam_size": 1, "condition_on_previous_text": False, "without_timestamps": True}
    segments, _ = model.transcribe(read_audio(audio), language="en", **options)
    found = list(segments)
    return " ".join(s.text.strip() for s in found), min((s.avg_logprob for s in found), default=-10.0)


def label(row: dict[str, Any], model: Any, data: Path) -> str | None:
    if row["set"] == "nonnative":
        return sentence_case(row["text"].lower())
    text, logprob = transcribe(model, data / row["file"])
    if row["text"]:
        return restore_case(row["text"], text)
    repeats = re.search(r"(\b.{3,}?)\1{3,}", text) is not None
    return text if text and logprob > MIN_AVERAGE_LOGPROB and not repeats else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--whisper", type=Path, required=True, help="Whisper base, CTranslate2 format, for faster-whisper")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    from faster_whisper import WhisperModel

    model = WhisperModel(str(arguments.whisper), device="cpu", compute_type="int8", cpu_threads=arguments.threads)
    arguments.out.mkdir(parents=True, exist_ok=True)
    progress = arguments.out / "labels.jsonl"
    known = dict(map(json.loads, progress.read_text().splitlines())) if progress.exists() else {}
    rows = read_rows(arguments.data / "train.jsonl")
    with progress.open("a") as out:
        for row in tqdm(rows, desc="labels"):
            if row["file"] not in known:
                known[row["file"]] = label(row, model, arguments.data)
                print(json.dumps([row["file"], known[row["file"]]]), file=out, flush=True)
    utterances = [
        Utterance(
            id=Path(row["file"]).stem,
            audio=str((arguments.data / row["file"]).resolve()),
            text=text,
            dataset=row["set"],
            source="given" if row["text"] else "whisper",
            speaker=row["speaker"] or "unknown",
            duration_s=row["duration_s"],
        )
        for row in rows
        if (text := known[row["file"]])
    ]
    write_manifest(arguments.out / "manifest.jsonl", utterances)
    print(f"{len(utterances)} of {len(rows)} recordings, {sum(u.duration_s for u in utterances) / 3600:.2f} h")


if __name__ == "__main__":
    main()
