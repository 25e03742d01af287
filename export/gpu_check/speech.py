"""Encoder and adapter on the device beside the same in float32 on the CPU, on the clips of the repository."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch

from export.gpu_check.report import Findings, Table
from export.gpu_check.workbench import Workbench
from models.ctc import collapse
from models.protocols import Encoder, Projector, ProjectorOutput
from models.runtimes.cuda.chain import AdapterRuntime, EncoderRuntime, load_adapter, load_encoder
from models.runtimes.cuda.device import Stream, upload

LARGEST_STATE_ERROR = 0.05
"""On average, in deviations of the states. In float16 throughout, ONNX Runtime on a CPU is off by 0.0007 on these clips; bfloat16
is 8 times coarser, and a state that has nothing to do with the right one is off by more than one."""
LARGEST_BLANK_ERROR = 0.005
"""On average, of P(blank). The plain twins in bfloat16 are off by 0.0004 on these clips."""
SMALLEST_SHARE_EQUAL = 0.95
"""Of frames whose best token is the same, which in bfloat16 are all of them with the plain twins."""


def check_encoder(bench: Workbench) -> Findings:
    """ONNX Runtime on the device, and the plan."""
    stream, features, expected = bench.device.stream(), [clip.features for clip in bench.clips], bench.cpu_states
    rows, failures = [], []
    for name, encoder in encoders(bench, stream).items():
        states = [each.cpu().numpy() for each in encoder.encode(features)]
        alone = [encoder.encode([each])[0].cpu().numpy() for each in features]
        for clip, mine, by_itself, theirs in zip(bench.clips, states, alone, expected, strict=True):
            deviation = float(theirs.std())
            differences = np.abs(mine - theirs) / deviation
            mean = float(differences.mean())
            batch = float(np.abs(mine - by_itself).max()) / deviation
            rows.append((name, clip.file.stem, f"{float(differences.max()):.2g}", f"{mean:.2g}", f"{batch:.2g}"))
            if not mean <= LARGEST_STATE_ERROR:
                failures.append(
                    f"{name}, {clip.file.stem}: states are off by {mean:.2g} deviations, {LARGEST_STATE_ERROR} allowed"
                )
    heading = ("by", "clip", "largest error", "mean error", "most that other clips in the batch change")
    table = Table("States, in their standard deviations, beside ONNX Runtime on the CPU", heading, tuple(rows))
    return Findings((table,), (), tuple(failures))


def encoders(bench: Workbench, stream: Stream) -> Mapping[str, Encoder]:
    """By both runtimes."""
    runtimes: dict[str, EncoderRuntime] = {"ONNX Runtime": "onnxruntime", "TensorRT": "tensorrt"}
    return {name: load_encoder(bench.device, stream, bench.bundle, each, bench.threads) for name, each in runtimes.items()}


def check_adapter(bench: Workbench) -> Findings:
    """Our kernels and the plan, on the CPU's states: errors, drafts, and what a batch changes."""
    stream = bench.device.stream()
    states = [upload(bench.device, torch.from_numpy(each), stream) for each in bench.cpu_states]
    expected = bench.cpu_adapter.project(bench.cpu_states)
    rows, failures = [], []
    for name, adapter in adapters(bench, stream).items():
        outputs = adapter.project(states)
        alone = [adapter.project([each])[0] for each in states]
        for clip, mine, by_itself, theirs in zip(bench.clips, outputs, alone, expected, strict=True):
            label = f"{name}, {clip.file.stem}"
            rows.append((name, clip.file.stem, *_compared(mine, theirs), *_batched(mine, by_itself)))
            failures += [f"{label}: {problem}" for problem in _problems(mine, theirs)]
    heading = (
        "by", "clip", "P(blank), largest error", "mean", "same best token", "same draft", "frames, mean error",
        "drafts alone and in a batch", "P(blank), most that a batch changes",
    )  # fmt: skip
    note = "Errors of frames are in the frames' standard deviations, where there are as many frames."
    return Findings((Table("Beside ONNX Runtime on the CPU, on its states", heading, tuple(rows)),), (note,), tuple(failures))


def adapters(bench: Workbench, stream: Stream) -> Mapping[str, Projector]:
    """By both runtimes."""
    ours = "our kernels" if bench.kind == "cuda" else "plain twins in float32"
    runtimes: dict[str, AdapterRuntime] = {ours: "triton", "TensorRT": "tensorrt"}
    return {name: load_adapter(bench.device, stream, bench.bundle, each) for name, each in runtimes.items()}


def _compared(mine: ProjectorOutput, theirs: ProjectorOutput) -> Sequence[str]:
    draft, expected = mine.require_draft(), theirs.require_draft()
    blank = np.abs(draft.blank_probability - expected.blank_probability)
    if mine.embeddings.shape == theirs.embeddings.shape and theirs.embeddings.size:
        frames = f"{np.abs(mine.embeddings - theirs.embeddings).mean() / theirs.embeddings.std():.2g}"
    else:
        frames = f"{len(mine.embeddings)} frames, not {len(theirs.embeddings)}"
    same = collapse(draft.best_token) == collapse(expected.best_token)
    return f"{blank.max():.2g}", f"{blank.mean():.2g}", f"{_share_equal(mine, theirs):.1%}", "yes" if same else "no", frames


def _batched(mine: ProjectorOutput, by_itself: ProjectorOutput) -> Sequence[str]:
    together, alone = mine.require_draft(), by_itself.require_draft()
    same = collapse(together.best_token) == collapse(alone.best_token)
    return (
        "same" if same else "differ",
        f"{np.abs(together.blank_probability - alone.blank_probability).max():.2g}",
    )


def _problems(mine: ProjectorOutput, theirs: ProjectorOutput) -> Iterator[str]:
    draft, expected = mine.require_draft(), theirs.require_draft()
    blank = float(np.abs(draft.blank_probability - expected.blank_probability).mean())
    if not blank <= LARGEST_BLANK_ERROR:
        yield f"P(blank) is off by {blank:.2g} on average, {LARGEST_BLANK_ERROR} allowed"
    if not _share_equal(mine, theirs) >= SMALLEST_SHARE_EQUAL:
        yield f"{_share_equal(mine, theirs):.1%} of the frames have the same best token, {SMALLEST_SHARE_EQUAL:.0%} asked for"


def _share_equal(mine: ProjectorOutput, theirs: ProjectorOutput) -> float:
    return float((mine.require_draft().best_token == theirs.require_draft().best_token).mean())
