"""What is reckoned of a GPU's memory is what is taken there."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from export.gpu_memory_table import MODELS, memory_table
from models.bundle import Bundle, FileEntry, LlmSection, PlanSection, open_bundle
from models.cuda.device import ALIGNMENT_BYTES, OutOfDeviceMemoryError
from models.cuda.plan import Plan
from models.cuda.simulated import SimulatedDevice
from models.cuda.slots import SlotMemory
from models.gpu_memory import MemoryBudget, reckon, slot_bytes
from tests.gpu_llm import LIMITS, SLOTS, build_llm_plan, on_simulated_gpu
from tests.test_bundle import write_tiny_bundle
from tests.tiny_llama import MAX_POSITIONS, VOCABULARY

ROOT = Path(__file__).parent.parent
MEMORY_BYTES = 2**28
PREFIX_BYTES = 1000


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, Path]:
    folder = tmp_path_factory.mktemp("plan")
    return build_llm_plan(folder), folder


def tiny_bundle(folder: Path, plan: bytes, device: SimulatedDevice) -> tuple[Bundle, PlanSection]:
    """As a bundle with this plan of the tiny LLM would be."""
    write_tiny_bundle(folder)
    bundle = open_bundle(folder)
    llm = bundle.manifest.llm.model_copy(
        update={"layers": 2, "key_value_heads": 2, "head_size": 16, "embedding_size": 64, "vocabulary_size": VOCABULARY}
    )
    section = PlanSection(
        part="llm",
        file="plans/sm90.plan",
        builder="simulated",
        builder_version="1",
        gpu="sm_00",
        precision="fp32",
        max_positions=MAX_POSITIONS,
        activation_bytes=Plan(device, plan, "llm").workspace_bytes,
        profiles=(
            {"rows": (1, 4, LIMITS.decode_rows), "tokens": (1, 1, 1), "wanted": (1, 4, LIMITS.decode_rows)},
            {
                "rows": (1, 1, LIMITS.prefill_rows),
                "tokens": (1, 40, LIMITS.prefill_tokens),
                "wanted": (1, 1, LIMITS.wanted),
            },
        ),
    )
    files = {**bundle.manifest.files, section.file: FileEntry(sha256="0" * 64, bytes=len(plan))}
    return Bundle(folder, bundle.manifest.model_copy(update={"llm": LlmSection(**dict(llm)), "files": files})), section


def test_the_llm_takes_what_was_reckoned(plan: tuple[bytes, Path], tmp_path: Path) -> None:
    content, folder = plan
    bundle, section = tiny_bundle(tmp_path, content, SimulatedDevice())
    budget = reckon(bundle, {"llm": section}, slots=SLOTS, prefix_bytes=PREFIX_BYTES, bytes_per_number=4)
    device = SimulatedDevice(MEMORY_BYTES, threads=1)
    llm = on_simulated_gpu(content, folder, device=device)
    taken = MEMORY_BYTES - device.free_memory_bytes()
    reckoned = budget.llm + budget.activations + budget.step + llm.slots * budget.slot_bytes
    assert abs(taken - reckoned) < 8 * ALIGNMENT_BYTES
    assert budget.total_bytes - reckoned == budget.encoder + budget.adapter + PREFIX_BYTES + budget.context
    sizes = {name: entry.bytes for name, entry in bundle.manifest.files.items()}
    assert budget.encoder == sizes["encoder.onnx"]
    assert budget.adapter == sizes["adapter.safetensors"] + sizes["embedding.npy"]


def test_what_runs_on_tensorrt_is_as_large_as_its_plan(plan: tuple[bytes, Path], tmp_path: Path) -> None:
    content, _ = plan
    bundle, section = tiny_bundle(tmp_path, content, SimulatedDevice())
    budget = reckon(bundle, {"llm": section, "encoder": section, "adapter": section}, slots=1, prefix_bytes=0)
    assert budget.encoder == budget.adapter == len(content) + section.activation_bytes


def test_the_slots_themselves_say_that_as_many_fit(plan: tuple[bytes, Path]) -> None:
    device = SimulatedDevice(MEMORY_BYTES)
    loaded = Plan(device, plan[0], "llm")
    one = slot_bytes(layers=2, key_value_heads=2, head_size=16, positions=MAX_POSITIONS, bytes_per_number=4)
    fitting = device.free_memory_bytes() // one
    with pytest.raises(OutOfDeviceMemoryError, match=rf"{fitting} would fit"):
        SlotMemory(device, device.stream(), loaded, fitting + 1)
    SlotMemory(device, device.stream(), loaded, fitting)


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
        "the LLM's activations, which its plan does not tell"
    )


def test_the_page_has_the_table() -> None:
    assert memory_table() in (ROOT / "docs" / "gpu.md").read_text()


def test_the_default_llm_is_as_large_as_its_plan_says_that_it_is() -> None:
    """Next to the weights in the plan that was built, in docs/tensorrt_plans.md."""
    row = r"\| SmolLM2-135M-Instruct \| sm_80 \| bf16 \| (\d+) MB \|"
    match = re.search(row, (ROOT / "docs" / "tensorrt_plans.md").read_text())
    assert match is not None
    assert MODELS[0].weight_bytes / 1e6 == pytest.approx(int(match[1]), abs=1)
