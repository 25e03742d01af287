"""The table of `export/PRECISIONS.md`: what each weight precision of the LLM costs, and how far it is from fp32.

`python -m export.measure_precisions --gguf FILE` builds every precision, then times them in turn, so that a busy machine
treats all alike. Times are processor time of one thread, which is what other processes disturb least.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import numpy.typing as npt

from export.importers.gguf import read_llama
from export.parity import prompt_tokens
from export.precisions import PRECISIONS
from models.llms.llama import ExactAttention, Llama, build_decoder, embedding_table
from models.protocols import DecodeRow, PrefillRow
from models.runtimes.onnx.llm import OnnxLLM

Float32 = npt.NDArray[np.float32]

SLOTS = 8
CONTEXT = 150
MAX_TOKENS = 32
END_TOKEN = 2


@dataclass(frozen=True)
class Reference:
    """The prompts, fp32's greedy answers, and fp32's logits [tokens, vocabulary] of each."""

    prompts: list[list[int]]
    answers: list[list[int]]
    logits: list[Float32]


@dataclass(frozen=True)
class Difference:
    """From fp32, fed with fp32's own answers: logits, and the share of tokens on which both are agreed."""

    largest_error: float
    mean_error: float
    agreement: float
    equal_texts: int


def export(model: Llama, precision: str, folder: Path) -> Path:
    """Write the decoder; its path."""
    linear = PRECISIONS[precision]
    path = folder / f"{precision}.onnx"
    build_decoder(linear.prepare_llm(model), attention=ExactAttention, body=linear.body, head=linear.head).save(path)
    return path


def run(llm: OnnxLLM, prompts: Sequence[list[int]], choose: Callable[[int, Float32], list[int]]) -> list[Float32]:
    """Logits [MAX_TOKENS, vocabulary] per prompt, all in one batch; `choose` gives a step's tokens from its number and logits."""
    steps = [np.concatenate(llm.prefill([PrefillRow(slot, 0, llm.embed(prompt)) for slot, prompt in enumerate(prompts)]))]
    for step in range(MAX_TOKENS - 1):
        tokens = choose(step, steps[-1])
        positions = [len(prompt) + step for prompt in prompts]
        rows = enumerate(zip(positions, tokens, strict=True))
        steps.append(np.concatenate(llm.decode([DecodeRow(slot, position, [token]) for slot, (position, token) in rows])))
    return list(np.stack(steps, axis=1))


def make_reference(llm: OnnxLLM, prompts: list[list[int]]) -> Reference:
    """fp32's greedy answers, up to the end of the turn."""
    logits: list[Float32] = []
    for start in range(0, len(prompts), SLOTS):
        logits += run(llm, prompts[start : start + SLOTS], lambda _, row: row.argmax(-1).tolist())
    answers = [rows.argmax(-1).tolist() for rows in logits]
    lengths = [answer.index(END_TOKEN) + 1 if END_TOKEN in answer else MAX_TOKENS for answer in answers]
    return Reference(prompts, answers, [rows[:length] for rows, length in zip(logits, lengths, strict=True)])


def forced_answers(llm: OnnxLLM, reference: Reference) -> list[Float32]:
    """`llm`'s logits along the reference's answers."""
    logits: list[Float32] = []
    for start in range(0, len(reference.prompts), SLOTS):
        answers = reference.answers[start : start + SLOTS]
        logits += run(llm, reference.prompts[start : start + SLOTS], lambda step, _, forced=answers: [a[step] for a in forced])  # type: ignore[misc]
    return logits


def compare(all_ours: Sequence[Float32], reference: Reference) -> Difference:
    """How far logits are from the reference's; those after its answer's end do not count."""
    pairs = [(ours[: len(expected)], expected) for ours, expected in zip(all_ours, reference.logits, strict=True)]
    every_error = np.concatenate([np.abs(ours - expected) for ours, expected in pairs])
    agreed = [ours.argmax(-1) == expected.argmax(-1) for ours, expected in pairs]
    return Difference(
        largest_error=float(every_error.max()),
        mean_error=float(every_error.mean()),
        agreement=float(np.concatenate(agreed).mean()),
        equal_texts=sum(bool(text.all()) for text in agreed),
    )


def processor_ms(call: Callable[[], object]) -> float:
    start = time.process_time()
    call()
    return (time.process_time() - start) * 1000


def time_once(llm: OnnxLLM) -> dict[str, float]:
    """Milliseconds of one decode step by rows, and of one prefill by tokens."""
    embeddings = llm.embed(range(100, 228))
    times = {}
    for rows in (1, 4, 8):
        step = [DecodeRow(slot, CONTEXT, [100 + slot]) for slot in range(rows)]
        times[f"decode {rows}"] = min(processor_ms(lambda step=step: llm.decode(step)) for _ in range(3))  # type: ignore[misc]
    for tokens in (64, 128):
        row = PrefillRow(0, 30, embeddings[:tokens])
        times[f"prefill {tokens}"] = processor_ms(lambda row=row: llm.prefill([row]))  # type: ignore[misc]
    return times


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m export.measure_precisions", description=__doc__)
    parser.add_argument("--gguf", type=Path, required=True, metavar="FILE")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    model, prompts = read_llama(options.gguf), prompt_tokens(options.gguf)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        np.save(folder / "embeddings.npy", embedding_table(model, np.float32))
        paths = {precision: export(model, precision, folder) for precision in PRECISIONS}
        sizes = {precision: path.with_name(path.name + ".data").stat().st_size / 1e6 for precision, path in paths.items()}
        llms = {precision: OnnxLLM(path, folder / "embeddings.npy", slots=SLOTS, threads=1) for precision, path in paths.items()}
    reference = make_reference(llms["fp32"], prompts)
    differences = {precision: compare(forced_answers(llm, reference), reference) for precision, llm in llms.items()}
    rounds = [{precision: time_once(llm) for precision, llm in llms.items()} for _ in range(options.rounds)]

    columns = list(rounds[0]["fp32"])
    heading = ["precision", "MB", *(f"{column} ms" for column in columns), "max logit error", "mean", "same token", "same texts"]
    print("|", " | ".join(heading), "|")
    print("|", " | ".join("---" for _ in heading), "|")
    for precision, difference in differences.items():
        times = [f"{median(each[precision][column] for each in rounds):.1f}" for column in columns]
        errors = [f"{difference.largest_error:.2f}", f"{difference.mean_error:.3f}"]
        agreed = [f"{difference.agreement:.1%}", f"{difference.equal_texts}/{len(prompts)}"]
        print("|", " | ".join([precision, f"{sizes[precision]:.0f}", *times, *errors, *agreed]), "|")


if __name__ == "__main__":
    main()
