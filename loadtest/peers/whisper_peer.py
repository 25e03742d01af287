"""faster-whisper in a process of its own.

    python -m loadtest.peers.whisper_peer --model FOLDER --threads 2

`{"audio": WAV, "beam_size": N, "batched": BOOL}` in, `{"text": TEXT}` out. With `"chunks": [[start_s, end_s], ...]` the
batched pipeline takes these pieces of the file as one batch.

Set for speed where that cannot change much else: the language is given, no timestamps, no second try at another temperature.
"""

from collections.abc import Callable
from typing import Any

import soundfile
from faster_whisper import BatchedInferencePipeline, WhisperModel

from loadtest.peers.lines import answer_for_model

OPTIONS: dict[str, Any] = {"language": "en", "without_timestamps": True, "temperature": 0.0}


def load(model_folder: str, threads: int) -> Callable[[dict[str, Any]], dict[str, Any]]:
    model = WhisperModel(model_folder, device="cpu", compute_type="int8", cpu_threads=threads)
    batched = BatchedInferencePipeline(model)

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        audio, _ = soundfile.read(request["audio"], dtype="float32")
        if request.get("batched"):
            chunks = [{"start": start, "end": end} for start, end in request.get("chunks", [])]
            how: dict[str, Any] = {"clip_timestamps": chunks, "batch_size": len(chunks)} if chunks else {"batch_size": 8}
            segments, _ = batched.transcribe(audio, beam_size=request["beam_size"], **how, **OPTIONS)
        else:
            segments, _ = model.transcribe(audio, beam_size=request["beam_size"], condition_on_previous_text=False, **OPTIONS)
        return {"text": " ".join(segment.text.strip() for segment in segments)}

    return answer


if __name__ == "__main__":
    answer_for_model(__doc__, load)
