"""The comparison of dialects: every kind of request is answered, and each is compared with the native API."""

import os
from collections.abc import Iterator

import pytest

from loadtest.dialects import CLIP, processor_times, rows, senders, time_in_turns
from tests.support.clients.live_server import LiveServer, scripted_engine_server


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    with scripted_engine_server() as (_, live):
        yield live


def test_every_kind_is_answered_and_timed(server: LiveServer) -> None:
    send = senders(server.client, CLIP.read_bytes())
    times_s = time_in_turns(send, 2)
    assert {name: len(each) for name, each in times_s.items()} == dict.fromkeys(send, 2)
    used_s = processor_times(send, 1, os.getpid())
    assert set(used_s) == set(send)
    assert sum(used_s.values()) > 0


def test_each_kind_is_compared_with_the_native_api() -> None:
    columns = {"p50": {"instruct": 0.010, "listen": 0.008}, "processor time": {"instruct": 0.002, "listen": 0.0035}}
    assert rows(columns) == [
        ["instruct", "10.00 ms", "+0.00 ms", "2.00 ms", "+0.00 ms"],
        ["listen", "8.00 ms", "-2.00 ms", "3.50 ms", "+1.50 ms"],
    ]
