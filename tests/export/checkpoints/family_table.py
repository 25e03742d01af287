"""Compare every family of speech LLMs with its reference, stage by stage, on tiny random twins, for docs/models.md.

    python -m tests.export.checkpoints.family_table
    python -m tests.export.checkpoints.family_table --family canary-qwen voxtral --prompts 5

Errors are the largest of all prompts. Each stage gets what ours before it gave; the LLM alone gets the reference's embeddings.
Of a model without a decoder the CTC head, by its probabilities of the blank, stands in the place of the projector.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import httpx
import numpy as np
import torch

from export.bundle_parts import MAX_AUDIO_S, VOICE_WINDOW_SAMPLES, write_llm
from export.checkpoints.conversion import PullOptions
from export.checkpoints.hub import Hub
from export.markdown import table
from export.pull import pull_model
from export.store import Store
from export.tensorrt_build import Profile, build_plan
from export.tensorrt_parts import llm_part
from export.tensorrt_profiles import Limits
from models.assemble import load_models
from models.bundle.io import Bundle
from models.chain import Models
from models.features.log_mel import SAMPLE_RATE_HZ
from models.llms.llama import Llama
from models.protocols import Float32, PrefillRow
from models.runtimes.cuda.tensorrt_library import TensorRTError, load_tensorrt
from server.engine.engine import LocalEngine
from server.engine.runner.runner import Runner
from server.engine.runner.sequence_builder import lay_out_task
from server.engine.types.requests import InstructRequest
from tests.export.checkpoints.test_speech_llms import TOKENS, ask, run_together
from tests.models.test_voice_onnx import write_graph
from tests.support.clients.live_server import audio_file, instruct, live_server, wait_until
from tests.support.clients.runner_client import run
from tests.support.tiny.tiny_llms import KINDS
from tests.support.tiny.tiny_speech_llms import WRITERS

STAGES = ("features", "encoder", "projector", "LLM", "whole chain")
HEADING = (
    "Family", "Features", "Encoder", "Projector", "LLM", "Whole chain", "Tokens", "Over HTTP", "Different answers",
    "Batch, cuts, preemption", "TensorRT-RTX plans",
)  # fmt: skip
TITLES = {
    "ultravox": "Ultravox",
    "qwen2-audio": "Qwen2-Audio",
    "voxtral": "Voxtral",
    "canary-qwen": "Canary-Qwen",
    "qwen3-asr": "Qwen3-ASR",
    "granite-speech": "Granite-speech",
    "granite-speech-head": "Granite-speech with a CTC head",
    "granite-speech-plus": "Granite-speech plus",
    "parakeet-ctc": "Parakeet with a CTC head",
}
BODIES = ("LlamaModel", "Qwen2Model", "Qwen3Model", "GraniteModel")
TIME_FIRST = ("GraniteSpeechCTCEncoder", "GraniteSpeechPlusCTCEncoder", "ParakeetEncoder")
"""Encoders that take features [frames, bins]."""
GPU = "sm_80"
PROFILES: dict[str, Profile] = {"encoder": {"frames": (8, 500, 3000)}, "projector": {"states": (16, 200, 1500)}}
LLM_LIMITS = Limits(decode_rows=8, prefill_rows=2, prefill_tokens=64, wanted=16)
START_TIMEOUT_S, REPLY_TIMEOUT_S = 120.0, 120.0


@dataclass
class Stages:
    """The values that a reference computed on the way to its first token."""

    features: Float32 | None = None
    states: Float32 | None = None
    frames: Float32 | None = None
    embeddings: Float32 | None = None
    logits: Float32 | None = None


@dataclass
class Row:
    """A family's figures: the largest error of each stage, and answers with the reference's tokens."""

    errors: dict[str, float] = field(default_factory=dict)
    equal: int = 0
    answers: set[tuple[int, ...]] = field(default_factory=set)

    def add_error(self, stage: str, ours: Float32, theirs: Float32) -> None:
        self.errors[stage] = max(self.errors.get(stage, 0.0), float(np.abs(ours - theirs).max()))


@contextmanager
def watched() -> Iterator[Stages]:
    """Fill stages from the modules of transformers that run meanwhile, each by its first run."""
    stages = Stages()

    def watch(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        name = type(module).__name__
        if name.endswith("Encoder") and "QFormer" not in name and stages.features is None:
            given = _array(kwargs["input_features"] if "input_features" in kwargs else args[0])[0]
            stages.features = given.T if name in TIME_FIRST else given
        elif name.endswith("CTCHead") and stages.frames is None:
            scores = output[0].softmax(-1)[:, -1]
            stages.states, stages.frames = _array(args[0]), _array(scores)
        elif name.endswith("Projector") and stages.frames is None:
            stages.states, stages.frames = _array(args[0]), _array(output)
        elif name in BODIES and stages.embeddings is None:
            stages.embeddings = _array(kwargs["inputs_embeds"]) * getattr(module.config, "embedding_multiplier", 1.0)
        elif name.endswith(("ForCausalLM", "ForConditionalGeneration")) and stages.logits is None:
            # transformers' Granite-speech leaves out the scaling that its Granite has, which greedy tokens do not show.
            scaling = module.config.text_config.logits_scaling if name.startswith("GraniteSpeech") else 1.0
            stages.logits = _array(output.logits)[0, -1] / np.float32(scaling)

    handle = torch.nn.modules.module.register_module_forward_hook(watch, with_kwargs=True)
    try:
        yield stages
    finally:
        handle.remove()


def _array(tensor: Any) -> Float32:
    return np.array(tensor.detach().numpy(), np.float32)


def compare_stages(row: Row, models: Models, stages: Stages, audio: Float32, ids: Any, multiplier: float) -> None:
    """Add the errors of one prompt. References pad, and ours may hear silence behind: what both have is compared."""
    if stages.states is None or stages.frames is None or stages.features is None:
        raise ValueError("the reference has no such stages")
    features = models.features(models.pad_audio(audio))
    count = min(features.shape[1], stages.features.shape[1])
    row.add_error("features", features[:, :count], stages.features[:, :count])
    (states,) = models.encoder.encode([features])
    wide = stages.states.shape[-1] if stages.states.shape[-1] < states.shape[1] else states.shape[1]
    theirs = stages.states.reshape(-1, wide)
    count = min(len(states), len(theirs))
    row.add_error("encoder", states[:count, :wide], theirs[:count])
    (output,) = models.project([states], [len(audio)])
    if not models.decoders:
        count = min(len(states), len(stages.frames))
        row.add_error("projector", output.require_draft().blank_probability[:count], stages.frames[:count])
        return
    if models.llm is None or stages.embeddings is None or stages.logits is None:
        raise ValueError("the reference has no such LLM")
    llm = models.llm
    theirs = stages.frames.reshape(-1, output.embeddings.shape[1]) * np.float32(multiplier)
    count = min(len(output.embeddings), len(theirs))
    row.add_error("projector", output.embeddings[:count], theirs[:count])
    (logits,) = llm.prefill([PrefillRow(0, 0, stages.embeddings[0])])
    row.add_error("LLM", logits[-1], stages.logits)
    whole = np.concatenate([llm.embed(ids.before_speech), output.embeddings, llm.embed(ids.after_speech)])
    (logits,) = llm.prefill([PrefillRow(0, 0, whole)])
    row.add_error("whole chain", logits[-1], stages.logits)


@dataclass(frozen=True)
class Pulled:
    """A family's bundle, its models, and the LLM that it was written from."""

    bundle: Bundle
    models: Models
    llama: Llama | None


