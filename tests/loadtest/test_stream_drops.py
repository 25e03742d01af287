"""The leak test: its clients go in every way that they say, and what is left behind is found."""

import subprocess
import sys
from collections import Counter
from dataclasses import replace
from itertools import product
from typing import Any

import pytest

from loadtest.clients.drops import Drop, Leaving, Point, choose_drop, run_drop
from loadtest.support.footprint import Footprint, Watch, footprints, total
from loadtest.support.leaks import Look, leaks
from tests.support.clients.live_server import tone, wait_until
from tests.support.fakes.scripted_stream import Event, ScriptedServer, scripted_server

PCM = (tone(0.5, 16_000) * 32767).astype("<i2").tobytes()
DROPS = [Drop(*each, 1.0, "pcm16") for each in product(Leaving, Point) if each != (Leaving.END, Point.CONNECTED)]


@pytest.mark.parametrize("drop", DROPS, ids=lambda drop: f"{drop.leaving.name} {drop.point.name}")
def test_a_client_goes_as_it_should(drop: Drop) -> None:
    speaks = drop.point != Point.CONNECTED
    sent = PCM if drop.point in (Point.AUDIO, Point.FLUSH) else b""
    messages = ["flush"] * (drop.point == Point.FLUSH) + ["end"] * (drop.leaving == Leaving.END)

    def came(server: ScriptedServer) -> tuple[int, bytes, list[str]]:
        return len(server.starts), b"".join(server.audio), [message["type"] for message in server.messages]

    idle_timeout_s = 0.1 if drop.leaving == Leaving.SILENCE else 20.0
    everything = (speaks, sent, messages)
    with scripted_server(idle_timeout_s=idle_timeout_s, may_idle=lambda server: came(server) == everything) as server:
        assert run_drop(server.url, drop, PCM, b"") == ""
        wait_until(lambda: len(server.gone) == 1)
    starts, heard, told = came(server)
    assert starts == speaks
    if drop.leaving == Leaving.RESET:
        # A reset throws away what the server has not read yet.
        assert sent.startswith(heard)
        assert told in ([], messages)
    else:
        assert (heard, told) == (sent, messages)
    expected = {Leaving.END: 1000, Leaving.CLOSE: 1000, Leaving.RESET: None, Leaving.SILENCE: 1008}
    assert server.gone == [expected[drop.leaving]]


def test_sessions_that_are_ended_wrongly_are_told() -> None:
    def silent(event: Event) -> list[Event]:
        return [] if event["type"] in ("ended", "error") else [event]

    with scripted_server(twist=silent, idle_timeout_s=0.1) as server:
        assert "not 'ended'" in run_drop(server.url, Drop(Leaving.END, Point.AUDIO, 1.0, "pcm16"), PCM, b"")
        assert "not 'error session_idle'" in run_drop(server.url, Drop(Leaving.SILENCE, Point.READY, 1.0, "pcm16"), PCM, b"")
        server.refusal = (429, "overloaded")
        assert "status 429" in run_drop(server.url, Drop(Leaving.CLOSE, Point.READY, 1.0, "pcm16"), PCM, b"")


def test_seeds_decide_on_all_kinds() -> None:
    drops = [choose_drop(seed, 1 / 8) for seed in range(2000)]
    assert drops == [choose_drop(seed, 1 / 8) for seed in range(2000)]
    counts = Counter((drop.leaving, drop.point) for drop in drops)
    assert len(counts) == len(DROPS)
    assert min(counts.values()) > 80
    assert sum(drop.encoding == "ogg_opus" for drop in drops) == pytest.approx(250, abs=50)


QUIET = Look(0, {"thinbridge_live_sessions": 0.0}, [Footprint(1, "server", 100.0, 30, 8), Footprint(2, "engine", 400.0, 20, 5)])


def changed(**values: Any) -> Look:
    """As in the beginning, but for one process."""
    return replace(QUIET, sessions=2000, processes=[QUIET.processes[0], replace(QUIET.processes[1], **values)])


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        (QUIET, []),
        (changed(anonymous_mib=403.9), []),
        (changed(anonymous_mib=404.5), ["memory grew by 4.5 MiB from session 0 to session 2000"]),
        (changed(files=21), ["51 files after all sessions, 50 before"]),
        (changed(threads=6), ["14 threads after all sessions, 13 before"]),
        (
            replace(QUIET, processes=[*QUIET.processes, Footprint(3, "decode", 0, 0, 0)]),
            ["3 processes after all sessions, 2 before"],
        ),
        (replace(QUIET, gauges={"thinbridge_live_sessions": 1.0}), ["thinbridge_live_sessions is 1 after all sessions"]),
    ],
)
def test_what_is_left_behind_is_found(after: Look, expected: list[str]) -> None:
    assert leaks(QUIET, QUIET, after) == expected


HOLDER = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-m", "timeit", "-n1", "input()"], stdin=subprocess.PIPE)
held = bytearray(50 * 2**20)
files = [open("/dev/null") for _ in range(20)]
print("ready", flush=True)
input()
child.communicate(b"\\n")
"""


def test_footprints_of_a_process_and_its_children() -> None:
    command = [sys.executable, "-c", HOLDER]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        wait_until(lambda: [each.name for each in footprints(process.pid)][1:] == ["timeit"])
        with Watch(process.pid, 0.05) as watch:
            wait_until(lambda: len(watch.readings) >= 3)
        parent = footprints(process.pid)[0]
        process.communicate("\n", timeout=20)
    assert parent.anonymous_mib > 50
    assert 23 <= parent.files < 40
    assert parent.threads == 1
    assert total([parent, parent])["files"] == 2 * parent.files
    assert watch.peak().total_mib >= parent.anonymous_mib
    assert set(watch.peak().anonymous_mib) == {parent.name, "timeit"}
    assert footprints(process.pid) == []
