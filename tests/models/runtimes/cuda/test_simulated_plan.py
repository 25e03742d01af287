"""A plan for the simulated GPU, run by TensorRT's own calls, computes what its graph computes, into the slots it is given."""

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest
import torch
from torch import Tensor

from models.bundle.plans import DECODE_PROFILE, PREFILL_PROFILE
from models.llms.llama import embedding_table
from tests.support.simulated_gpu.device import SimulatedDevice
from tests.support.simulated_gpu.raw_plan import PAIRS, SLOT_SHAPE, RawPlan, build, step_inputs, tiny_llm_part
from tests.support.tiny.tiny_llama import tiny_llama

TOLERANCE = 1e-4
TEXTS = [[3, 14, 15, 92, 65], [35, 89, 79, 32, 38, 46, 26, 43, 38]]


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return build(tiny_llm_part(), tmp_path_factory.mktemp("plan")).content


@pytest.fixture
def plan(content: bytes) -> RawPlan:
    return RawPlan(SimulatedDevice(memory_bytes=2**25, threads=1), content)


@pytest.fixture(scope="module")
def table() -> npt.NDArray[np.float32]:
    return embedding_table(tiny_llama()[0], np.float32).astype(np.float32)


def zeroed_slots(plan: RawPlan, slots: int) -> dict[str, Tensor]:
    return {name: plan.device.empty((slots, *SLOT_SHAPE), torch.float32).zero_() for name in PAIRS}


def padded(table: npt.NDArray[np.float32], texts: list[list[int]]) -> npt.NDArray[np.float32]:
    longest = max(map(len, texts))
    return np.stack([table[[*text, *[text[-1]] * (longest - len(text))]] for text in texts])


def test_the_engine_tells_what_the_graph_and_its_profiles_say(plan: RawPlan) -> None:
    engine = plan.engine
    assert engine.num_optimization_profiles == 2
    assert engine.get_tensor_shape("embeddings") == (-1, -1, 64)
    assert engine.get_tensor_profile_shape("embeddings", PREFILL_PROFILE) == [(1, 1, 64), (1, 16, 64), (4, 16, 64)]
    assert engine.get_tensor_profile_shape("key_1", DECODE_PROFILE)[2] == (4, *SLOT_SHAPE)
    assert {name for name in plan.names if not plan.is_input(name)} == {
        "logits",
        *(f"{kind}_out_{layer}" for kind in ("key", "value") for layer in range(2)),
    }
    assert engine.get_aliased_input_tensor("value_out_1") == "value_1"
    assert engine.get_aliased_input_tensor("logits") is None
    assert engine.get_tensor_dtype("wanted").name == "INT64"
    assert 0 < engine.get_device_memory_size_for_profile_v2(DECODE_PROFILE) < engine.device_memory_size_v2


def test_in_place_is_bit_for_bit_what_copying_gives_and_touches_no_other_slot(
    plan: RawPlan, content: bytes, table: npt.NDArray[np.float32]
) -> None:
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    generator = np.random.default_rng(0)
    before = {name: generator.standard_normal((4, *SLOT_SHAPE)).astype(np.float32) for name in PAIRS}
    inputs = step_inputs(padded(table, TEXTS), [20, 7], [(0, 4), (1, 8), (1, 2)])
    logits, *written = session.run(None, {**inputs, **{name: each[1:3] for name, each in before.items()}})

    memory = {name: plan.device.empty((4, *SLOT_SHAPE), torch.float32) for name in PAIRS}
    for name, each in memory.items():
        each.numpy()[...] = before[name]
    stream = plan.device.stream()
    context = plan.context(PREFILL_PROFILE, stream)
    bound = plan.bind(context, inputs, {name: each[1:3] for name, each in memory.items()})
    assert plan.enqueue(context, stream)
    stream.synchronize()
    np.testing.assert_array_equal(bound["logits"].numpy(), logits)
    for name, expected in zip(PAIRS, written, strict=True):
        np.testing.assert_array_equal(memory[name][1:3].numpy(), expected)
        np.testing.assert_array_equal(memory[name][[0, 3]].numpy(), before[name][[0, 3]])


def test_an_engine_takes_its_weights_memory_and_gives_it_back(content: bytes) -> None:
    device = SimulatedDevice(memory_bytes=2**25)
    plan = RawPlan(device, content)
    context = plan.context(DECODE_PROFILE, device.stream())
    assert device.free_memory_bytes() < 2**25 - len(content)
    del plan
    assert device.free_memory_bytes() < 2**25  # the context keeps its engine
    del context
    assert device.free_memory_bytes() == 2**25
