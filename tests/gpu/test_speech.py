"""The states, drafts and frames of encoder and adapter are those of the CPU, by either runtime, alone and in a batch."""

import numpy as np
import pytest
import torch

from models.protocols import ProjectorOutput
from models.runtimes.cuda.chain import AdapterRuntime, EncoderRuntime, load_adapter, load_encoder
from models.runtimes.cuda.device import upload
from tests.support.gpu.rig import THREADS, Rig

LARGEST_STATE_ERROR = 0.05
"""On average, in standard deviations of the states. In float16 throughout, ONNX Runtime on a CPU is off by 0.0007 on the default
clips; bfloat16 is 8 times coarser, and a state that has nothing to do with the right one is off by more than one."""
LARGEST_BLANK_ERROR = 0.005
"""On average, of P(blank). The reference operators in bfloat16 are off by 0.0004 on the default clips."""
SMALLEST_SHARE_EQUAL = 0.95
"""Of frames whose best token is the same; in bfloat16 with the reference operators all of them are."""


@pytest.mark.parametrize("runtime", ["onnxruntime", "tensorrt"])
def test_states_are_the_cpus(rig: Rig, runtime: EncoderRuntime) -> None:
    expected = rig.encode_on_cpu()
    encoder = load_encoder(rig.device, rig.device.stream(), rig.bundle, runtime, THREADS)
    batched = [each.cpu().numpy() for each in encoder.encode(rig.features)]
    alone = [encoder.encode([each])[0].cpu().numpy() for each in rig.features]
    for states, theirs in zip([*batched, *alone], [*expected, *expected], strict=True):
        assert np.abs(states - theirs).mean() / theirs.std() <= LARGEST_STATE_ERROR


@pytest.mark.parametrize("runtime", ["triton", "tensorrt"])
def test_drafts_are_the_cpus(rig: Rig, runtime: AdapterRuntime) -> None:
    states = rig.encode_on_cpu()
    expected = rig.adapt_on_cpu(states)
    stream = rig.device.stream()
    uploaded = [upload(rig.device, torch.from_numpy(each), stream) for each in states]
    adapter = load_adapter(rig.device, stream, rig.bundle, runtime)
    alone = [adapter.project([each])[0] for each in uploaded]
    for mine, theirs in zip([*adapter.project(uploaded), *alone], [*expected, *expected], strict=True):
        assert draft_problems(mine, theirs) == []
        assert mine.embeddings.shape == theirs.embeddings.shape or not rig.is_exact


def draft_problems(mine: ProjectorOutput, theirs: ProjectorOutput) -> list[str]:
    draft, expected = mine.require_draft(), theirs.require_draft()
    blank_error = float(np.abs(draft.blank_probability - expected.blank_probability).mean())
    equal = float((draft.best_token == expected.best_token).mean())
    problems = []
    if not blank_error <= LARGEST_BLANK_ERROR:
        problems.append(f"P(blank) is off by {blank_error:.2g} on average")
    if not equal >= SMALLEST_SHARE_EQUAL:
        problems.append(f"{equal:.1%} of the frames have the same best token")
    return problems


def test_another_draft_is_found(rig: Rig) -> None:
    states = rig.encode_on_cpu()
    forwards = rig.adapt_on_cpu(states)
    backwards = rig.adapt_on_cpu([each[::-1].copy() for each in states])
    assert draft_problems(backwards[0], forwards[0])
