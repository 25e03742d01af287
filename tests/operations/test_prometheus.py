"""A real Prometheus scrapes real servers: every query of dashboards and alerts has a value, and an alert fires on a fault."""

import contextlib
import itertools
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from deploy.observe.prometheus import Prometheus
from deploy.observe.queries import Query, dashboard_queries, rule_queries
from loadtest.clients.server import BenchServer, make_body
from loadtest.clients.stream import Refused, Script, run_stream
from loadtest.faults import engine_pid
from server.engine.types.stats import EngineStats, RouterStats
from tests.support.clients.live_server import audio_file, live_server, tone, wait_until
from tests.support.fakes.fake_engine import FakeEngine
from tests.support.tiny.tiny_bundle import write_transcribing_bundle

pytestmark = [
    pytest.mark.operations,
    pytest.mark.skipif(
        not (shutil.which("prometheus") and shutil.which("promtool")),
        reason="Prometheus is not installed (Debian's package prometheus)",
    ),
]

ROOT = Path(__file__).parents[2]
QUERIES = [*dashboard_queries("1m"), *rule_queries()]


class TwoGpus(FakeEngine):
    """A scripted engine that reports two GPUs."""

    def stats(self) -> EngineStats:
        whole = super().stats()
        members = {f"cuda:{number}": whole for number in range(2)}
        return RouterStats(**{**vars(whole), "members": members})


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BenchServer]:
    folder = tmp_path_factory.mktemp("bundle")
    write_transcribing_bundle(folder)
    with BenchServer(ROOT, ["--bundle", str(folder)], decode_workers=1) as server:
        yield server


@pytest.fixture(scope="module")
def prometheus(server: BenchServer) -> Iterator[Prometheus]:
    """Prometheus, while the server gets every kind of request until the engine is killed."""
    stopping = threading.Event()

    def ask() -> None:
        for number in itertools.count():
            if stopping.is_set():
                return
            _ask_everything(server, number)

    with (
        live_server(TwoGpus()) as gpus,
        Prometheus([urlsplit(server.url).netloc, f"127.0.0.1:{gpus.port}"]) as prometheus,
        ThreadPoolExecutor(1) as pool,
    ):
        load = pool.submit(ask)
        yield prometheus
        stopping.set()
        load.result(60)


def _ask_everything(server: BenchServer, number: int) -> None:
    """Have one request of each kind, and a live session; the last ones may meet an engine that was killed."""
    audio = audio_file(tone(1.0, 16_000, 200.0 + 10 * number), 16_000, "WAV")
    for fields in ({}, {"draft": "exact"}, {"stream": "true"}, {"stream": "true", "instruction": "Answer."}):
        server.post(make_body(audio, **fields))
    server.post(make_body(b"no audio"))
    pcm = (20_000 * tone(2.0, 16_000)).astype("<i2").tobytes()
    # The tiny voice detector is random: nearly any probability counts as speech.
    script = Script(pcm, options={"voice": {"threshold": 0.05}}, speed=2.0)
    with contextlib.suppress(Refused):
        run_stream(server.url, script)


@pytest.mark.parametrize("query", QUERIES, ids=lambda query: f"{query.title} {query.legend}")
def test_every_query_has_a_value(query: Query, prometheus: Prometheus) -> None:
    wait_until(lambda: bool(prometheus.query(query.expression)), timeout_s=60)


def test_an_alert_fires_when_the_engine_is_killed(prometheus: Prometheus, server: BenchServer) -> None:
    assert "ThinbridgeEngineRestarted" not in prometheus.alerts()
    os.kill(engine_pid(server.pid), signal.SIGKILL)
    wait_until(lambda: prometheus.alerts().get("ThinbridgeEngineRestarted") == "firing", timeout_s=60)
    assert server.client.get("/health").status_code == 200
