"""Messages between the two processes arrive whole, in order and unchanged; nothing else gets through."""

import socket
import threading
from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server import errors
from server.engine.ipc import codec
from server.engine.ipc.codec import ENCODER, FRAME_LENGTH, MESSAGES, Abort, Channel, pack, unpack
from server.engine.types.events import Delta, Failed, TokenLogprob
from server.engine.types.options import Priority, SamplingOptions
from server.engine.types.requests import Audio, Flush, InstructRequest, SpeechTask
from server.errors import ServeError

ERRORS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, ServeError)]
TEXTS = st.text(st.characters(exclude_categories=["Cs"]))

st.register_type_strategy(float, st.floats(allow_nan=False))
st.register_type_strategy(int, st.integers(-(2**63), 2**63 - 1))
st.register_type_strategy(str, TEXTS)
st.register_type_strategy(
    ServeError,
    st.builds(
        lambda kind, message, param, retry: kind(message, param=param, retry_after_s=retry),
        st.sampled_from(ERRORS),
        TEXTS,
        st.none() | TEXTS,
        st.none() | st.integers(0, 60),
    ),
)
AUDIO = st.lists(st.floats(width=32, allow_nan=False), max_size=50).map(lambda samples: np.array(samples, np.float32))
WITH_AUDIO = {Audio: st.builds(Audio, AUDIO), InstructRequest: st.builds(InstructRequest, audio=AUDIO)}
MESSAGE: st.SearchStrategy[Any] = st.one_of([WITH_AUDIO.get(kind, st.from_type(kind)) for kind in MESSAGES])
ADDRESS = st.none() | st.integers(0, 2**63 - 1) | TEXTS


def body(frame: bytearray) -> bytearray:
    return frame[FRAME_LENGTH.size :]


def shown(value: Any) -> str:
    """Return a text that tells values apart, types included; errors do so by all that they hold."""
    if isinstance(value, Failed):
        return f"{value.request_id} {type(value.error)} {vars(value.error)}"
    return repr(value)


@pytest.fixture
def ends() -> Iterator[tuple[Channel, Channel]]:
    left, right = map(Channel, socket.socketpair())
    yield left, right
    left.close()
    right.close()


def receive(channel: Channel, count: int) -> list[Any]:
    """Return the values of the next messages."""
    messages: list[Any] = []
    while len(messages) < count:
        messages += channel.receive()
    return [value for _, value in messages]


@given(st.lists(st.tuples(ADDRESS, MESSAGE), max_size=4))
def test_every_type_of_the_boundary_comes_back(messages: list[tuple[Any, Any]]) -> None:
    received = unpack(body(pack(*messages)))
    assert [(address, shown(value)) for address, value in received] == [(address, shown(value)) for address, value in messages]


@given(st.lists(st.floats(width=32), max_size=50), st.text(max_size=5))
def test_samples_come_back_bit_for_bit(samples: list[float], id: str) -> None:
    audio = np.array(samples, np.float32)
    asked = InstructRequest(f"a{id!r}", audio, SpeechTask("Wörter?", SamplingOptions(stop=("\n",))), priority=Priority.LIVE)
    ((_, answer),) = unpack(body(pack((1, asked))))
    assert answer.audio.dtype == np.float32
    assert answer.audio.flags.aligned
    assert answer.audio.tobytes() == audio.tobytes()
    assert (answer.id, answer.task.sampling, type(answer.priority)) == (asked.id, asked.task.sampling, Priority)


def test_numbers_of_numpy_become_python_s() -> None:
    event = Delta("a", "b", (TokenLogprob(b"\xff", np.float32(-0.5), ((b"c", np.float64(-1.0)),)),))  # type: ignore[arg-type]
    ((_, received),) = unpack(body(pack((1, event))))
    assert received == Delta("a", "b", (TokenLogprob(b"\xff", -0.5, ((b"c", -1.0),)),))


def test_halves_of_surrogate_pairs_are_replaced() -> None:
    asked = InstructRequest("a", np.ones(1, np.float32), SpeechTask("\ud800 this", SamplingOptions(stop=("\udc00",))))
    ((_, received),) = unpack(body(pack((1, asked))))
    assert (received.task.instruction, received.task.sampling.stop) == ("\ufffd this", ("\ufffd",))


