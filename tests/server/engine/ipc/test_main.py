"""The engine goes on while the server's process does not read, and no event is lost."""

import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from server.engine.ipc import main as child
from server.engine.ipc.codec import Channel, pack
from server.engine.types.events import Delta, Done
from server.engine.types.options import SamplingOptions
from server.engine.types.requests import InstructRequest, SpeechTask
from server.engine.types.stats import EngineStats
from tests.support.clients.engine_call import TIMEOUT_S, occupied, wait_until
from tests.support.clients.engine_client import NEVER
from tests.support.fakes.fake_engine import FakeEngine
from tests.support.fakes.fake_models import FakeLLM, fake_models, speech
from tests.support.fakes.live_engine import serving

REQUESTS, TOKENS = 20, 200


@pytest.fixture
def ends() -> Iterator[tuple[Channel, Channel]]:
    """The channels of the parent and the child; little fits between them."""
    parent, worker = socket.socketpair()
    channels = Channel(parent), Channel(worker)
    worker.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2**12)
    yield channels
    parent.close()
    worker.close()


def serve_on_thread(engine: Any, channel: Channel) -> threading.Thread:
    thread = threading.Thread(target=child.serve, args=(engine, channel, child.read_messages(channel)))
    thread.start()
    return thread


def long_answer(index: int) -> InstructRequest:
    """Return a request whose tokens have so many alternatives that a few of them fill the socket."""
    return InstructRequest(f"r{index}", speech(index), SpeechTask("Say.", SamplingOptions(max_tokens=TOKENS, logprobs=20)))


def test_steps_go_on_while_the_parent_does_not_read_and_every_event_arrives(ends: tuple[Channel, Channel]) -> None:
    parent, worker = ends
    with serving(fake_models(FakeLLM(max_positions=1000, mean_tokens=NEVER))) as engine:
        thread = serve_on_thread(engine, worker)
        for index in range(REQUESTS):
            parent.send(pack((index, long_answer(index))))
        wait_until(lambda: engine.stats().counters.generated_tokens >= REQUESTS * TOKENS and occupied(engine) == 0)
        texts: dict[object, str] = {}
        done: dict[object, Done] = {}
        reports: list[EngineStats] = []
        frames = 0
        while len(done) < REQUESTS:
            messages = parent.receive(TIMEOUT_S)
            frames += 1
            for address, value in messages:
                match value:
                    case Delta(text=text):
                        texts[address] = texts.get(address, "") + text
                    case Done():
                        done[address] = value
                    case EngineStats():
                        reports.append(value)
        assert {address: answer.text for address, answer in done.items()} == texts
        assert {answer.usage.output_tokens for answer in done.values()} == {TOKENS}
        # Reports that are not read are replaced by later ones.
        assert 0 < len(reports) < 10
        parent.finish()
        thread.join(TIMEOUT_S)
        assert not thread.is_alive()


def test_a_parent_that_never_reads_again_ends_the_child(
    ends: tuple[Channel, Channel], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(child, "MAX_UNSENT_EVENTS", 50)
    parent, worker = ends
    engine = FakeEngine()
    engine.start()
    engine.text = "word " * 20_000
    thread = serve_on_thread(engine, worker)
    parent.send(pack((1, long_answer(1))))
    thread.join(TIMEOUT_S)
    assert not thread.is_alive()
    assert engine.drained
    assert "does not read" in caplog.text
