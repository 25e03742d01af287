"""How far do few bits move what Whisper writes next? Compares the encoder and the speech decoder of two bundles.

    python -m training.speech_precision_study --reference FP32_BUNDLE --bundle BUNDLE --data DATA_DIR --sets nonnative libri

The reference writes a transcript of each recording, greedily. Then either part, and both, are the other bundle's, and read the
same tokens: `KL` is the mean divergence of the next token from the reference's, `other` the share of tokens where another one is
the likeliest. The recordings are those of `train.jsonl` whose set begins with a name of `--sets`.
"""

import argparse
import random
from collections import defaultdict
from pathlib import Path

import numpy as np
from tqdm import tqdm

from export.markdown import table
from models.assemble import load_models
from models.bundle.io import open_bundle
from models.chain import Models
from models.protocols import EncoderStates, Float32, PrefillRow
from training.greedy_writer import log_softmax, write_greedily
from training.recordings import read_audio, read_rows

LONGEST_S = 12.0


def next_tokens(models: Models, states: EncoderStates, tokens: list[int], wanted: int) -> Float32:
    """Return the log-probabilities [wanted, vocabulary] of what the speech decoder writes behind each of the last tokens."""
    decoder = models.require_speech().decoder
    decoder.write_memory(0, states)
    (logits,) = decoder.prefill([PrefillRow(0, 0, decoder.embed(tokens), wanted)])
    return np.stack([log_softmax(row) for row in logits])


def compare(reference: Models, other: Models, audio: Float32, language: str) -> dict[str, tuple[Float32, Float32]]:
    """Return, by the part that is the other bundle's, the divergence at each token and whether another token is likeliest."""
    speech, states = reference.require_speech(), reference.encode_alone(audio)
    written = write_greedily(speech, states, lambda _: (), language).tokens
    known = speech.tokens
    tokens = [known.start, known.languages[language], known.transcribe, known.no_timestamps, *written]
    wanted = len(written) + 1
    expected = next_tokens(reference, states, tokens, wanted)
    others = other.encode_alone(audio)
    found = {"encoder": (reference, others), "decoder": (other, states), "both": (other, others)}
    result = {}
    for part, (models, heard) in found.items():
        behind = next_tokens(models, heard, tokens, wanted)
        divergence = (np.exp(expected) * (expected - behind)).sum(-1)
        result[part] = divergence, (expected.argmax(-1) != behind.argmax(-1)).astype(np.float32)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", type=Path, required=True)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="folder with train.jsonl")
    parser.add_argument("--sets", nargs="+", required=True)
    parser.add_argument("--per-set", type=int, default=32, help="recordings of each, picked with seed 0")
    arguments = parser.parse_args()
    reference, other = (load_models(open_bundle(folder), 1, 1) for folder in (arguments.reference, arguments.bundle))
    rows = read_rows(arguments.data / "train.jsonl")
    random.Random(0).shuffle(rows)
    lines = []
    for name in arguments.sets:
        picked = [row for row in rows if row["set"].startswith(name) and row["duration_s"] < LONGEST_S][: arguments.per_set]
        found = defaultdict(list)
        for row in tqdm(picked, desc=name, mininterval=5):
            audio = read_audio(arguments.data / row["file"])
            for part, measured in compare(reference, other, audio, row.get("language", "en")).items():
                found[part].append(measured)
        for part, of_recordings in found.items():
            divergence, differs = (np.concatenate(each) for each in zip(*of_recordings, strict=True))
            lines.append((name, len(divergence), part, f"{divergence.mean():.4f}", f"{100 * differs.mean():.1f} %"))
    print(table(("set", "tokens", "part", "KL", "other"), lines))


if __name__ == "__main__":
    main()
