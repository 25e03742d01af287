"""What do fewer bits cost an LLM? `python -m export.precision_study --gguf FILE` prints a table of precisions.

fp32 answers some prompts; each precision then reads those answers token by token. `same` is the share of tokens that it would
have written too, `KL` the mean divergence of its next tokens from fp32's, `perplexity` that of fp32's answers. Times are
processor time of one thread, medians of runs in turns. `alone` says whether a row has the same bits beside three others.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from export.bundle_parts import write_llm
from export.importers.gguf import read_llama
from export.parity import forced_logits, prompt_tokens
from export.precisions import PRECISIONS, Precision, int8_precision
from export.store import folder_bytes
from models.graph.linear import INT4, block_linear
from models.llms.llama import Llama
from models.protocols import DecodeRow, Float32, PrefillRow
from models.runtimes.onnx.decoder import OnnxLLM

POSITIONS, SLOTS, PROMPT = 512, 4, 64
FLOAT_COMPUTE = 1
"""The `accuracy_level` under which `MatMulNBits` multiplies in float32."""
STUDIED = {
    "int8": int8_precision(8),
    "int8, 7 bits by rows": int8_precision(7),
    "int4": PRECISIONS["int4"],
    "int4, float products": replace(PRECISIONS["int4"], body=block_linear(INT4, FLOAT_COMPUTE)),
}


@dataclass(frozen=True)
class Answer:
    """A prompt, fp32's greedy tokens, and its log-probabilities [tokens, vocabulary]."""

    prompt: list[int]
    tokens: list[int]
    log_probabilities: Float32


def log_softmax(logits: Float32) -> Float32:
    shifted = logits - logits.max(-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)), np.float32)


def open_precision(llama: Llama, name: str, how: Precision, folder: Path) -> OnnxLLM:
    """Write and open the LLM in a precision."""
    folder.mkdir()
    write_llm(llama, name, folder, POSITIONS, how)
    return OnnxLLM(folder / "llm.onnx", folder / "embedding.npy", slots=SLOTS, threads=1)


def answer(llm: OnnxLLM, prompt: list[int], length: int) -> Answer:
    """Return an answer of so many tokens."""
    rows = llm.prefill([PrefillRow(0, 0, llm.embed(prompt))])
    tokens = [int(rows[0][-1].argmax())]
    while len(tokens) < length:
        rows += llm.decode([DecodeRow(0, len(prompt) + len(tokens) - 1, [tokens[-1]])])
        tokens.append(int(rows[-1][-1].argmax()))
    return Answer(prompt, tokens, log_softmax(np.concatenate(rows)))


def compare(llm: OnnxLLM, answers: Sequence[Answer]) -> tuple[float, float, float]:
    """Return the share of the same tokens, the mean KL divergence and the perplexity of some answers."""
    same, divergence, likelihood = [], [], []
    for each in answers:
        found = log_softmax(forced_logits(llm, each.prompt, each.tokens))
        same += (found.argmax(-1) == each.tokens).tolist()
        divergence += (np.exp(each.log_probabilities) * (each.log_probabilities - found)).sum(-1).tolist()
        likelihood += found[np.arange(len(each.tokens)), each.tokens].tolist()
    return float(np.mean(same)), float(np.mean(divergence)), float(np.exp(-np.mean(likelihood)))


def is_alone(llm: OnnxLLM) -> bool:
    """Return whether a decode step has the same bits alone and beside three others."""
    embeddings = llm.embed(list(range(100, 100 + PROMPT)))
    for slot in range(SLOTS):
        llm.prefill([PrefillRow(slot, 0, embeddings[slot:])])
    (alone,) = llm.decode([DecodeRow(0, PROMPT, [7])])
    together = llm.decode([DecodeRow(slot, PROMPT - slot, [7 + slot]) for slot in range(SLOTS)])
    return bool(np.array_equal(alone, together[0]))


def measure(llms: Sequence[OnnxLLM], work: Callable[[OnnxLLM], object], rounds: int) -> list[float]:
    """Return the median processor time of some work in ms for each LLM, which take turns."""
    times: list[list[float]] = [[] for _ in llms]
    for _ in range(rounds):
        for llm, found in zip(llms, times, strict=True):
            started = time.process_time()
            work(llm)
            found.append(1000 * (time.process_time() - started))
    return [statistics.median(each) for each in times]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gguf", type=Path, required=True)
    parser.add_argument("--prompts", type=int, default=12)
    parser.add_argument("--tokens", type=int, default=24, help="of an answer")
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    llama, prompts = read_llama(arguments.gguf), prompt_tokens(arguments.gguf)[: arguments.prompts]
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        exact = open_precision(llama, "fp32", PRECISIONS["fp32"], root / "fp32")
        answers = [answer(exact, prompt, arguments.tokens) for prompt in prompts]
        del exact
        llms = [open_precision(llama, name, how, root / name) for name, how in STUDIED.items()]
        works: dict[str, Callable[[OnnxLLM], object]] = {
            f"prefill of {PROMPT}": lambda llm: llm.prefill([PrefillRow(0, 0, llm.embed(list(range(100, 100 + PROMPT))))]),
            "a token": lambda llm: llm.decode([DecodeRow(0, PROMPT, [7])]),
            "4 tokens of 4 rows": lambda llm: llm.decode([DecodeRow(slot, PROMPT, [7]) for slot in range(SLOTS)]),
            "a draft of 8": lambda llm: llm.decode([DecodeRow(0, PROMPT, list(range(7, 15)))]),
        }
        times = {name: measure(llms, work, arguments.rounds) for name, work in works.items()}
        print(f"| | MB | same | KL | perplexity | alone | {' | '.join(f'{name}, ms' for name in works)} |")
        print("| --- " * (6 + len(works)) + "|")
        for number, (name, llm) in enumerate(zip(STUDIED, llms, strict=True)):
            same, divergence, perplexity = compare(llm, answers)
            figures = " | ".join(f"{each[number]:.1f}" for each in times.values())
            size = folder_bytes(root / name) / 1e6
            print(f"| {name} | {size:.0f} | {same:.1%} | {divergence:.3f} | {perplexity:.3f} | {is_alone(llm)} | {figures} |")


if __name__ == "__main__":
    main()