def pull(folder: Path, name: str, precision: str, store: Store) -> Pulled:
    written: list[Llama] = []

    def remember(llama: Llama, *arguments: Any) -> Any:
        written.append(llama)
        return write_llm(llama, *arguments)

    write_voice = partial(write_graph, window_samples=VOICE_WINDOW_SAMPLES)
    with mock.patch("export.checkpoints.language_model.write_llm", remember):
        options = PullOptions(precision, name=name)
        bundle = pull_model(str(folder), options, Hub(store.root / "downloads"), store, write_voice)
    return Pulled(bundle, load_models(bundle, slots=2, threads=1), written[0] if written else None)


def is_undisturbed(models: Models) -> bool:
    """Return whether neighbours, another cut of the prefill, and preemption change no bit of two answers."""
    requests = [ask(models, seed, logprobs=1) for seed in range(2)]
    alone = [run(Runner(models), request)[1] for request in requests]
    disturbed = [run(Runner(models), request, chunks=(7,), preempt_at=(9,))[1] for request in requests]
    return disturbed == alone == run_together(Runner(models), requests)


def build_plans(pulled: Pulled, scratch: Path) -> str:
    """Return which parts became plans of TensorRT-RTX, of their graphs for CPUs but for the LLM; say why the others did not."""
    try:
        library = load_tensorrt("tensorrt_rtx")
    except TensorRTError as error:
        return f"none: {error}"
    scratch.mkdir()
    manifest = pulled.bundle.manifest
    graphs: dict[str, tuple[Path, Sequence[Profile]]] = {
        "encoder": (pulled.bundle.path(manifest.encoder.graph), [PROFILES["encoder"]]),
        "projector": (pulled.bundle.path(manifest.require_projector().graph), [PROFILES["projector"]]),
    }
    if (llama := pulled.llama) is not None:
        llm = llm_part(lambda: llama, "bf16", 256, LLM_LIMITS)
        llm.write().save(scratch / "llm.onnx")
        graphs["LLM"] = scratch / "llm.onnx", llm.profiles
    built, refused = [], []
    for part, (graph, profiles) in graphs.items():
        try:
            build_plan(library, graph, profiles, gpu=GPU)
            built.append(part)
        except (TensorRTError, RuntimeError) as error:
            fused = (
                "no fused kernel for its attention in fp32" if "dedicated kernel" in str(error) else " ".join(str(error).split())
            )
            print(f"no plan of the {part}: {fused}", file=sys.stderr, flush=True)
            refused.append(f"**not** the {part}")
    return "; ".join([", ".join(built) or "none", *refused]) if refused else "all"


