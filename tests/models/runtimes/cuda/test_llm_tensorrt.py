"""The LLM's runtime on a GPU, simulated: the logits of the CPU's runtime, whatever is cut, batched, padded, moved or copied."""

from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from export.tensorrt_profiles import Limits, speech_encoder_profiles
from export.tensorrt_speech import build_by_head_encoder
from models.bundle.plans import PlanError
from models.protocols import BackendError, DecodeRow, Float32, PrefillRow
from models.runtimes.cuda.device import DeviceError, OutOfDeviceMemoryError
from models.runtimes.cuda.llm_tensorrt import TensorRtLLM
from models.runtimes.cuda.plan import Plan, PlanContext
from models.runtimes.onnx.decoder import OnnxLLM
from tests.support.simulated_gpu.device import SimulatedDevice
from tests.support.simulated_gpu.gpu_llm import SLOTS, build_llm_plan, on_cpu, on_simulated_gpu
from tests.support.simulated_gpu.raw_plan import build, graph_part
from tests.support.simulated_gpu.tensorrt import ICudaEngine, TensorLocation
from tests.support.tiny.tiny_llama import MAX_POSITIONS, VOCABULARY
from tests.support.tiny.tiny_whisper import arrays_of, random_encoder

# The last position of a slot is not for requests.
LONGEST = MAX_POSITIONS - 1
texts = st.lists(st.integers(0, VOCABULARY - 1), min_size=2, max_size=LONGEST)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("llm")


@pytest.fixture(scope="module")
def plan(folder: Path) -> bytes:
    return build_llm_plan(folder)


@pytest.fixture(scope="module")
def llm(plan: bytes, folder: Path) -> TensorRtLLM:
    return on_simulated_gpu(plan, folder)


@pytest.fixture(scope="module")
def cpu(folder: Path) -> OnnxLLM:
    return on_cpu(folder, slots=1)


def whole(cpu: OnnxLLM, text: list[int]) -> Float32:
    """Logits after every token, in one pass of the CPU's runtime."""
    return cpu.prefill([PrefillRow(0, 0, cpu.embed(text), len(text))])[0]


def prefill(llm: TensorRtLLM, slot: int, position: int, tokens: list[int], wanted: int | None = None) -> Float32:
    return llm.prefill([PrefillRow(slot, position, llm.embed(tokens), len(tokens) if wanted is None else wanted)])[0]


def assert_equal(ours: Float32, expected: Float32) -> None:
    assert ours.shape == expected.shape
    np.testing.assert_allclose(ours, expected, atol=2e-4)


class Play:
    """Texts in slots, as far as they have been read: every call checks the logits that it brought."""

    def __init__(self, llm: TensorRtLLM, cpu: OnnxLLM, all_texts: list[list[int]]) -> None:
        self.llm = llm
        self.texts = all_texts
        self.logits = [whole(cpu, text) for text in all_texts]
        self.done = [0] * len(all_texts)

    def prefill(self, slots: list[int], counts: list[int], wanted: Callable[[int], int]) -> None:
        """The next so many tokens of each slot, with logits of the last `wanted(count)`."""
        rows, expected = [], []
        for slot, count in zip(slots, counts, strict=True):
            start = self.done[slot]
            part = self.texts[slot][start : start + count]
            rows.append(PrefillRow(slot, start, self.llm.embed(part), wanted(len(part))))
            self.done[slot] = end = start + len(part)
            expected.append(self.logits[slot][end - rows[-1].wanted : end])
        for ours, theirs in zip(self.llm.prefill(rows), expected, strict=True):
            assert_equal(ours, theirs)

    def decode(self, tokens: list[int]) -> None:
        """The next tokens of the first slots; a text that is through says its last token again."""
        rows = []
        for slot, count in enumerate(tokens):
            start = min(self.done[slot], len(self.texts[slot]) - 1)
            rows.append(DecodeRow(slot, start, self.texts[slot][start : start + count]))
        for row, ours in zip(rows, self.llm.decode(rows), strict=True):
            self.done[row.slot] = end = row.position + len(row.tokens)
            assert_equal(ours, self.logits[row.slot][row.position : end])

    def swap(self, slot: int, other: int) -> None:
        """The one by copies through `read`, the other by `move`."""
        state = self.llm.cache.read(slot, self.done[slot])
        self.llm.cache.move(other, slot, self.done[other])
        self.llm.cache.write(other, state)
        order = [{slot: other, other: slot}.get(each, each) for each in range(len(self.texts))]
        self.texts, self.logits = [self.texts[each] for each in order], [self.logits[each] for each in order]
        self.done = [self.done[each] for each in order]


