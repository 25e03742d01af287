"""The estimate of a GPU's memory is the memory that is taken there."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from export.tensorrt_parts import PARTS
from models.bundle.io import Bundle
from models.bundle.plans import find_plan
from models.bundle.sections import PlanSection
from models.runtimes.cuda.chain import load_models_on
from models.runtimes.cuda.device import OutOfDeviceMemoryError, plan_key
from models.runtimes.cuda.gpu import ALIGNMENT_BYTES
from models.runtimes.cuda.gpu_memory import MemoryBudget, estimate_memory, slot_bytes
from models.runtimes.cuda.llm_tensorrt import TensorRtLLM
from models.runtimes.cuda.plan import Plan
from models.runtimes.cuda.slots import SlotMemory
from tests.support.simulated_gpu.device import SimulatedDevice

ROOT = Path(__file__).parents[4]
MEMORY_BYTES = 2**28
SLOTS = 4
PREFIX_BYTES = 1000


def plans_of(bundle: Bundle, *parts: str) -> dict[str, PlanSection]:
    return {part: find_plan(bundle, part, plan_key(SimulatedDevice())) for part in parts}


def load_plan(bundle: Bundle, device: SimulatedDevice) -> Plan:
    file = plans_of(bundle, "llm")["llm"].file
    return Plan(device, bundle.path(file).read_bytes(), file)


def test_the_llm_takes_what_was_reckoned(bundle: Bundle) -> None:
    budget = estimate_memory(bundle, plans_of(bundle, "llm"), slots=SLOTS, prefix_bytes=PREFIX_BYTES, bytes_per_number=4)
    device = SimulatedDevice(MEMORY_BYTES, threads=1)
    llm = TensorRtLLM(device, load_plan(bundle, device), bundle.path("embedding.npy"), slots=SLOTS)
    taken = MEMORY_BYTES - device.free_memory_bytes()
    estimated = budget.llm + budget.activations + budget.step + llm.slots * budget.slot_bytes
    assert abs(taken - estimated) < 8 * ALIGNMENT_BYTES
    assert budget.total_bytes - estimated == budget.encoder + budget.adapter + PREFIX_BYTES + budget.context
    section, sizes = bundle.manifest.require_llm(), {name: entry.bytes for name, entry in bundle.manifest.files.items()}
    assert budget.encoder == sizes["encoder.onnx"] + sizes["encoder.onnx.data"]
    assert budget.adapter == sizes["adapter.safetensors"] + 4 * section.vocabulary_size * section.embedding_size


def test_a_server_takes_what_was_reckoned_and_a_part_of_what_is_set_aside(bundle: Bundle) -> None:
    budget = estimate_memory(bundle, plans_of(bundle, *PARTS), slots=SLOTS, prefix_bytes=0, bytes_per_number=4)
    device = SimulatedDevice(MEMORY_BYTES, threads=1)
    # Free memory that nothing refers to.
    models = load_models_on(device, bundle, SLOTS, 1, "tensorrt", "tensorrt")
    taken = MEMORY_BYTES - device.free_memory_bytes()
    assert models.require_llm().slots == SLOTS
    assert budget.total_bytes - budget.context < taken < budget.total_bytes


def test_the_slots_themselves_say_that_as_many_fit(bundle: Bundle) -> None:
    device = SimulatedDevice(MEMORY_BYTES)
    plan, llm = load_plan(bundle, device), bundle.manifest.require_llm()
    one = slot_bytes(llm.layers, llm.key_value_heads, llm.head_size, llm.max_positions, bytes_per_number=4)
    fitting = device.free_memory_bytes() // one
    with pytest.raises(OutOfDeviceMemoryError, match=rf"{fitting} would fit"):
        SlotMemory(device, device.stream(), plan, fitting + 1)
    SlotMemory(device, device.stream(), plan, fitting)


@given(memory_bytes=st.integers(0, 10**12), beside=st.integers(0, 10**11), one=st.integers(1, 10**10))
def test_so_many_slots_fit_and_no_more(memory_bytes: int, beside: int, one: int) -> None:
    def with_slots(slots: int) -> MemoryBudget:
        return MemoryBudget(slots, one, beside, activations=0, step=0, encoder=0, adapter=0, prefixes=0, context=0)

    fitting = with_slots(0).fitting_slots(memory_bytes)
    assert fitting == 0 or with_slots(fitting).total_bytes <= memory_bytes
    assert with_slots(fitting + 1).total_bytes > memory_bytes


def test_the_line_for_the_operator_names_every_item() -> None:
    budget = MemoryBudget(8, 23_600_000, 269_000_000, 0, 55_000_000, 80_000_000, 160_000_000, 67_000_000, 2_000_000_000)
    assert str(budget) == (
        "2.82 GB: 8 slots of 23.6 MB 188.8 MB, LLM 269.0 MB, a step's inputs and logits 55.0 MB, encoder 80.0 MB, "
        "adapter 160.0 MB, kept prefixes 67.0 MB, CUDA and libraries (a guess) 2.00 GB, "
        "the LLM's activations, which its plan does not say"
    )
