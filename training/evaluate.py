"""Measure a bundle on recordings it was not trained on: WER by the LLM and by the CTC draft, and the modality gap.

    python -m training.evaluate --bundle BUNDLE --eval DATA_DIR/eval.jsonl --whisper CT2_DIR --out training/results

The chain that is measured is the one that serves: ONNX encoder, adapter and LLM of the bundle, greedy. `--whisper` adds
faster-whisper base int8, beam 1 and 5, on the same files in the same run. Writes `evaluation.json` and `evaluation.md`.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from export.markdown import table
from models.assemble import load_models
from models.bundle.io import open_bundle
from models.chain import Models
from models.ctc import collapse
from models.protocols import DecodeRow, Float32, PrefillRow, ProjectorOutput
from models.text.tokeniser import lay_out_prompt
from training.modality_gap import GAP_INSTRUCTIONS, agreement
from training.recordings import read_audio, read_rows
from training.word_errors import word_error_rate

ENGLISH_SETS = ("libri_other", "nonnative", "vctk", "ljspeech")
TRANSCRIBE = "Transcribe the speech to text."
MAX_TOKENS = 160


@dataclass(frozen=True)
class Clip:
    set: str
    text: str
    audio: npt.NDArray[np.float32]


def read_clips(manifest: Path) -> list[Clip]:
    """Read the English recordings of an evaluation manifest. Raises `ValueError` for audio that is not at 16 kHz."""
    rows = read_rows(manifest, ENGLISH_SETS)
    return [Clip(row["set"], row["text"], read_audio(manifest.parent / row["file"])) for row in rows]


class Chain:
    """One utterance at a time through a bundle's models, without a server."""

    def __init__(self, models: Models) -> None:
        self.models = models

    def project(self, audio: Float32) -> ProjectorOutput:
        return self.models.projector.project(self.models.encoder.encode([self.models.features(audio)]))[0]

    def draft(self, output: ProjectorOutput) -> str:
        """Return the CTC draft's text."""
        return self.models.tokeniser.decode(collapse(output.require_draft().best_token))

    def answer_speech(self, instruction: str, output: ProjectorOutput) -> str:
        if not len(output.embeddings):
            return ""
        before, after = self.models.boundaries(instruction)
        return self.generate(instruction, np.concatenate([before, output.embeddings, after]))

    def answer_text(self, instruction: str, text: str) -> str:
        """Return the same LLM's answer to the same instruction about written text."""
        return self.generate(instruction, self.models.require_llm().embed(self.models.tokeniser.encode(text)))

    def generate(self, instruction: str, middle: Float32) -> str:
        """Greedy."""
        models, llm = self.models, self.models.require_llm()
        ids = lay_out_prompt(models.template, models.tokeniser, instruction)
        prompt = np.concatenate([llm.embed(ids.before_speech), middle, llm.embed(ids.after_speech)])
        token = int(llm.prefill([PrefillRow(0, 0, prompt)])[0].argmax())
        tokens: list[int] = []
        while token not in models.template.end_tokens and len(tokens) < MAX_TOKENS:
            tokens.append(token)
            token = int(llm.decode([DecodeRow(0, len(prompt) + len(tokens) - 1, [token])])[0].argmax())
        return models.tokeniser.decode(tokens)


def error_rates(clips: list[Clip], transcribe: Callable[[Clip], str], name: str) -> tuple[dict[str, float], list[str]]:
    """WER per set, and all texts."""
    texts = [transcribe(clip) for clip in tqdm(clips, desc=name)]
    rates = {}
    for dataset in ENGLISH_SETS:
        pairs = [(clip.text, text) for clip, text in zip(clips, texts, strict=True) if clip.set == dataset]
        rates[dataset] = round(word_error_rate([p[0] for p in pairs], [p[1] for p in pairs]), 4)
    return rates, texts


def faster_whisper(folder: Path, beam_size: int, threads: int) -> Callable[[Clip], str]:
    from faster_whisper import WhisperModel

    model = WhisperModel(str(folder), device="cpu", compute_type="int8", cpu_threads=threads)

    def transcribe(clip: Clip) -> str:
        segments, _ = model.transcribe(clip.audio, language="en", beam_size=beam_size, condition_on_previous_text=False)
        return " ".join(segment.text.strip() for segment in segments)

    return transcribe


def modality_gap(chain: Chain, clips: list[Clip], outputs: list[ProjectorOutput], count: int) -> dict[str, Any]:
    """Return by instruction how near the answers from speech are to those from the true text, for clips of all sets."""
    chosen = np.linspace(0, len(clips) - 1, count).round().astype(int).tolist()
    gap = {}
    for instruction in GAP_INSTRUCTIONS:
        pairs = [
            (chain.answer_text(instruction, clips[i].text), chain.answer_speech(instruction, outputs[i]))
            for i in tqdm(chosen, desc=instruction)
        ]
        gap[instruction] = agreement(pairs)
    return gap


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--eval", type=Path, required=True, help="manifest of recordings with their texts")
    parser.add_argument("--whisper", type=Path, help="Whisper base in CTranslate2 format, for faster-whisper beside it")
    parser.add_argument("--gap-clips", type=int, default=50, help="0 leaves the modality gap out")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    chain = Chain(load_models(open_bundle(arguments.bundle), slots=1, threads=arguments.threads))
    clips = read_clips(arguments.eval)
    outputs = [chain.project(clip.audio) for clip in tqdm(clips, desc="encoder and adapter")]
    by_audio = {id(clip): output for clip, output in zip(clips, outputs, strict=True)}

    rates: dict[str, dict[str, float]] = {}
    rates["CTC draft"], drafts = error_rates(clips, lambda clip: chain.draft(by_audio[id(clip)]), "draft")
    rates["LLM"], texts = error_rates(clips, lambda clip: chain.answer_speech(TRANSCRIBE, by_audio[id(clip)]), "LLM")
    if arguments.whisper:
        for beam_size in (1, 5):
            name = f"faster-whisper base int8, beam {beam_size}"
            rates[name], _ = error_rates(clips, faster_whisper(arguments.whisper, beam_size, arguments.threads), name)
    result = {
        "bundle": arguments.bundle.name,
        "date": time.strftime("%Y-%m-%d"),
        "word_error_rate": rates,
        "modality_gap": modality_gap(chain, clips, outputs, arguments.gap_clips) if arguments.gap_clips else {},
        "transcripts": [
            {"set": clip.set, "reference": clip.text, "draft": draft, "llm": text}
            for clip, draft, text in zip(clips, drafts, texts, strict=True)
        ],
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "evaluation.json").write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    rows = [(name, *(f"{100 * row[each]:.1f} %" for each in ENGLISH_SETS)) for name, row in rates.items()]
    lines = [table(["", *ENGLISH_SETS], rows)]
    for instruction, figures in result["modality_gap"].items():
        lines.append(f"\nModality gap, {instruction!r}: exact {100 * figures['exact']:.0f} %, token F1 {figures['token_f1']:.3f}")
    (arguments.out / "evaluation.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
