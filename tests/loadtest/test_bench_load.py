"""The benchmark's load generator against servers that are steady, full, wrong or down; and the processes that it measures."""

import json
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from loadtest.clients.load import LoadResult, Question, measure_load
from loadtest.clients.server import make_body
from loadtest.support import process as bench_process
from loadtest.support.process import LinePeer, OthersWatch, PeerError, cpu_seconds, machine_busy_s, peak_memory_mib, process_tree
from tests.support.clients.live_server import wait_until

ROOT = Path(__file__).parents[2]


class Answering(BaseHTTPRequestHandler):
    """Refuses as often as its server says, then answers with its server's text."""

    protocol_version = "HTTP/1.1"
    server: "FakeServer"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        with self.server.lock:
            refuse, self.server.refusals = self.server.refusals > 0, self.server.refusals - 1
        time.sleep(self.server.delay_s)
        status = 429 if refuse else self.server.status
        body = json.dumps({"text": self.server.text}).encode()
        self.send_response(status)
        self.send_header("Retry-After", "0")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_arguments: object) -> None:
        """Silent."""


class FakeServer(ThreadingHTTPServer):
    daemon_threads = True
    refusals = 0
    status = 200
    text = "hello world"
    delay_s = 0.01

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answering)
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


@contextmanager
def fake_server() -> Iterator[FakeServer]:
    server = FakeServer()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


QUESTION = Question(make_body(b"RIFF"), audio_s=5.0, text="hello world")


def test_load_on_a_steady_server_that_refuses_at_first() -> None:
    with fake_server() as server:
        server.refusals = 3
        load = measure_load(server.url, [QUESTION], concurrency=4, warm_up_s=0.0, window_s=0.5)
    report = load.report()
    assert (load.refused, load.errors, load.changed) == (3, [], 0)
    assert load.audio_s == 5.0 * len(load.latencies_s)
    assert report["requests_per_s"] == pytest.approx(len(load.latencies_s) / 0.5)
    assert min(load.latencies_s) >= server.delay_s


def test_load_on_a_server_that_answers_otherwise() -> None:
    with fake_server() as server:
        server.text = "hello there"
        load = measure_load(server.url, [QUESTION], concurrency=1, warm_up_s=0.0, window_s=0.8)
    assert load.changed >= len(load.latencies_s) > 0


def test_load_on_a_broken_server() -> None:
    with fake_server() as server:
        server.status = 500
        load = measure_load(server.url, [QUESTION], concurrency=1, warm_up_s=0.0, window_s=0.8)
    assert load.latencies_s == []
    assert load.report()["first_error"].startswith("status 500")
    assert not load.kept_up()


def test_two_runs_of_a_level_are_one() -> None:
    first = LoadResult(4, 10.0, [1.0, 2.0], 10.0, refused=1, lags_s=[0.0], generator_cpu_share=0.1)
    both = first.merge(LoadResult(4, 30.0, [3.0], 5.0, errors=["x"], lags_s=[0.01], generator_cpu_share=0.3))
    assert (both.window_s, both.latencies_s, both.audio_s, both.refused, both.errors) == (40.0, [1.0, 2.0, 3.0], 15.0, 1, ["x"])
    assert math.isclose(both.generator_cpu_share, 0.25)


def test_a_generator_that_was_the_bottleneck() -> None:
    steady = LoadResult(4, 10.0, [1.0], 5.0, lags_s=[0.001], generator_cpu_share=0.1)
    assert steady.kept_up()
    assert not replace(steady, generator_cpu_share=0.9).kept_up()
    assert not replace(steady, lags_s=[0.5]).kept_up()


PEER = """
import sys
from loadtest.peers.lines import answer_lines

def load():
    print("a library talks")
    return lambda request: {"twice": 2 * request["number"]}

answer_lines(load)
"""


def test_a_peer_answers_and_is_accounted_for() -> None:
    with LinePeer([sys.executable, "-c", PEER], ROOT) as peer:
        assert peer.ask({"number": 21}) == {"twice": 42}
        assert process_tree(peer.pid) == [peer.pid]
        # A quick start takes no whole tick of the kernel's clock.
        wait_until(lambda: peer.ask({"number": 1}) == {"twice": 2} and cpu_seconds(peer.pid) > 0)
        assert cpu_seconds(peer.pid) > 0
        assert 1 < peak_memory_mib(peer.pid) < 1000
        pid = peer.pid
    assert process_tree(pid) == []


def test_a_peer_that_cannot_start_says_why() -> None:
    with pytest.raises(PeerError, match="no such model"):
        LinePeer([sys.executable, "-c", "raise SystemExit('no such model')"], ROOT)


def test_own_work_is_not_that_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine_busy_s() >= cpu_seconds(os.getpid()) > 0
    readings = {"machine_busy_s": [100.0, 110.0], "machine_niced_s": [20.0, 22.0], "cpu_seconds": [1.0, 5.0]}
    for name, values in readings.items():
        monkeypatch.setattr(bench_process, name, lambda *_arguments, values=values: values.pop(0))
    moments_s = [0.0, 10.0, 10.0]
    monkeypatch.setattr(bench_process, "time", SimpleNamespace(monotonic=lambda: moments_s.pop(0)))
    monkeypatch.setattr(bench_process, "os", SimpleNamespace(getpid=os.getpid, cpu_count=lambda: 2))
    watch = OthersWatch()
    assert watch.share() == pytest.approx(0.3)
    assert watch.share_at_low_priority() == pytest.approx(0.1)


def test_the_command_describes_itself() -> None:
    command = [sys.executable, "-m", "loadtest.bench", "--help"]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=120).stdout
    assert "Exit status 1 where the run is void" in shown
