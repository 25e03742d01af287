"""Every request ends and the engine becomes ready again when the engine's process dies, hangs or stops."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from server.engine.ipc.client import ProcessEngine, StartError
from server.engine.types.options import Priority
from server.engine.types.protocol import Engine
from server.errors import EngineFailed, NotReady, Overloaded
from tests.support.clients.engine_call import TIMEOUT_S, Call, occupied, request, wait_until
from tests.support.fakes import engine_children
from tests.support.fakes.engine_children import FileGate, local
from tests.support.fakes.fake_models import SAMPLE_RATE_HZ
from tests.support.processes import has_ended

ROOT = Path(__file__).parents[4]
STALL_TIMEOUT_S = 2.0

PARENT = """
import sys, time
from server.engine.ipc.client import ProcessEngine

factory = "tests.support.fakes.engine_children:scripted"
engine = ProcessEngine(factory, (sys.argv[1],), 800, 30.0, transcribes=bool, stall_timeout_s=60.0)
engine.start()
print(engine.process_id, flush=True)
time.sleep(600)
"""


@pytest.fixture
def trouble(tmp_path: Path) -> Path:
    """A file that says how the start of a child goes wrong: die, hang, raise or refuse."""
    return tmp_path / "trouble"


@pytest.fixture
def make(gate: FileGate, trouble: Path) -> Iterator[Callable[..., ProcessEngine]]:
    """A function that makes engines over a child; they are drained in the end."""
    engines: list[ProcessEngine] = []

    def make_engine(**timeouts_s: Any) -> ProcessEngine:
        factory = f"{engine_children.__name__}:{engine_children.troubled.__name__}"
        timeouts_s = {"stall_timeout_s": TIMEOUT_S, **timeouts_s}
        engines.append(
            ProcessEngine(factory, (str(gate.path), str(trouble)), SAMPLE_RATE_HZ, 30.0, transcribes=bool, **timeouts_s)
        )
        return engines[-1]

    yield make_engine
    gate.set()
    for engine in engines:
        engine.drain(TIMEOUT_S)


def child_of(engine: ProcessEngine) -> int:
    process_id = engine.process_id
    assert process_id is not None
    return process_id


def lose_child(engine: ProcessEngine) -> None:
    """Kill the child and return when its loss has been noticed."""
    before = engine.stats().counters.restarts
    os.kill(child_of(engine), signal.SIGKILL)
    wait_until(lambda: engine.stats().counters.restarts > before)


def is_gone(process_id: int) -> bool:
    """Return whether a process is dead and reaped."""
    return not Path(f"/proc/{process_id}").exists()


def assert_serves(engine: Engine) -> None:
    wait_until(lambda: engine.stats().ready)
    Call(engine, request("afterwards")).done()


@pytest.mark.parametrize("fate", [signal.SIGKILL, signal.SIGSEGV, signal.SIGSTOP])
def test_a_child_that_dies_or_stops_under_load_is_replaced(
    make: Callable[..., ProcessEngine], gate: FileGate, fate: signal.Signals
) -> None:
    engine = make(stall_timeout_s=STALL_TIMEOUT_S if fate == signal.SIGSTOP else TIMEOUT_S)
    engine.start()
    first_child = child_of(engine)
    gate.clear()
    calls = [Call(engine, request(f"r{index}")) for index in range(6)]
    os.kill(first_child, fate)
    errors = [call.error() for call in calls]
    assert {type(error) for error in errors} == {EngineFailed}
    assert [len(call.events) for call in calls] == [1] * 6
    assert occupied(engine) == 0
    gate.set()
    assert_serves(engine)
    assert engine.stats().counters.restarts == 1
    assert child_of(engine) != first_child
    assert is_gone(first_child)


def test_a_step_that_never_ends_costs_the_child_although_it_reports(make: Callable[..., ProcessEngine], gate: FileGate) -> None:
    engine = make(stall_timeout_s=STALL_TIMEOUT_S)
    engine.start()
    gate.clear()
    assert isinstance(Call(engine, request("a")).error(), EngineFailed)
    gate.set()
    assert_serves(engine)


def test_a_stopped_child_is_replaced_before_anybody_asks(make: Callable[..., ProcessEngine]) -> None:
    engine = make(stall_timeout_s=STALL_TIMEOUT_S)
    engine.start()
    first_child = child_of(engine)
    os.kill(first_child, signal.SIGSTOP)
    wait_until(lambda: not engine.stats().ready)
    assert isinstance(Call(engine, request("early")).error(), NotReady)
    assert_serves(engine)
    assert is_gone(first_child)


def test_an_idle_child_is_left_in_peace(make: Callable[..., ProcessEngine]) -> None:
    engine = make(stall_timeout_s=STALL_TIMEOUT_S)
    engine.start()
    time.sleep(1.5 * STALL_TIMEOUT_S)
    assert_serves(engine)
    assert engine.stats().counters.restarts == 0


def test_counters_go_on_where_the_last_child_ended(make: Callable[..., ProcessEngine]) -> None:
    engine = make()
    engine.start()
    for index in range(3):
        Call(engine, request(f"r{index}")).done()
    wait_until(lambda: engine.stats().counters.steps == 3)
    lose_child(engine)
    assert engine.stats().counters.steps == 3
    assert_serves(engine)
    wait_until(lambda: engine.stats().counters.steps == 4)


@pytest.mark.parametrize("kind", ["die", "hang", "raise", "refuse"])
def test_a_first_child_that_does_not_get_ready_is_an_error(
    make: Callable[..., ProcessEngine], trouble: Path, kind: str, capfd: pytest.CaptureFixture[str]
) -> None:
    trouble.write_text(kind)
    engine = make(start_timeout_s=1.0 if kind == "hang" else TIMEOUT_S)
    with pytest.raises(StartError) as error:
        engine.start()
    said = {"die": "signal 9", "hang": "it reported nothing for 1 s", "raise": "ValueError: the models are broken"}
    said["refuse"] = "started: There is no such GPU."
    assert said[kind] in str(error.value)
    assert not engine.stats().ready
    # An operator can do something about a refusal, and a developer about the rest.
    assert ("Traceback" in capfd.readouterr().err) == (kind == "raise")


@pytest.mark.parametrize("kind", ["die", "hang", "raise"])
def test_a_later_child_that_does_not_get_ready_is_tried_again(
    make: Callable[..., ProcessEngine], trouble: Path, kind: str
) -> None:
    engine = make(start_timeout_s=3.0 if kind == "hang" else TIMEOUT_S)
    engine.start()
    trouble.write_text(kind)
    os.kill(child_of(engine), signal.SIGKILL)
    wait_until(lambda: engine.stats().counters.restarts >= 2)
    assert isinstance(Call(engine, request("early")).error(), NotReady)
    trouble.unlink()
    assert_serves(engine)


def test_no_refusal_is_certain_before_the_child_has_decided_about_all_requests(gate: FileGate) -> None:
    factory = f"{engine_children.__name__}:{local.__name__}"
    engine = ProcessEngine(factory, (str(gate.path),), SAMPLE_RATE_HZ, 30.0, transcribes=bool, stall_timeout_s=TIMEOUT_S)

    def is_refused(client: str) -> bool:
        try:
            engine.check_room(client, Priority.BATCH)
        except Overloaded:
            return True
        return False

    def ask(id: str, client: str) -> Call:
        return Call(engine, replace(request(id), client=client, priority=Priority.BATCH))

    engine.start()
    gate.clear()
    calls = [ask(f"r{index}", "flood") for index in range(engine_children.SLOTS + engine_children.QUEUE_LIMIT)]
    wait_until(lambda: is_refused("flood"))
    os.kill(child_of(engine), signal.SIGSTOP)
    calls.append(ask("other", "another"))
    assert not is_refused("flood")
    os.kill(child_of(engine), signal.SIGCONT)
    wait_until(lambda: is_refused("flood"))
    gate.set()
    for call in calls:
        call.outcome()
    engine.drain(TIMEOUT_S)


def test_a_drain_does_not_wait_for_a_child_that_starts(make: Callable[..., ProcessEngine], trouble: Path) -> None:
    trouble.write_text("hang")
    engine = make()
    starting = threading.Thread(target=engine.start)
    starting.start()
    engine.drain(0)
    starting.join(TIMEOUT_S)
    assert not starting.is_alive()


@pytest.mark.parametrize("stopped", [False, True])
def test_a_child_does_not_outlive_its_parent(gate: FileGate, stopped: bool) -> None:
    command = [sys.executable, "-c", PARENT, str(gate.path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        if stopped:
            os.kill(child, signal.SIGSTOP)
        assert not has_ended(child)
        parent.kill()
        wait_until(lambda: has_ended(child))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_for_the_group_are_for_the_parent_to_heed(make: Callable[..., ProcessEngine], number: signal.Signals) -> None:
    engine = make()
    engine.start()
    os.kill(child_of(engine), number)
    for index in range(5):
        Call(engine, request(f"r{index}")).done()
    assert os.getsid(child_of(engine)) != os.getsid(0)
    assert engine.stats().counters.restarts == 0


def test_nothing_is_left_of_an_engine(make: Callable[..., ProcessEngine]) -> None:
    files, threads, children = len(os.listdir("/proc/self/fd")), set(threading.enumerate()), []
    for _ in range(2):
        engine = make()
        engine.start()
        children.append(child_of(engine))
        lose_child(engine)
        assert_serves(engine)
        children.append(child_of(engine))
        engine.drain(TIMEOUT_S)
    # Files and threads of other tests may have ended meanwhile.
    assert len(os.listdir("/proc/self/fd")) <= files
    assert not set(threading.enumerate()) - threads
    assert len(set(children)) == 4
    assert all(map(is_gone, children))


def test_a_drain_ends_a_child_that_does_not_come_to_read(
    make: Callable[..., ProcessEngine], gate: FileGate, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr("server.engine.ipc.client.STOP_GRACE_S", 0.5)
    engine = make()
    engine.start()
    child = child_of(engine)
    gate.clear()
    call = Call(engine, request("a"))
    os.kill(child, signal.SIGSTOP)
    engine.drain(0.1)
    assert isinstance(call.error(), NotReady)
    assert is_gone(child)
    assert f"the engine's process {child} is stopped" in caplog.text


def test_answers_are_those_of_the_engine_in_this_process(gate: FileGate) -> None:
    factory = f"{engine_children.__name__}:{local.__name__}"
    engines: list[Engine] = [
        local(str(gate.path)),
        ProcessEngine(factory, (str(gate.path),), SAMPLE_RATE_HZ, 30.0, transcribes=bool, stall_timeout_s=TIMEOUT_S),
    ]
    requests = [request(f"r{seed}", seed, f"Say {seed % 3}.", 5 + seed) for seed in range(12)]
    texts = []
    for engine in engines:
        engine.start()
        texts.append([call.done().text for call in [Call(engine, each) for each in requests]])
        engine.drain(TIMEOUT_S)
    assert texts[0] == texts[1]
    assert len(set(texts[0])) == len(requests)
