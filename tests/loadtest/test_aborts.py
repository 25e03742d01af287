"""A few aborts on a real server with a tiny model: every place is free again, and no neighbour's answer differs."""

from collections import Counter
from pathlib import Path

import pytest

from loadtest.hostile.aborts import KINDS, Kind, Report, gauge_reader, leave, try_aborts
from loadtest.hostile.target import Target, read_target
from models.assemble import load_models
from models.bundle.io import open_bundle
from server.engine.engine import LocalEngine
from tests.support.clients.live_server import live_server, wait_until
from tests.support.fakes.fake_engine import FakeEngine
from tests.support.tiny.tiny_bundle import write_speaking_bundle


def test_every_abort_frees_its_place_and_disturbs_no_neighbour(tmp_path: Path) -> None:
    write_speaking_bundle(tmp_path)
    engine = LocalEngine(load_models(open_bundle(tmp_path), slots=4, threads=1), 16_000, 30.0, queue_limit=16)
    with live_server(engine) as server:
        wait_until(lambda: engine.stats().ready)
        clip = read_target(server.url)
        report = try_aborts(Target(clip.url, clip.samples[:8000]), range(12))
    assert len(report.freed_s) == 12
    assert None not in report.freed_s
    assert report.disturbed == 0
    assert {kind for kind, _ in report.answers} == set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("resets", [False, True], ids=["fin", "rst"])
def test_a_client_that_leaves_without_an_answer_frees_its_place(kind: Kind, resets: bool) -> None:
    engine = FakeEngine()
    with live_server(engine) as server:
        wait_until(lambda: engine.stats().ready)
        read = gauge_reader(server.client)
        assert read() == (0, 0)
        target = read_target(server.url)
        engine.answers = False
        # Answered never, so the place is held until the client has left.
        leave(target, kind, 1.0, 0.0, resets=resets)
        wait_until(lambda: read() == (0, 0))


def test_a_neighbour_that_gets_another_answer_is_disturbed() -> None:
    report = Report([0.1, 0.2], Counter({("json", "same"): 3, ("sse", "different"): 1}))
    assert report.disturbed == 1
    assert report.p99_s == 0.2
    assert "1 sse different" in report.markdown()
    assert Report([0.1, None]).p99_s is None
    assert "| 2 | 1 |" in Report([0.1, None]).markdown()
