"""Everything that an engine is asked and says survives the way through bytes; nothing else gets through."""

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.engine.ipc.codec import decode, encode
from server.engine.types import events, options, requests
from server.engine.types.options import Priority, SamplingOptions
from server.engine.types.requests import InstructRequest

KINDS = [
    kind
    for module in (options, requests, events)
    for kind in vars(module).values()
    if isinstance(kind, type) and dataclasses.is_dataclass(kind)
]
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary() | st.sampled_from(Priority),
    lambda parts: st.lists(parts, max_size=4).map(tuple),
)


def through_bytes(value: object) -> Any:
    return decode(memoryview(encode(value)))


@given(PLAIN)
def test_values_come_back_with_their_types(value: object) -> None:
    assert repr(through_bytes(value)) == repr(value)


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_every_class_of_the_boundary_comes_back(kind: Any, data: st.DataObject) -> None:
    value = kind(**{field.name: data.draw(PLAIN) for field in dataclasses.fields(kind)})
    assert repr(through_bytes(value)) == repr(value)


@given(st.lists(st.floats(width=32), max_size=50))
def test_samples_come_back_bit_for_bit(samples: list[float]) -> None:
    audio = np.array(samples, np.float32)
    asked = InstructRequest("a", audio, "Wörter?", SamplingOptions(stop=("\n", "\ud800")), priority=Priority.LIVE)
    answer = through_bytes(asked)
    assert answer.audio.dtype == np.float32
    assert answer.audio.tobytes() == audio.tobytes()
    assert (answer.sampling, answer.instruction, type(answer.priority)) == (asked.sampling, asked.instruction, Priority)


@pytest.mark.parametrize(
    "value", [[1], {"a": 1}, {1}, object(), np.zeros(3), np.zeros((2, 2), np.float32), print, ValueError("a")]
)
def test_anything_else_is_refused(value: object) -> None:
    with pytest.raises(TypeError, match="no plain data"):
        encode((1, value))


def test_a_name_that_is_not_known_makes_nothing() -> None:
    data = encode("Priorities").replace(b'"Priorities"', b'{"eval": 1}')
    with pytest.raises((KeyError, ValueError)):
        decode(memoryview(data))