@pytest.mark.parametrize("value", [1, "a", (1,), {"a": 1}, np.zeros(3, np.float32), print, ValueError("a"), Priority.LIVE])
def test_other_types_are_refused(value: object) -> None:
    with pytest.raises(TypeError, match="cannot be sent"):
        pack((1, value))


@pytest.mark.parametrize("audio", [np.zeros(3), np.zeros((2, 2), np.float32)])
def test_arrays_of_another_shape_or_type_are_refused(audio: Any) -> None:
    with pytest.raises(TypeError, match="cannot be sent"):
        pack((1, Audio(audio)))


@pytest.mark.parametrize(
    "messages",
    [
        [(1, "eval", "1")],
        [(1, "Priority", 1)],
        [(1, "Flush", {"marker": 1})],
        [(1, "Audio", {"samples": msgspec.msgpack.Ext(2, b"")})],
        [(1, "Failed", {"request_id": "a", "error": ["Exception", "a", None, None]})],
        "a",
    ],
)
def test_bytes_that_name_anything_else_make_nothing(messages: object) -> None:
    with pytest.raises((KeyError, ValueError)):
        unpack(bytearray(ENCODER.encode(messages)))


@given(st.lists(st.tuples(ADDRESS, st.integers(0, 300).map(lambda size: Flush("a" * size))), max_size=8), st.data())
def test_any_cut_gives_the_same_messages(messages: list[tuple[Any, Flush]], data: st.DataObject) -> None:
    """Some frames fit the buffer, and some are read into memory of their own."""
    stream = b"".join(bytes(pack(message)) for message in messages)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=10)))
    received: list[object] = []
    raw, end = socket.socketpair()
    with raw, end, pytest.MonkeyPatch.context() as patch:
        patch.setattr(codec, "READ_BYTES", 100)
        channel = Channel(end)
        for start, stop in zip([0, *cuts], [*cuts, len(stream)], strict=True):
            raw.sendall(stream[start:stop])
            # At least one byte of a piece is taken at a time, and nothing is left of it.
            for _ in range(stop - start):
                received += channel.receive(0)
    assert received == messages


def test_senders_on_several_threads_do_not_mix(ends: tuple[Channel, Channel]) -> None:
    left, right = ends
    contents = [Flush(str(index) * 400_000) for index in range(4)]
    threads = [threading.Thread(target=left.send, args=(pack((1, content)),)) for content in contents]
    for thread in threads:
        thread.start()
    received = receive(right, len(contents))
    for thread in threads:
        thread.join()
    assert set(received) == set(contents)


def test_a_request_crosses_with_its_samples(ends: tuple[Channel, Channel]) -> None:
    left, right = ends
    audio = np.random.default_rng(0).normal(size=480_000).astype(np.float32)
    sender = threading.Thread(target=left.send, args=(pack((1, InstructRequest("a", audio, SpeechTask("Transcribe.")))),))
    sender.start()
    (request,) = receive(right, 1)
    sender.join()
    assert isinstance(request, InstructRequest)
    assert (request.id, request.task.instruction) == ("a", "Transcribe.")
    np.testing.assert_array_equal(request.audio, audio)


def test_the_end_comes_after_the_last_message(ends: tuple[Channel, Channel]) -> None:
    left, right = ends
    left.send(pack(("last", Abort())))
    left.finish()
    assert receive(right, 1) == [Abort()]
    with pytest.raises(EOFError):
        right.receive()
    right.send(pack(("answer", Abort())))
    assert left.receive() == [("answer", Abort())]


def test_nothing_within_the_timeout_is_no_message(ends: tuple[Channel, Channel]) -> None:
    assert ends[0].receive(0.01) == []


def test_sending_some_never_blocks_and_gives_the_rest(ends: tuple[Channel, Channel]) -> None:
    left, right = ends
    content = Flush("a" * 2**26)
    frame = pack((1, content))
    rest = left.send_some(frame)
    assert 0 < len(rest) < len(frame)
    assert left.send_some(bytearray(rest)) == rest
    sender = threading.Thread(target=left.send, args=(rest,))
    sender.start()
    assert receive(right, 1) == [content]
    sender.join()