def answer_over_http(models: Models, requests: Sequence[InstructRequest]) -> list[str]:
    """Return the texts that a server on a real socket gives, one request after the other."""
    engine = LocalEngine(models, SAMPLE_RATE_HZ, MAX_AUDIO_S, queue_limit=2)
    texts = []
    with live_server(engine) as server:
        server.client.timeout = httpx.Timeout(REPLY_TIMEOUT_S)
        wait_until(lambda: server.client.get("/ready").status_code == 200, START_TIMEOUT_S)
        for request in requests:
            options = {"prompt": request.task.prompt, "language": request.task.language or "", "max_tokens": str(TOKENS)}
            sent = {name: value for name, value in options.items() if value}
            reply = instruct(server, audio_file(request.audio, SAMPLE_RATE_HZ, "WAV", "FLOAT"), request.task.instruction, **sent)
            reply.raise_for_status()
            texts.append(str(reply.json()["text"]))
    return texts


def measure(kind: str, prompts: int, scratch: Path) -> list[str]:
    """Return the cells of a family's row."""
    theirs, row = WRITERS[kind](scratch / "twin"), Row()
    store = Store(scratch / "cache" / "models")
    pulled = pull(scratch / "twin", kind, "fp32", store)
    models, runner = pulled.models, Runner(pulled.models)
    multiplier = float(KINDS["granite"][1]["embedding_multiplier"]) if kind.startswith("granite") else 1.0
    requests, texts = [ask(models, seed) for seed in range(prompts)], []
    for request in requests:
        ids = lay_out_task(models, request.task)
        with watched() as stages:
            expected = theirs(request.audio, ids.before_speech, ids.after_speech, TOKENS)
        compare_stages(row, models, stages, request.audio, ids, multiplier)
        sequence, answer = run(runner, request)
        row.equal += bool(sequence.tokens) and sequence.tokens == expected[: len(sequence.tokens)]
        row.answers.add(tuple(sequence.tokens))
        texts.append(answer.text)
    over_http = sum(map(str.__eq__, texts, answer_over_http(models, requests)))
    undisturbed = is_undisturbed(pull(scratch / "twin", f"{kind}-int8", "int8", store).models)
    errors = [f"{row.errors[stage]:.1e}".replace("e-0", "e-") if stage in row.errors else "none" for stage in STAGES]
    tokens = (f"{row.equal} of {prompts}", f"{over_http} of {prompts}")
    same = "the same bits" if undisturbed else "**not the same**"
    return [TITLES[kind], *errors, *tokens, str(len(row.answers)), same, build_plans(pulled, scratch / "plans")]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", nargs="+", choices=list(WRITERS), default=list(WRITERS), help="by default all")
    parser.add_argument("--prompts", type=int, default=20)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    rows = []
    for kind in options.family:
        with tempfile.TemporaryDirectory(prefix="thinbridge-family-") as name:
            rows.append(measure(kind, options.prompts, Path(name)))
        print(rows[-1], file=sys.stderr, flush=True)
    print(table(HEADING, rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
