"""Encoder and adapter on the device beside the same in float32 on the CPU, on the clips of the repository."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from export.gpu_check.report import Findings, Table
from export.gpu_check.workbench import Workbench
from models.backends import Adapter, AdapterOutput, Encoder, Float32, collapse
from models.cuda.adapter_tensorrt import TensorRtAdapter
from models.cuda.adapter_triton import TritonAdapter, buckets_up_to
from models.cuda.chain import longest_audio_frames
from models.cuda.device import Device, Stream, copy
from models.cuda.encoder_onnx import OnnxDeviceEncoder
from models.cuda.encoder_tensorrt import TensorRtEncoder
from models.cuda.utterances import FRAMES_PER_STATE

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
    """By both runtimes, as `models.cuda.chain` makes them."""
    manifest = bench.bundle.manifest
    largest = longest_audio_frames(manifest) * manifest.adapter.subsampling * FRAMES_PER_STATE
    graph = bench.bundle.path(manifest.encoder.graph)
    return {
        "ONNX Runtime": OnnxDeviceEncoder(graph, bench.device, stream, largest_frames=largest, threads=bench.threads),
        "TensorRT": TensorRtEncoder(bench.plan("encoder"), stream),
    }


def check_adapter(bench: Workbench) -> Findings:
    """Our kernels and the plan, on the CPU's states: errors, drafts, and what a batch changes."""
    stream = bench.device.stream()
    states = [_upload(bench.device, stream, each) for each in bench.cpu_states]
    expected = bench.cpu_adapter.adapt(bench.cpu_states)
    rows, failures = [], []
    for name, adapter in adapters(bench, stream).items():
        outputs = adapter.adapt(states)
        alone = [adapter.adapt([each])[0] for each in states]
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


def adapters(bench: Workbench, stream: Stream) -> Mapping[str, Adapter]:
    """By both runtimes, as `models.cuda.chain` makes them."""
    trained, device = bench.adapter_weights, bench.device
    buckets = buckets_up_to(longest_audio_frames(bench.bundle.manifest))
    name = "our kernels" if bench.kind == "cuda" else "plain twins in float32"
    return {
        name: TritonAdapter(device, stream, trained, bench.embedding, buckets),
        "TensorRT": TensorRtAdapter(bench.plan("adapter"), stream, trained, bench.embedding),
    }


def _compared(mine: AdapterOutput, theirs: AdapterOutput) -> Sequence[str]:
    blank = np.abs(mine.blank_probability - theirs.blank_probability)
    if mine.frames.shape == theirs.frames.shape and theirs.frames.size:
        frames = f"{np.abs(mine.frames - theirs.frames).mean() / theirs.frames.std():.2g}"
    else:
        frames = f"{len(mine.frames)} frames, not {len(theirs.frames)}"
    same = collapse(mine.best_token) == collapse(theirs.best_token)
    return f"{blank.max():.2g}", f"{blank.mean():.2g}", f"{_share_equal(mine, theirs):.1%}", "yes" if same else "no", frames


def _batched(mine: AdapterOutput, by_itself: AdapterOutput) -> Sequence[str]:
    same = collapse(mine.best_token) == collapse(by_itself.best_token)
    return "same" if same else "differ", f"{np.abs(mine.blank_probability - by_itself.blank_probability).max():.2g}"


def _problems(mine: AdapterOutput, theirs: AdapterOutput) -> Iterator[str]:
    blank = float(np.abs(mine.blank_probability - theirs.blank_probability).mean())
    if not blank <= LARGEST_BLANK_ERROR:
        yield f"P(blank) is off by {blank:.2g} on average, {LARGEST_BLANK_ERROR} allowed"
    if not _share_equal(mine, theirs) >= SMALLEST_SHARE_EQUAL:
        yield f"{_share_equal(mine, theirs):.1%} of the frames have the same best token, {SMALLEST_SHARE_EQUAL:.0%} asked for"


def _share_equal(mine: AdapterOutput, theirs: AdapterOutput) -> float:
    return float((mine.best_token == theirs.best_token).mean())


def _upload(device: Device, stream: Stream, states: Float32) -> Tensor:
    staged, target = device.staging(states.shape, torch.float32), device.empty(states.shape, torch.float32)
    staged.numpy()[...] = states
    copy(device, target, staged, stream)
    stream.synchronize()
    return target