@settings(max_examples=40)
@given(all_texts=st.lists(texts, min_size=SLOTS, max_size=SLOTS), data=st.data())
def test_any_course_of_things_gives_the_logits_of_one_pass(
    llm: TensorRtLLM, cpu: OnnxLLM, all_texts: list[list[int]], data: st.DataObject
) -> None:
    play = Play(llm, cpu, all_texts)
    for _ in range(8):
        left = [slot for slot in range(SLOTS) if play.done[slot] < len(play.texts[slot])]
        begun = next((slot for slot in range(SLOTS) if not play.done[slot]), SLOTS)
        match data.draw(st.sampled_from(["prefill", "decode", "draft", "swap"])):
            case "prefill" if left:
                slots = data.draw(st.lists(st.sampled_from(left), min_size=1, unique=True).map(sorted))
                counts = [data.draw(st.integers(1, 100)) for _ in slots]
                play.prefill(slots, counts, data.draw(st.sampled_from([lambda _: 0, lambda _: 1, lambda count: count])))
            case "decode" if begun:
                play.decode([1] * data.draw(st.integers(1, begun)))
            case "draft" if begun:
                play.decode(data.draw(st.lists(st.integers(1, 20), min_size=1, max_size=begun)))
            case "swap":
                play.swap(*data.draw(st.permutations(range(SLOTS)))[:2])


def test_rows_without_a_request_touch_no_slot(llm: TensorRtLLM, cpu: OnnxLLM) -> None:
    """Three rows run as four, and the fourth slot is full of a prompt that still waits for its first token."""
    generator = np.random.default_rng(0)
    play = Play(llm, cpu, [generator.integers(0, VOCABULARY, length).tolist() for length in (9, 9, 9, LONGEST)])
    play.prefill([0, 1, 2, 3], [5, 5, 5, LONGEST - 1], lambda _: 1)
    for _ in range(3):
        play.decode([1, 1, 1])
    play.prefill([3], [1], lambda _: 1)


def test_running_answers_are_graphs_and_nothing_else(plan: bytes, folder: Path) -> None:
    llm = on_simulated_gpu(plan, folder)
    prefill(llm, 0, 0, [1, 2, 3])
    prefill(llm, 1, 0, [4, 5, 6])
    with mock.patch.object(PlanContext, "enqueue", side_effect=AssertionError("a step was not captured")):
        llm.decode([DecodeRow(0, 3, [7]), DecodeRow(1, 3, [8])])
        llm.decode([DecodeRow(0, 4, [7, 1, 2, 3]), DecodeRow(1, 4, [8])])
        with pytest.raises(AssertionError, match="not captured"):
            prefill(llm, 0, 5, [1] * 30)


@pytest.mark.parametrize("wanted", [0, 1, 3])
def test_a_poisoned_request_leaves_nothing_behind_in_its_slot(llm: TensorRtLLM, cpu: OnnxLLM, wanted: int) -> None:
    poisoned = llm.embed([1, 2, 3])
    poisoned[1] = np.nan
    llm.prefill([PrefillRow(1, 0, poisoned, wanted)])
    assert_equal(prefill(llm, 1, 0, [5, 6]), whole(cpu, [5, 6]))


