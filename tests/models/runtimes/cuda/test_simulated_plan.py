"""A plan for the simulated GPU, run by TensorRT's own calls, computes what its graph computes, into the slots it is given."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor

from export.default_recipe import DEFAULT_RECIPE
from export.simulated_plan import build_simulated_plan
from export.tensorrt_build import graph_bytes
from export.tensorrt_profiles import adapter_profiles, decoder_profiles, speech_encoder_profiles
from export.tensorrt_speech import build_by_head_encoder, build_dense_adapter
from models.bundle.plans import DECODE_PROFILE, PREFILL_PROFILE
from models.graph.writer import BFLOAT16
from models.llms.llama import build_decoder, embedding_table
from models.projectors.subsample_ctc import TOP_TOKENS, read_adapter
from models.protocols import DecodeRow, PrefillRow
from models.runtimes.cuda.simulated import SimulatedDevice
from models.runtimes.cuda.tensorrt_library import TensorRTError
from models.runtimes.onnx.llm import OnnxLLM
from tests.support.simulated_gpu.raw_plan import LIMITS, PAIRS, SLOT_SHAPE, RawPlan, build, graph_part, step_inputs, tiny_llm_part
from tests.support.tiny.tiny_llama import MAX_POSITIONS, tiny_llama
from tests.support.tiny.tiny_whisper import arrays_of, random_encoder

TOLERANCE = 1e-4
TEXTS = [[3, 14, 15, 92, 65], [35, 89, 79, 32, 38, 46, 26, 43, 38]]


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return build(tiny_llm_part(on_device=True), tmp_path_factory.mktemp("plan")).content


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
        "next_tokens",
        *(f"{kind}_out_{layer}" for kind in ("key", "value") for layer in range(2)),
    }
    assert engine.get_aliased_input_tensor("value_out_1") == "value_1"
    assert engine.get_aliased_input_tensor("logits") is None
    assert engine.get_tensor_dtype("wanted").name == "INT64"
    assert 0 < engine.get_device_memory_size_for_profile_v2(DECODE_PROFILE) < engine.device_memory_size_v2


def test_a_ragged_prefill_and_decode_steps_equal_the_onnx_llm(
    plan: RawPlan, table: npt.NDArray[np.float32], tmp_path: Path
) -> None:
    build_decoder(tiny_llama()[0], max_positions=MAX_POSITIONS).save(tmp_path / "llm.onnx")
    np.save(tmp_path / "embeddings.npy", table)
    oracle = OnnxLLM(tmp_path / "llm.onnx", tmp_path / "embeddings.npy", slots=2, threads=1)
    expected = oracle.prefill([PrefillRow(slot, 0, table[text]) for slot, text in enumerate(TEXTS)])

    slots, stream = zeroed_slots(plan, 2), plan.device.stream()
    prefill, decode = (plan.context(profile, stream) for profile in (PREFILL_PROFILE, DECODE_PROFILE))
    bound = plan.bind(prefill, step_inputs(padded(table, TEXTS), [0, 0], [(0, 4), (1, 8)]), slots)
    assert plan.enqueue(prefill, stream)
    assert bound["logits"].isnan().all()
    stream.synchronize()
    np.testing.assert_allclose(bound["logits"].numpy(), np.concatenate(expected), atol=TOLERANCE)

    lengths = [len(text) for text in TEXTS]
    for step in range(3):
        tokens = bound["next_tokens"].tolist()
        assert tokens == bound["logits"].argmax(-1).tolist()
        rows = [DecodeRow(slot, length + step, [token]) for slot, (length, token) in enumerate(zip(lengths, tokens, strict=True))]
        expected = oracle.decode(rows)
        # On the GPU by token, the second row by its embedding.
        inputs = dict(step_inputs(table[tokens][:, None], [row.position for row in rows], [(0, 0), (1, 0)]))
        inputs["embeddings"] = np.where([[[True]], [[False]]], np.float32(np.nan), inputs["embeddings"])
        inputs["tokens"] = np.array([[tokens[0]], [-1]])
        bound = plan.bind(decode, inputs, slots)
        assert plan.enqueue(decode, stream)
        stream.synchronize()
        np.testing.assert_allclose(bound["logits"].numpy(), np.concatenate(expected), atol=TOLERANCE)


def test_in_place_is_bit_for_bit_what_copying_gives_and_touches_no_other_slot(
    plan: RawPlan, content: bytes, table: npt.NDArray[np.float32]
) -> None:
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    generator = np.random.default_rng(0)
    before = {name: generator.standard_normal((4, *SLOT_SHAPE)).astype(np.float32) for name in PAIRS}
    inputs = step_inputs(padded(table, TEXTS), [20, 7], [(0, 4), (1, 8), (1, 2)])
    _, logits, *written = session.run(None, {**inputs, **{name: each[1:3] for name, each in before.items()}})

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


def test_a_captured_step_reads_new_inputs_with_every_replay(plan: RawPlan, table: npt.NDArray[np.float32]) -> None:
    slots, stream = zeroed_slots(plan, 1), plan.device.stream()
    context, eager = plan.context(DECODE_PROFILE, stream), plan.context(DECODE_PROFILE, stream)
    bound = plan.bind(context, step_inputs(table[[[1]]], [0], [(0, 0)]), slots)
    assert plan.enqueue(context, stream)
    stream.synchronize()

    def work() -> list[Tensor]:
        assert plan.enqueue(context, stream)
        return [bound["logits"]]

    (logits,), graph = plan.device.capture(work, stream)
    for position, token in enumerate([7, 30, 7]):
        inputs = step_inputs(table[[[token]]], [position], [(0, 0)])
        for name in ("embeddings", "positions", "write_index", "kv_length"):
            bound[name].numpy()[...] = inputs[name]
        logits.fill_(torch.nan)
        graph.replay()
        assert logits.isnan().all()
        stream.synchronize()
        again = plan.bind(eager, inputs, slots)
        assert plan.enqueue(eager, stream)
        stream.synchronize()
        np.testing.assert_array_equal(logits.numpy(), again["logits"].numpy())


def test_encoder_and_adapter_give_their_graphs_results_in_the_shapes_they_infer(tmp_path: Path) -> None:
    encoder = graph_part(lambda: build_by_head_encoder(arrays_of(random_encoder(0)), np.float32), speech_encoder_profiles(LIMITS))
    embedding = np.random.default_rng(1).standard_normal((512, 576)).astype(np.float32)
    adapter = graph_part(
        lambda: build_dense_adapter(read_adapter(DEFAULT_RECIPE.adapter), embedding, np.float32),
        adapter_profiles(LIMITS, 4),
    )
    features, states = np.random.default_rng(2).standard_normal((2, 80, 77)), np.random.default_rng(3).standard_normal((40, 512))
    for part, inputs, shapes in (
        (encoder, {"features": features[0].astype(np.float32)}, {"states": (39, 32)}),
        (adapter, {"states": states.astype(np.float32)}, {"blank_probability": (10,), "top_tokens": (10, TOP_TOKENS)}),
    ):
        content = build(part, tmp_path).content
        plan = RawPlan(SimulatedDevice(threads=1), content)
        stream = plan.device.stream()
        context = plan.context(0, stream)
        bound = plan.bind(context, inputs, {})
        for name, shape in shapes.items():
            assert context.get_tensor_shape(name) == shape
        assert plan.enqueue(context, stream)
        stream.synchronize()
        session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
        for value, expected in zip(session.get_outputs(), session.run(None, inputs), strict=True):
            np.testing.assert_allclose(bound[value.name].numpy(), expected, rtol=1e-4, atol=1e-5)


def test_what_cannot_be_built_is_refused(tmp_path: Path) -> None:
    graph = tmp_path / "llm.onnx"
    build_decoder(tiny_llama()[0], max_positions=32).save(graph)
    with pytest.raises(TensorRTError, match=r"for the simulated GPU, sm_00, not for sm_90"):
        build_simulated_plan(graph, decoder_profiles(LIMITS), gpu="sm_90")
    with pytest.raises(TensorRTError, match="the profile gives no range for wanted"):
        build_simulated_plan(graph, [{"rows": (1, 1, 1), "tokens": (1, 1, 1)}], gpu="sm_00")
    with graph.with_name("llm.onnx.data").open("r+b") as data:
        data.truncate(2**31)  # a sparse file
    assert graph_bytes(graph) > 2**31
    with pytest.raises(TensorRTError, match=r"are 2\.1 GB, and such a plan holds 2 GB"):
        build_simulated_plan(graph, decoder_profiles(LIMITS), gpu="sm_00")
    build_decoder(tiny_llama()[0], max_positions=32, float_type=BFLOAT16).save(graph)
    with pytest.raises(TensorRTError, match=r"llm\.onnx is no plan that runs on a CPU: it cannot be loaded"):
        build_simulated_plan(graph, decoder_profiles(LIMITS), gpu="sm_00")


def with_version(content: bytes, version: str) -> bytes:
    model = onnx.load_model_from_string(content)
    onnx.helper.set_model_props(model, {**{each.key: each.value for each in model.metadata_props}, "format_version": version})
    return bytes(model.SerializeToString())


@pytest.mark.parametrize(
    ("damage", "memory_bytes", "message"),
    [
        (lambda content: content[:1000], 2**25, "the plan is not taken: it cannot be loaded"),
        (lambda content: with_version(content, "0"), 2**25, "it was built by version 0, and this is 1"),
        (lambda content: content, 2**18, r"simulated GPU 0 has 0\.3 of 0\.3 MB free"),
    ],
)
def test_what_is_no_plan_or_has_no_room_is_not_taken(
    content: bytes, damage: Callable[[bytes], bytes], memory_bytes: int, message: str
) -> None:
    device = SimulatedDevice(memory_bytes)
    with device.current():
        assert device.tensorrt.module.Runtime(device.tensorrt.logger).deserialize_cuda_engine(damage(content)) is None
    assert re.search(message, device.tensorrt.messages.errors())
    assert device.free_memory_bytes() == memory_bytes


def test_an_engine_takes_its_weights_memory_and_gives_it_back(content: bytes) -> None:
    device = SimulatedDevice(memory_bytes=2**25)
    plan = RawPlan(device, content)
    context = plan.context(DECODE_PROFILE, device.stream())
    assert device.free_memory_bytes() < 2**25 - len(content)
    del plan
    assert device.free_memory_bytes() < 2**25  # the context keeps its engine
    del context
    assert device.free_memory_bytes() == 2**25
