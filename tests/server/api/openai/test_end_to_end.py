"""OpenAI's client against whole models, tiny and random: the text is the same in every format and by every route."""

from collections.abc import Iterator
from typing import Any

import pytest
from openai import OpenAI

from server.engine.factory import build_engine
from server.settings import Settings
from tests.support.clients.live_server import LiveServer, live_server, wait_until
from tests.support.clients.openai_client import openai_client
from tests.support.inputs.hostile_audio import GOOD_CLIP
from tests.support.tiny.tiny_bundle import write_transcribing_bundle

CLIP = ("clip.wav", GOOD_CLIP)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    folder = tmp_path_factory.mktemp("bundle") / "tiny"
    write_transcribing_bundle(folder)
    engine = build_engine(folder, Settings(engine="thread", threads=1))
    with live_server(engine) as server:
        wait_until(lambda: engine.stats().ready, 60)
        yield server


@pytest.fixture(scope="module")
def speaking(whole: LiveServer) -> Iterator[OpenAI]:
    with openai_client(whole.url) as client:
        yield client


def test_every_route_gives_the_same_text(speaking: OpenAI, whole: LiveServer) -> None:
    create: Any = speaking.audio.transcriptions.create
    name = speaking.models.list().data[0].id
    native = whole.client.post(
        "/v1/instruct", files={"audio": CLIP}, data={"instruction": "Transcribe the speech to text.", "max_tokens": "512"}
    )
    text = native.json()["text"]
    assert create(file=CLIP, model=name).text == text
    assert create(file=CLIP, model=name, response_format="text") == text
    verbose = create(file=CLIP, model=name, response_format="verbose_json")
    assert verbose.text == text
    *deltas, done = create(file=CLIP, model=name, stream=True)
    assert "".join(event.delta for event in deltas) == done.text == text


def test_likelihoods_join_to_the_text(speaking: OpenAI) -> None:
    reply = speaking.audio.transcriptions.create(file=CLIP, model="whisper-1", include=["logprobs"])
    told = b"".join(bytes(map(int, token.bytes or [])) for token in reply.logprobs or [])
    assert told.decode(errors="replace").strip() == reply.text.strip()
    assert reply.usage is not None
    assert reply.usage.type == "tokens"
    assert reply.usage.output_tokens == len(reply.logprobs or [])
