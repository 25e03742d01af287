"""Transcribe the audio of the benchmark with Whisper base as faster-whisper runs it: the texts of the plain cascade.

    python -m training.spoken_requests.transcribe --data work/spoken_requests --whisper WHISPER_CT2_DIR --out work/texts.json

In 8 bits, beam 1, with the language given. Writes a JSON object of texts by request id, which `training.text_answers` asks about.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from training.spoken_requests.request import read_requests


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, metavar="FOLDER", help="with manifest.jsonl and the audio")
    parser.add_argument("--whisper", type=Path, required=True, metavar="FOLDER", help="Whisper base in CTranslate2's format")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE")
    parser.add_argument("--threads", type=int, default=1)
    parsed = parser.parse_args(arguments)
    from faster_whisper import WhisperModel

    model = WhisperModel(str(parsed.whisper), device="cpu", compute_type="int8", cpu_threads=parsed.threads)
    requests = read_requests(parsed.data / "manifest.jsonl")
    texts: dict[str, str] = {}
    for audio, language in tqdm(sorted({(request.audio, request.language) for request in requests}), desc="recordings"):
        file = str(parsed.data / audio)
        pieces, _ = model.transcribe(file, beam_size=1, language=language, without_timestamps=True)
        texts[audio] = " ".join(piece.text.strip() for piece in pieces)
    by_id = {request.id: texts[request.audio] for request in requests}
    parsed.out.write_text(json.dumps(by_id, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