def test_a_run_that_fails_is_an_error_and_the_next_one_is_well(llm: TensorRtLLM, cpu: OnnxLLM) -> None:
    with (
        mock.patch("tests.support.simulated_gpu.plan.SimulatedPlan.run", side_effect=RuntimeError("an illegal memory access")),
        pytest.raises(DeviceError, match="an illegal memory access"),
    ):
        prefill(llm, 0, 0, [1, 2, 3])
    assert_equal(prefill(llm, 0, 0, [5, 6]), whole(cpu, [5, 6]))
    assert_equal(llm.decode([DecodeRow(0, 2, [7])])[0], whole(cpu, [5, 6, 7])[-1:])


def test_misuse_is_refused(llm: TensorRtLLM) -> None:
    with pytest.raises(ValueError, match="in order"):
        llm.decode([DecodeRow(1, 0, [1])])
    with pytest.raises(ValueError, match="within"):
        llm.decode([DecodeRow(0, LONGEST, [1])])
    with pytest.raises(ValueError, match="beyond"):
        prefill(llm, 0, LONGEST - 1, [1, 2])
    with pytest.raises(ValueError, match="out of range"):
        prefill(llm, SLOTS, 0, [1])
    with pytest.raises(ValueError, match="out of range"):
        prefill(llm, 0, 0, [])
    assert llm.decode([]) == []
    assert llm.prefill([]) == []


def test_more_slots_than_the_plan_decodes_are_refused(plan: bytes, folder: Path) -> None:
    with pytest.raises(PlanError, match=r"decodes 4 requests at a time and there are 5 slots.*--decode-rows 5"):
        on_simulated_gpu(plan, folder, slots=SLOTS + 1)


def test_slots_that_do_not_fit_are_refused_with_the_number_that_does(plan: bytes, folder: Path) -> None:
    room = SimulatedDevice(2**28, threads=1).free_memory_bytes() - len(plan)
    device = SimulatedDevice(2**28, threads=1)
    held = device.empty((room - 160_000,), torch.uint8)
    with pytest.raises(OutOfDeviceMemoryError, match=r"4 slots of 128 positions take .* 2 would fit, set --slots"):
        on_simulated_gpu(plan, folder, device=device)
    del held
    on_simulated_gpu(plan, folder, device=device)


def test_other_plans_and_tables_are_refused(folder: Path, plan: bytes, tmp_path: Path) -> None:
    encoder = graph_part(
        lambda: build_by_head_encoder(arrays_of(random_encoder(0)), np.float32), speech_encoder_profiles(Limits())
    )
    with pytest.raises(PlanError, match=r"not one that this release runs.*features"):
        on_simulated_gpu(build(encoder, tmp_path).content, folder)
    with pytest.raises(PlanError, match="does not take the plan llm"):
        on_simulated_gpu(b"no plan", folder)
    np.save(tmp_path / "embedding.npy", np.zeros((3, 4), np.float16))
    with pytest.raises(BackendError, match=r"shape \(3, 4\)"):
        on_simulated_gpu(plan, tmp_path)


def test_a_plan_that_reads_on_the_host_is_refused(plan: bytes, folder: Path) -> None:
    with (
        mock.patch.object(ICudaEngine, "get_tensor_location", return_value=TensorLocation.HOST),
        pytest.raises(PlanError, match="on the host"),
    ):
        on_simulated_gpu(plan, folder)


def test_what_is_bound_must_fit(plan: bytes) -> None:
    device = SimulatedDevice(2**28, threads=1)
    loaded = Plan(device, plan, "llm")
    context = PlanContext(loaded, 0, device.stream(), loaded.workspace())
    dtype = loaded.inputs["embeddings"].dtype
    with pytest.raises(DeviceError, match="does not take embeddings of"):
        context.bind({"embeddings": device.empty((SLOTS + 1, 1, 64), dtype)})
    with pytest.raises(DeviceError, match="contiguous and aligned"):
        context.bind({"embeddings": device.empty((1, 1, 64), loaded.inputs["positions"].dtype)})
    with pytest.raises(DeviceError, match="still needs"):
        context.bind({"embeddings": device.empty((1, 1, 64), dtype)})
