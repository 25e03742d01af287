"""Messages arrive whole, in order and unchanged, however the socket cuts them."""

import socket
import threading
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server import errors
from server.engine.ipc.channel import Channel, pack
from server.engine.types.events import Failed
from server.engine.types.requests import InstructRequest
from server.errors import ServeError

MESSAGES = st.lists(st.none() | st.text() | st.binary(max_size=3000) | st.tuples(st.integers(), st.text()), max_size=8)

ERRORS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, ServeError)]


@pytest.fixture
def ends() -> Iterator[tuple[Channel, Channel]]:
    left, right = map(Channel, socket.socketpair())
    yield left, right
    left.close()
    right.close()


def receive(channel: Channel, count: int) -> list[object]:
    messages: list[object] = []
    while len(messages) < count:
        messages += channel.receive()
    return messages


@given(MESSAGES, st.data())
def test_any_cut_gives_the_same_messages(messages: list[object], data: st.DataObject) -> None:
    stream = b"".join(map(pack, messages))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=10)))
    received: list[object] = []
    raw, end = socket.socketpair()
    with raw, end:
        channel = Channel(end)
        for start, stop in zip([0, *cuts], [*cuts, len(stream)], strict=True):
            raw.sendall(stream[start:stop])
            received += channel.receive(0)
    assert received == messages


def test_senders_on_several_threads_do_not_mix(ends: tuple[Channel, Channel]) -> None:
    left, right = ends
    contents = [bytes([index]) * 400_000 for index in range(4)]
    threads = [threading.Thread(target=left.send, args=(pack(content),)) for content in contents]
    for thread in threads:
        thread.start()
    received = receive(right, len(contents))
    for thread in threads:
        thread.join()
    assert set(received) == set(contents)


def test_a_request_crosses_with_its_samples(ends: tuple[Channel, Channel]) -> None:
    left, right = ends
    audio = np.random.default_rng(0).normal(size=480_000).astype(np.float32)
    sender = threading.Thread(target=left.send, args=(pack(InstructRequest("a", audio, "Transcribe.")),))
    sender.start()
    (request,) = receive(right, 1)
    sender.join()
    assert isinstance(request, InstructRequest)
    assert (request.id, request.instruction) == ("a", "Transcribe.")
    np.testing.assert_array_equal(request.audio, audio)


@pytest.mark.parametrize("kind", ERRORS)
def test_errors_keep_class_message_and_advice(ends: tuple[Channel, Channel], kind: type[ServeError]) -> None:
    left, right = ends
    left.send(pack(Failed("a", kind("It is so.", param="audio", retry_after_s=3))))
    (event,) = receive(right, 1)
    assert isinstance(event, Failed)
    assert type(event.error) is kind
    assert (event.error.message, str(event.error)) == ("It is so.", "It is so.")
    assert (event.error.param, event.error.retry_after_s) == ("audio", 3)


def test_the_end_comes_after_the_last_message(ends: tuple[Channel, Channel]) -> None:
    left, right = ends
    left.send(pack("last"))
    left.finish()
    assert receive(right, 1) == ["last"]
    with pytest.raises(EOFError):
        right.receive()
    right.send(pack("answer"))
    assert receive(left, 1) == ["answer"]


def test_nothing_within_the_timeout_is_no_message(ends: tuple[Channel, Channel]) -> None:
    assert ends[0].receive(0.01) == []


def test_sending_some_never_blocks_and_gives_the_rest(ends: tuple[Channel, Channel]) -> None:
    left, right = ends
    content = bytes(64 * 2**20)
    message = pack(content)
    rest = left.send_some(message)
    assert 0 < len(rest) < len(message)
    assert left.send_some(rest) == rest
    sender = threading.Thread(target=left.send, args=(rest,))
    sender.start()
    assert receive(right, 1) == [content]
    sender.join()
