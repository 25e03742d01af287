"""Two whole models, tiny and random, in one server: beside each other they answer as alone, also while one comes and goes."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from server.engine.factory import build_engine
from server.registry.registry import ModelSource
from server.settings import Settings
from tests.support.clients.live_server import LiveServer, instruct, live_server, wait_until
from tests.support.clients.stream_client import streaming
from tests.support.inputs.hostile_audio import GOOD_CLIP
from tests.support.tiny.tiny_bundle import write_speaking_bundle, write_transcribing_bundle

SETTINGS = Settings(engine="thread", threads=1)
INSTRUCTIONS = ("Transcribe the speech to text.", "What is said?")
NAMES = ("hears", "writes")


def rename(folder: Path, name: str) -> None:
    manifest = json.loads((folder / "bundle.json").read_text())
    (folder / "bundle.json").write_text(json.dumps({**manifest, "name": name}))


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {name: tmp_path_factory.mktemp("bundles") / name for name in NAMES}
    write_speaking_bundle(folders["hears"])
    write_transcribing_bundle(folders["writes"])
    for name, folder in folders.items():
        rename(folder, name)
    return folders


def source(folder: Path) -> ModelSource:
    return ModelSource(build_engine(folder, SETTINGS), lambda: build_engine(folder, SETTINGS))


def answer(server: LiveServer, name: str, instruction: str) -> str:
    reply = instruct(server, GOOD_CLIP, instruction, model=name, max_tokens="12")
    assert reply.status_code == 200, reply.text
    text: str = reply.json()["text"]
    return text


@pytest.fixture(scope="module")
def alone(bundles: dict[str, Path]) -> dict[tuple[str, str], str]:
    """The answers of each model in a server of its own."""
    texts: dict[tuple[str, str], str] = {}
    for name, folder in bundles.items():
        with live_server([source(folder)]) as server:
            wait_until(lambda: server.client.get("/ready").status_code == 200, 60)
            texts |= {(name, instruction): answer(server, name, instruction) for instruction in INSTRUCTIONS}
    return texts


@pytest.fixture(scope="module")
def both(bundles: dict[str, Path]) -> Iterator[LiveServer]:
    def catalogue(name: str) -> ModelSource:
        return source(bundles[name])

    with live_server([source(bundles["hears"])], catalogue, drain_timeout_s=20) as server:
        wait_until(lambda: server.client.get("/ready").status_code == 200, 60)
        yield server


def load(server: LiveServer, name: str) -> None:
    assert server.client.post(f"/v1/models/{name}/load").json()["status"] == "ready"


def test_mixed_load_gives_the_texts_of_each_alone(both: LiveServer, alone: dict[tuple[str, str], str]) -> None:
    load(both, "writes")
    cases = [*alone] * 3
    with ThreadPoolExecutor(6) as pool:
        texts = list(pool.map(lambda case: answer(both, *case), cases))
    assert texts == [alone[case] for case in cases]
    assert len(set(alone.values())) > 1


def test_a_model_comes_and_goes_while_the_other_answers(both: LiveServer, alone: dict[tuple[str, str], str]) -> None:
    load(both, "writes")
    case = ("hears", INSTRUCTIONS[0])
    with ThreadPoolExecutor(3) as pool:
        texts = [pool.submit(answer, both, *case) for _ in range(8)]
        for _ in range(2):
            begun = pool.submit(instruct, both, GOOD_CLIP, INSTRUCTIONS[0], model="writes", max_tokens="12")
            assert both.client.post("/v1/models/writes/unload").json()["status"] == "unloaded"
            # Either it was taken before, and is answered as ever, or it was refused at once.
            reply = begun.result(60)
            assert reply.status_code == 503 or reply.json()["text"] == alone["writes", INSTRUCTIONS[0]]
            load(both, "writes")
        assert {text.result(60) for text in texts} == {alone[case]}
    assert answer(both, "writes", INSTRUCTIONS[1]) == alone["writes", INSTRUCTIONS[1]]


def test_live_speech_reaches_the_model_that_the_start_names(both: LiveServer) -> None:
    load(both, "writes")
    for name in NAMES:
        with streaming(both) as client:
            assert client.start(INSTRUCTIONS[0], model=name)["type"] == "ready"
            client.tell("end")
            assert client.events()[1].code == 1000
