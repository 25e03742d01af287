"""Does a plan's attention see the positions that it should? It is compared with ONNX Runtime's, and with wrong ones.

TensorRT's parser drops how much of a slot is filled, and `export.tensorrt_attention` says it again: that a built plan obeys is
what no machine without a GPU can show. An error would not be a crash, it would be somewhat worse text.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from export.gpu_check.alignment_cases import (
    Case,
    MakePassage,
    Passage,
    alignment_cases,
    whole_row,
)
from export.gpu_check.report import Findings, Table
from export.tensorrt_attention import LENGTHS_INPUT
from models.graph.linear import transposed_linear
from models.llms.llama import Llama, build_decoder, embedding_table
from models.protocols import LLM, Float32
from models.runtimes.onnx.llm import OnnxLLM

SLOTS = 4
"""What the cases need."""
LARGEST_SHARE = 0.25
"""Of the mean error that a mask wrong by one position makes, what a plan may have.

For SmolLM2-135M that mean is 1.7 to 9.1 in these cases; torch, computing in bfloat16 throughout with the right mask, has means of
0.14 to 0.35, in no case more than a ninth of it.
"""
LENGTHS = "kv_length"


@dataclass(frozen=True)
class Errors:
    """Of logits: the largest and the mean difference, and the share of positions whose best token is the same."""

    largest: float
    mean: float
    same_token: float


def errors_between(ours: Sequence[Float32], expected: Sequence[Float32]) -> Errors:
    """Of logits [positions, V] per row. What is not finite is an infinite error."""
    mine, theirs = np.concatenate(ours), np.concatenate(expected)
    differences = np.nan_to_num(np.abs(mine - theirs), nan=np.inf)
    same = mine.argmax(-1) == theirs.argmax(-1)
    return Errors(float(differences.max()), float(differences.mean(dtype=np.float64)), float(same.mean()))


@dataclass(frozen=True)
class Compared:
    """A case: what the LLM under test made of it, and the wrong masks."""

    source: str
    name: str
    errors: Errors
    controls: Mapping[str, Errors]
    limit: float

    @property
    def holds(self) -> bool:
        return self.errors.mean <= self.limit


def compare(llm: LLM, oracle: LLM, controls: Mapping[str, LLM], sources: Mapping[str, MakePassage]) -> Iterator[Compared]:
    """Every case on passages of every source. The first of `controls` is the one that a plan has to be clearly better than.

    All LLMs have `SLOTS` slots. The oracle runs each row by itself, from its first position, in one piece.
    """
    positions = min(llm.max_positions, oracle.max_positions)
    for source, make in sources.items():
        for case in alignment_cases(make, positions):
            ours = case.drive(llm, case.passages)
            expected = [whole_row(oracle, each, len(logits)) for each, logits in zip(case.passages, ours, strict=True)]
            wrong = {name: _errors(control, case, expected) for name, control in controls.items()}
            strictest = next(iter(wrong.values()))
            yield Compared(source, case.name, errors_between(ours, expected), wrong, LARGEST_SHARE * strictest.mean)


def alignment_findings(compared: Sequence[Compared]) -> Findings:
    """What they come to."""
    controls = list(compared[0].controls)
    heading = ("rows", "case", "largest error", "mean", "same token", "mean allowed", *(f"mean, {name}" for name in controls))
    rows = []
    for each in compared:
        figures = [f"{each.errors.largest:.2g}", f"{each.errors.mean:.2g}", f"{each.errors.same_token:.1%}", f"{each.limit:.2g}"]
        rows.append((each.source, each.name, *figures, *(f"{each.controls[name].mean:.2g}" for name in controls)))
    failures = [
        f"{each.source}, {each.name}: the logits' mean error is {each.errors.mean:.2g}, more than {LARGEST_SHARE:.0%} of what a "
        "mask makes that is wrong by one position"
        for each in compared
        if not each.holds
    ]
    table = Table("Errors of logits, beside ONNX Runtime on a CPU in float32", heading, tuple(rows))
    return Findings((table,), (), tuple(failures))


class Oracles:
    """The standard graph of an LLM in float32 on the CPU, as it is and with masks that are wrong."""

    def __init__(self, llama: Llama, max_positions: int, folder: Path, threads: int) -> None:
        """Writes into `folder`, which has to stay as long as this is in use."""
        self._folder, self._threads = folder, threads
        self.embeddings = folder / "embeddings.npy"
        self._graph = folder / "llm.onnx"
        build_decoder(llama, max_positions=max_positions, head=transposed_linear).save(self._graph)
        np.save(self.embeddings, embedding_table(llama))

    def right(self) -> OnnxLLM:
        return self._load(self._graph)

    def wrong(self) -> dict[str, OnnxLLM]:
        """By what is wrong with them, the subtlest first."""
        return {
            "one position too many": self._changed("one_too_many", _see_one_more),
            "a triangle from the slot's first position": self._changed("upper_left", _forget_lengths),
        }

    def _changed(self, name: str, change: Callable[[onnx.GraphProto], None]) -> OnnxLLM:
        """The weights stay where they are: the graph names their file."""
        model = onnx.load(self._graph, load_external_data=False)
        change(model.graph)
        onnx.save(model, self._folder / f"{name}.onnx")
        return self._load(self._folder / f"{name}.onnx")

    def _load(self, graph: Path) -> OnnxLLM:
        return OnnxLLM(graph, self.embeddings, slots=SLOTS, threads=self._threads)


def _see_one_more(graph: onnx.GraphProto) -> None:
    one = onnx.numpy_helper.from_array(np.array(1, np.int64), "one")
    graph.initializer.append(one)
    for node in graph.node:
        if node.op_type == "Attention":
            node.input[LENGTHS_INPUT] = "one_more"
    graph.node.insert(0, onnx.helper.make_node("Add", [LENGTHS, "one"], ["one_more"]))


def _forget_lengths(graph: onnx.GraphProto) -> None:
    """What TensorRT's parser makes of it."""
    for node in graph.node:
        if node.op_type == "Attention":
            del node.input[LENGTHS_INPUT:]


def random_passages(llm: LLM) -> MakePassage:
    """Prompts of noise as large as embeddings are, and tokens at random."""
    generator = np.random.default_rng(0)
    deviation = float(llm.embed(range(min(1000, llm.vocabulary_size))).std())

    def make(positions: int, tokens: int) -> Passage:
        noise = generator.standard_normal((positions, llm.embedding_size), np.float32)
        return Passage(deviation * noise, tuple(generator.integers(llm.vocabulary_size, size=tokens).tolist()))

    return make


def text_passages(llm: LLM, text: Sequence[int]) -> MakePassage:
    """Pieces of a text, given as tokens, each from another place on."""
    starts = iter(range(0, 10**9, 7))

    def make(positions: int, tokens: int) -> Passage:
        start = next(starts)
        piece = [text[(start + index) % len(text)] for index in range(positions + tokens)]
        return Passage(llm.embed(piece[:positions]), tuple(piece[positions:]))

    return make


def _errors(control: LLM, case: Case, expected: Sequence[Float32]) -> Errors:
    return errors_between(case.drive(control, case.passages), expected)
