"""The simulated GPU refuses, with the reason, all that TensorRT refuses or leaves undefined."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from models.bundle.plans import DECODE_PROFILE, PREFILL_PROFILE
from models.runtimes.cuda.device import DeviceError, Graph
from tests.support.simulated_gpu.device import SimulatedDevice
from tests.support.simulated_gpu.raw_plan import PAIRS, SLOT_SHAPE, RawPlan, build, step_inputs, tiny_llm_part
from tests.support.simulated_gpu.stream import SimulatedStream


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return build(tiny_llm_part(), tmp_path_factory.mktemp("plan")).content


class Bound:
    """A decode step of two rows, ready to run: each test spoils one thing."""

    def __init__(self, content: bytes) -> None:
        self.device = SimulatedDevice(memory_bytes=2**25, threads=1)
        self.plan = RawPlan(self.device, content)
        self.stream = self.device.stream()
        self.slots = {name: self.device.empty((3, *SLOT_SHAPE), torch.float32).zero_() for name in PAIRS}
        self.context, self.memory = self.make(self.stream)

    def make(self, stream: SimulatedStream) -> tuple[Any, dict[str, Tensor]]:
        context = self.plan.context(DECODE_PROFILE, stream)
        inputs = step_inputs(np.ones((2, 1, 64), np.float32), [0, 0], [(0, 0), (1, 0)])
        return context, self.plan.bind(context, inputs, {name: each[:2] for name, each in self.slots.items()})

    def run(self) -> bool:
        return self.plan.enqueue(self.context, self.stream)

    def capture(self) -> Graph:
        def work() -> list[Tensor]:
            assert self.run()
            return []

        assert self.run()
        self.stream.synchronize()
        return self.device.capture(work, self.stream)[1]


@pytest.fixture
def bound(content: bytes) -> Bound:
    return Bound(content)


def test_as_it_is_it_runs(bound: Bound) -> None:
    assert bound.run()
    bound.stream.synchronize()
    assert bound.memory["logits"].isfinite().all()


def spoil_address(name: str, address: Callable[[Bound], int]) -> Callable[[Bound], None]:
    def spoil(bound: Bound) -> None:
        assert bound.context.set_tensor_address(name, address(bound))

    return spoil


def set_workspace(bound: Bound, size_bytes: int, offset: int = 0) -> None:
    bound.context.set_device_memory(bound.plan.workspace.data_ptr() + offset, size_bytes)


def let_go_of_logits(bound: Bound) -> None:
    del bound.memory["logits"]


def rebind_three_slots(bound: Bound) -> None:
    """Three rows of slots, where every other input has two."""
    assert bound.context.set_input_shape("key_0", (3, *SLOT_SHAPE))


def start_at_the_last_slot(bound: Bound) -> None:
    for name in ("key_0", "key_out_0"):
        assert bound.context.set_tensor_address(name, bound.slots["key_0"][2].data_ptr())


def set_profile(bound: Bound) -> None:
    with bound.device.current():
        assert bound.context.set_optimization_profile_async(PREFILL_PROFILE, bound.stream.handle)


SPOILT: dict[str, tuple[Callable[[Bound], None], str]] = {
    "no address": (spoil_address("logits", lambda _: 0), "no address is set of logits"),
    "unaligned": (
        spoil_address("embeddings", lambda bound: bound.memory["embeddings"].data_ptr() + 4),
        "the address of embeddings is no multiple of 256",
    ),
    "host memory": (
        spoil_address("embeddings", lambda _: 2**20),
        "the address of embeddings is not in device memory that anybody holds",
    ),
    "freed": (let_go_of_logits, "the address of logits is not in device memory that anybody holds"),
    "too small": (
        spoil_address("logits", lambda bound: bound.memory["embeddings"].data_ptr()),
        "logits takes 768 bytes, and 512 are left at its address",
    ),
    "past the slots": (
        start_at_the_last_slot,
        "key_0 takes 32768 bytes, and 16384 are left at its address",
    ),
    "slots apart": (
        spoil_address("key_out_0", lambda bound: bound.slots["key_0"][1].data_ptr()),
        "key_out_0 has to be bound to the address of key_0",
    ),
    "other rows": (rebind_three_slots, "rows is 2 in one input and 3 in key_0"),
    "profile changed": (set_profile, "no shape is set of positions, .*embeddings"),
    "little workspace": (lambda bound: set_workspace(bound, 256), "profile 0 needs .* bytes of device memory, and 256 are set"),
    "crooked workspace": (
        lambda bound: set_workspace(bound, 20_000, 8),
        "the address of the device memory is no multiple of 256",
    ),
}


@pytest.mark.parametrize("spoilt", SPOILT)
def test_a_run_that_is_not_rightly_bound_is_refused(bound: Bound, spoilt: str) -> None:
    spoil, message = SPOILT[spoilt]
    spoil(bound)
    assert not bound.run()
    assert re.search(message, bound.plan.errors())
    bound.stream.synchronize()


def test_what_a_context_is_not_given_it_asks_for(bound: Bound) -> None:
    with bound.device.current():
        context = bound.plan.engine.create_execution_context(bound.plan.trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        assert not context.set_input_shape("embeddings", (1, 1, 64))
        assert not context.execute_async_v3(bound.stream.handle)
        assert not context.set_optimization_profile_async(2, bound.stream.handle)
        assert not context.set_optimization_profile_async(0, 12345)
        assert context.set_optimization_profile_async(0, bound.stream.handle)
        assert set(context.infer_shapes()) == set(filter(bound.plan.is_input, bound.plan.names))
        assert context.get_tensor_shape("logits") == (-1, 96)
        assert not context.set_input_shape("embeddings", (1, 2, 64))
        assert not context.set_input_shape("embeddings", (5, 1, 64))
        assert not context.set_input_shape("logits", (1, 96))
        assert not context.set_tensor_address("nothing", 256)
    said = bound.plan.errors()
    for part in (
        "a profile has to be set before the shape of embeddings",
        "no profile is set",
        "the plan has 2 profiles, and 2 is none of them",
        "12345 is no stream of this GPU",
        "profile 0 takes embeddings from (1, 1, 64) to (4, 1, 64), not (1, 2, 64)",
        "not (5, 1, 64)",
        "logits is not an input",
        "nothing is neither an input nor an output",
    ):
        assert part in said


def test_the_gpu_has_to_be_the_current_one(bound: Bound) -> None:
    other = SimulatedDevice(ordinal=1)
    with other.current():
        assert bound.plan.engine.create_execution_context() is None
        assert not bound.context.execute_async_v3(bound.stream.handle)
    assert "simulated GPU 0 is not the thread's current device" in bound.plan.errors()


def test_an_engine_without_its_runtime_makes_no_context(bound: Bound) -> None:
    del bound.plan.runtime
    with bound.device.current():
        assert bound.plan.engine.create_execution_context() is None
    assert "the engine's runtime was destroyed" in bound.plan.errors()


def test_memory_that_is_freed_before_the_run_is_found_out(bound: Bound) -> None:
    assert bound.run()
    del bound.memory["logits"]
    with pytest.raises(DeviceError, match="was given back before the plan ran"):
        bound.stream.synchronize()


def test_a_context_that_is_gone_before_its_work_is_done_is_found_out(bound: Bound) -> None:
    graph = bound.capture()
    bound.context = None
    graph.replay()
    with pytest.raises(DeviceError, match="context was destroyed before its work was done"):
        bound.stream.synchronize()


def test_capture_takes_a_run_before_it(bound: Bound) -> None:
    def work() -> list[Tensor]:
        assert not bound.run()
        return []

    bound.device.capture(work, bound.stream)
    assert "it has to run once with these shapes before it is captured" in bound.plan.errors()


def test_a_graph_whose_context_was_bound_anew_is_not_replayed(bound: Bound) -> None:
    graph = bound.capture()
    assert bound.context.set_input_shape("embeddings", (2, 1, 64))  # as it was
    graph.replay()
    bound.stream.synchronize()
    moved = bound.device.empty((2, 96), torch.float32)
    assert bound.context.set_tensor_address("logits", moved.data_ptr())
    graph.replay()
    with pytest.raises(DeviceError, match="a graph was replayed whose context was bound anew"):
        bound.stream.synchronize()


def test_the_workspace_is_poisoned_by_every_run(bound: Bound) -> None:
    bound.plan.workspace.zero_()
    assert bound.run()
    bound.stream.synchronize()
    used = bound.plan.engine.get_device_memory_size_for_profile_v2(DECODE_PROFILE)
    assert (bound.plan.workspace[:used] == 255).all()


@pytest.mark.parametrize("ordered_by", ["nothing", "waiting", "the host"])
def test_contexts_that_share_a_workspace_have_to_run_one_after_the_other(bound: Bound, ordered_by: str) -> None:
    other = bound.device.stream()
    context, memory = bound.make(other)
    assert bound.run()
    if ordered_by == "waiting":
        other.wait_for(bound.stream)
    if ordered_by == "the host":
        bound.stream.synchronize()
    assert bound.plan.enqueue(context, other)
    bound.stream.synchronize()
    if ordered_by == "nothing":
        with pytest.raises(DeviceError, match="two runs share device memory, and neither stream waits for the other"):
            other.synchronize()
    else:
        other.synchronize()
        assert memory["logits"].isfinite().all()


def test_what_fails_in_the_graph_fails_the_stream(bound: Bound) -> None:
    bound.memory["wanted"].fill_(7)
    assert bound.run()
    with pytest.raises(DeviceError, match=r"the plan failed: .*GatherND"):
        bound.stream.synchronize()
