"""The whole server on the simulated GPU answers real recordings as it does on the CPU: alone, in a crowd, on every runtime."""

import contextlib
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from models.bundle.io import Bundle
from server.engine.factory import build_engine
from server.settings import Settings
from tests.support.clients.live_server import LiveServer, instruct, live_server, wait_until
from tests.support.simulated_gpu.serving import build_simulated_engine

CLIPS = sorted((Path(__file__).parents[3] / "clips").glob("*.flac"))
INSTRUCTIONS = ["Transcribe the speech to text.", "What is it about?"]
START_TIMEOUT_S = 60.0
# The runtimes of encoder and adapter, and the GPUs.
SERVED = {"one GPU, onnxruntime, triton": ("onnxruntime", "triton", "0"), "two GPUs, tensorrt": ("tensorrt", "tensorrt", "0,1")}

Reply = tuple[str, str, dict[str, int]]


@contextlib.contextmanager
def served(bundle: Bundle, **settings: Any) -> Iterator[LiveServer]:
    chosen = Settings(**settings)
    engine = build_simulated_engine(bundle.folder, chosen) if chosen.device == "cuda" else build_engine(bundle.folder, chosen)
    with live_server(engine) as server:
        wait_until(lambda: server.client.get("/ready").status_code == 200, START_TIMEOUT_S)
        yield server


@pytest.fixture(scope="module")
def on_cpu(bundle: Bundle) -> Iterator[LiveServer]:
    with served(bundle) as server:
        yield server


@pytest.fixture(scope="module", params=list(SERVED.values()), ids=list(SERVED))
def on_gpu(bundle: Bundle, request: pytest.FixtureRequest) -> Iterator[LiveServer]:
    encoder_runtime, adapter_runtime, gpus = request.param
    settings = {"encoder_runtime": encoder_runtime, "adapter_runtime": adapter_runtime, "gpus": gpus}
    with served(bundle, device="cuda", slots=4 // len(gpus.split(",")), **settings) as server:
        # The server is ready once one of several GPUs is; metrics tell of each.
        several = len(gpus.split(",")) if "," in gpus else 0
        wait_until(lambda: ready_gpus(server) == several, START_TIMEOUT_S)
        yield server
        assert ready_gpus(server) == several


def ready_gpus(server: LiveServer) -> int:
    metrics = server.client.get("/metrics").text
    return len(re.findall(r"^thinbridge_gpu_ready\{[^}]*\} 1\.0$", metrics, re.MULTILINE))


def ask(server: LiveServer, clip: Path, instruction: str, **fields: str) -> Reply:
    response = instruct(server, clip.read_bytes(), instruction, max_tokens="24", **fields)
    assert response.status_code == 200, response.text
    body = response.json()
    usage = {name: body["usage"][name] for name in ("audio_frames", "text_tokens", "output_tokens")}
    return body["text"], body["finish_reason"], usage


@pytest.mark.parametrize("instruction", INSTRUCTIONS)
@pytest.mark.parametrize("clip", CLIPS, ids=lambda clip: clip.stem)
def test_an_answer_is_the_one_of_the_cpu(on_cpu: LiveServer, on_gpu: LiveServer, clip: Path, instruction: str) -> None:
    text, reason, usage = ask(on_gpu, clip, instruction)
    assert (text, reason, usage) == ask(on_cpu, clip, instruction)
    assert text
    assert usage["audio_frames"] > 5


def test_in_a_crowd_it_is_the_same(on_cpu: LiveServer, on_gpu: LiveServer) -> None:
    asked = [(clip, instruction, draft) for clip in CLIPS for instruction in INSTRUCTIONS for draft in ("exact", "off")]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda each: ask(on_gpu, each[0], each[1], draft=each[2]), asked))
    assert answers == [ask(on_cpu, clip, instruction) for clip, instruction, _ in asked]


def test_a_recording_cut_at_its_pauses_is_the_same(on_cpu: LiveServer, on_gpu: LiveServer) -> None:
    clip = CLIPS[-1]
    assert ask(on_gpu, clip, INSTRUCTIONS[0], chunking="voice") == ask(on_cpu, clip, INSTRUCTIONS[0], chunking="voice")
