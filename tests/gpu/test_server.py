"""The server on the GPU answers as on the CPU, alone and under load, and on several GPUs as on one."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from difflib import SequenceMatcher
from functools import cache
from pathlib import Path

import pytest

from loadtest.clients.server import BenchServer, make_body
from models.runtimes.cuda.gpu import gpu_count, load_driver
from tests.support.gpu.rig import CLIPS, gpu_rig, reason_without_gpu

pytestmark = pytest.mark.gpu
ROOT = Path(__file__).parents[2]
CLIENTS = 8
INSTRUCTION = "Transcribe the speech to text."
SMALLEST_LIKENESS = 0.5
"""Of two transcripts, as difflib counts equal words: bfloat16 decides near-ties otherwise, and decoding goes on from there.
Chosen, not measured: a wrong chain has hardly a word in common with a right one."""


@cache
def bundle_folder() -> Path:
    if reason := reason_without_gpu():
        pytest.skip(reason)
    return gpu_rig().bundle.folder


@contextmanager
def served(*options: str) -> Iterator[BenchServer]:
    with BenchServer(ROOT, ["--bundle", str(bundle_folder()), *options]) as server:
        yield server


def transcribe(server: BenchServer, clients: int = 1, rounds: int = 1) -> list[str]:
    bodies = [make_body(clip.read_bytes(), INSTRUCTION) for clip in sorted(CLIPS.glob("*.flac"))] * rounds
    with ThreadPoolExecutor(clients) as pool:
        return [reply["text"] for reply in pool.map(server.answer, bodies)]


def assert_alike(texts: Sequence[str], expected: Sequence[str]) -> None:
    for text, other in zip(texts, expected, strict=True):
        likeness = SequenceMatcher(None, text.split(), other.split(), autojunk=False).ratio()
        assert likeness >= SMALLEST_LIKENESS, f"{text!r} is not {other!r}"


def test_transcripts_are_those_of_the_cpu_alone_and_under_load() -> None:
    with served("--device", "cpu") as server:
        expected = transcribe(server)
    with served("--device", "cuda") as server:
        assert_alike(transcribe(server), expected)
        assert_alike(transcribe(server, CLIENTS, rounds=4), expected * 4)


def test_several_gpus_answer_as_one() -> None:
    bundle_folder()
    count = gpu_count(load_driver())
    if count < 2:
        pytest.skip("there is one GPU")
    with served("--device", "cuda") as server:
        expected = transcribe(server)
    with served("--device", "cuda", "--gpus", ",".join(map(str, range(count)))) as server:
        assert_alike(transcribe(server, CLIENTS, rounds=4), expected * 4)
