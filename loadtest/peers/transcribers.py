"""Other systems that transcribe files, in this process: `(file, language) -> text`, with None for a language to be found."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import soundfile

Transcribe = Callable[[Path, str | None], str]
THREADS = 2


def load_faster_whisper(folder: Path, task: Literal["transcribe", "translate"] = "transcribe") -> Transcribe:
    """Return faster-whisper with a model in CTranslate2's format, in 8 bits, greedy."""
    from faster_whisper import WhisperModel

    model = WhisperModel(str(folder), device="cpu", compute_type="int8", cpu_threads=THREADS)

    def transcribe(file: Path, language: str | None) -> str:
        pieces, _ = model.transcribe(str(file), beam_size=1, language=language, task=task, without_timestamps=True)
        return " ".join(piece.text.strip() for piece in pieces)

    return transcribe


def load_moonshine() -> Transcribe:
    """Return Moonshine tiny with the weights in its wheel, for English. It hears each file whole, which it transcribes best."""
    import moonshine_voice

    weights = Path(moonshine_voice.__file__).parent / "assets" / "tiny-en"
    model = moonshine_voice.Transcriber(str(weights), moonshine_voice.ModelArch.TINY, options={"vad_threshold": 0.0})

    def transcribe(file: Path, language: str | None) -> str:
        if language != "en":
            raise ValueError(f"Moonshine tiny knows no {language}")
        samples, rate_hz = soundfile.read(file, dtype="float32")
        lines = model.transcribe_without_streaming(samples.tolist(), rate_hz).lines
        return " ".join(line.text.strip() for line in lines)

    return transcribe
