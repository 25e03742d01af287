"""Hostile constraints are refused within a moment, and a child process that is lost is no verdict on a constraint."""

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable

import pytest

from server.child_process import ChildProcess
from server.constraints.sandbox import GrammarSandbox
from server.engine.types.options import Constraint, ConstraintKind
from server.errors import InvalidConstraint, NotReady, Overloaded
from server.fair_semaphore import FairSemaphore

on_each_event_loop = pytest.mark.usefixtures("each_event_loop")

SELF = {"type": "object", "properties": {"self": {"$ref": "#"}}, "required": ["self"], "additionalProperties": False}
HOSTILE: dict[str, tuple[ConstraintKind, str]] = {
    "optional characters": ("regex", "a?" * 20_000),
    "unicode classes": ("regex", r"\w?" * 4000),
    "anything, often": ("regex", ".*" * 4000),
    "repetition of repetitions": ("regex", "(a{1000}){1000}"),
    "groups in groups": ("regex", "(" * 20_000 + ")" * 20_000),
    "patterns that all have to match": (
        "json_schema",
        json.dumps({"type": "string", "allOf": [{"pattern": f"a.*{number}"} for number in range(186)]}),
    ),
    "optional properties": ("json_schema", json.dumps({"properties": {f"p{number}": {} for number in range(4000)}})),
    "alternatives of alternatives": (
        "json_schema",
        json.dumps({"allOf": [{"anyOf": [{"required": [f"{name}{number}"]} for name in "ab"]} for number in range(25)]}),
    ),
    "an object that has to hold itself": ("json_schema", json.dumps(SELF)),
    "references in circles": ("json_schema", '{"$defs": {"a": {"allOf": [{"$ref": "#/$defs/a"}, {}]}}, "$ref": "#/$defs/a"}'),
}
GIVE_UP_S = 60
PYTHON = sys.executable
LARGE: dict[str, tuple[ConstraintKind, str]] = {
    "a choice of 5,000": ("choice", json.dumps([f"word {number}" for number in range(4000)])),
    "an enum of 4,000": ("json_schema", json.dumps({"enum": [f"word {number}" for number in range(4000)]})),
    "100 properties": ("json_schema", json.dumps({"properties": {f"p{number}": {"type": "string"} for number in range(100)}})),
    "700 optional properties": (
        "json_schema",
        json.dumps({"type": "object", "properties": {f"property_{number}": {"type": "string"} for number in range(700)}}),
    ),
    "a tree": ("json_schema", json.dumps({"type": "object", "properties": {"left": {"$ref": "#"}, "right": {"$ref": "#"}}})),
    "a long text": ("regex", r"(?s).{1,50000}"),
}


def with_sandbox(use: Callable[[GrammarSandbox], Awaitable[None]], **options: int) -> None:
    """Run `use` with a sandbox that is closed afterwards."""

    async def run() -> None:
        sandbox = GrammarSandbox(**options)
        try:
            await use(sandbox)
        finally:
            await sandbox.close()

    asyncio.run(run())


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave a child the CPU time that it may take, however little of the machine it gets."""
    monkeypatch.setattr("server.constraints.sandbox.TIMEOUT_S", float(GIVE_UP_S))


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> list[ChildProcess]:
    """The child processes that are started, in their order."""
    started: list[ChildProcess] = []
    start = ChildProcess.start

    async def start_and_note(*arguments: str) -> ChildProcess:
        started.append(await start(*arguments))
        return started[-1]

    monkeypatch.setattr(ChildProcess, "start", start_and_note)
    return started


@pytest.fixture
def fates(monkeypatch: pytest.MonkeyPatch) -> list[signal.Signals]:
    """Signals for the children that are asked next, one each, which come before their answers."""
    planned: list[signal.Signals] = []
    write = ChildProcess.write

    def stop_and_write(child: ChildProcess, *parts: bytes) -> None:
        if planned:
            # A stopped process reads first what it was sent meanwhile.
            fate = planned.pop(0)
            os.kill(child.process_id, signal.SIGSTOP)
            os.kill(child.process_id, fate)
            # One that was killed may be reaped already.
            with contextlib.suppress(ProcessLookupError):
                if fate != signal.SIGSTOP:
                    os.kill(child.process_id, signal.SIGCONT)
        write(child, *parts)

    monkeypatch.setattr(ChildProcess, "write", stop_and_write)
    return planned


def test_what_is_wrong_is_said_of_the_field() -> None:
    async def use(sandbox: GrammarSandbox) -> None:
        with pytest.raises(InvalidConstraint) as refusal:
            await sandbox.check(Constraint("regex", "a(b"))
        assert refusal.value.message.startswith("No answer can match this regex: unclosed group")
        assert refusal.value.param == "regex"

    with_sandbox(use)


@pytest.mark.parametrize(("kind", "text"), HOSTILE.values(), ids=HOSTILE)
def test_the_hostile_is_refused_and_delays_no_other(kind: ConstraintKind, text: str) -> None:
    async def use(sandbox: GrammarSandbox) -> None:
        async with asyncio.timeout(GIVE_UP_S):
            with pytest.raises(InvalidConstraint):
                await sandbox.check(Constraint(kind, text))
            await sandbox.check(Constraint("regex", "a+"), "another")

    with_sandbox(use)


def test_the_large_is_taken() -> None:
    async def use(sandbox: GrammarSandbox) -> None:
        for name, (kind, text) in LARGE.items():
            await sandbox.check(Constraint(kind, text), name)

    with_sandbox(use)


@on_each_event_loop
def test_a_verdict_is_reached_once(children: list[ChildProcess]) -> None:
    async def use(sandbox: GrammarSandbox) -> None:
        for _ in range(3):
            with pytest.raises(InvalidConstraint, match="too complex"):
                await sandbox.check(Constraint(*HOSTILE["optional characters"]))
        assert len(children) == 1
        for text in ("a", "b", "a"):
            await sandbox.check(Constraint("regex", text), "another")
        assert len(children) == 2, "the first one ended at it"

    with_sandbox(use)


@on_each_event_loop
@pytest.mark.usefixtures("stopped_children_time_out_soon")
@pytest.mark.parametrize("fate", [signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP])
def test_a_child_that_is_lost_is_no_verdict(
    fate: signal.Signals, fates: list[signal.Signals], children: list[ChildProcess]
) -> None:
    async def use(sandbox: GrammarSandbox) -> None:
        for text in ("a", "b"):
            fates.append(fate)
            await sandbox.check(Constraint("regex", text))
        # A second loss is not the client's fault either, and nothing of it is remembered.
        fates.extend([fate, fate])
        with pytest.raises(NotReady):
            await sandbox.check(Constraint("regex", "c"))
        await sandbox.check(Constraint("regex", "c"))

    with_sandbox(use)
    assert not any(os.path.exists(f"/proc/{child.process_id}") for child in children), "none is left behind"


@on_each_event_loop
def test_children_that_died_while_idle_are_replaced(children: list[ChildProcess]) -> None:
    async def use(sandbox: GrammarSandbox) -> None:
        await asyncio.gather(*(sandbox.check(Constraint("regex", client), client) for client in "ab"))
        for child in children:
            os.kill(child.process_id, signal.SIGKILL)
        await asyncio.gather(*(sandbox.check(Constraint("regex", client * 2), client) for client in "ab"))

    with_sandbox(use)


@on_each_event_loop
def test_one_client_does_not_hold_up_another(children: list[ChildProcess]) -> None:
    async def use(sandbox: GrammarSandbox) -> None:
        await sandbox.check(Constraint("regex", "a"), "another")
        os.kill(children[0].process_id, signal.SIGSTOP)
        flood = [asyncio.create_task(sandbox.check(Constraint("regex", "b" * count), "flood")) for count in range(1, 5)]
        await asyncio.sleep(0.1)
        await sandbox.check(Constraint("regex", "c"), "victim")
        assert not any(task.done() for task in flood)
        os.kill(children[0].process_id, signal.SIGCONT)
        await asyncio.gather(*flood)

    with_sandbox(use)


def test_a_client_rests_after_a_constraint_that_took_long(monkeypatch: pytest.MonkeyPatch) -> None:
    rests: dict[str, float] = {}
    monkeypatch.setattr(FairSemaphore, "rest", lambda _places, client, seconds: rests.update({client: seconds}))

    async def use(sandbox: GrammarSandbox) -> None:
        await sandbox.check(Constraint("regex", "a"), "light")
        await sandbox.check(Constraint(*LARGE["700 optional properties"]), "heavy")
        with pytest.raises(InvalidConstraint):
            await sandbox.check(Constraint(*HOSTILE["optional characters"]), "hostile")
        assert rests["light"] < rests["heavy"] < rests["hostile"]
        rests.clear()
        await sandbox.check(Constraint(*LARGE["700 optional properties"]), "heavy")
        assert not rests, "it is known"

    with_sandbox(use)


def test_children_leave_the_cores_to_what_is_decoded(children: list[ChildProcess]) -> None:
    async def use(sandbox: GrammarSandbox) -> None:
        await sandbox.check(Constraint("regex", "a"))
        assert os.getpriority(os.PRIO_PROCESS, children[0].process_id) > os.getpriority(os.PRIO_PROCESS, 0)

    with_sandbox(use)


def test_waiting_is_bounded(children: list[ChildProcess]) -> None:
    async def use(sandbox: GrammarSandbox) -> None:
        await sandbox.check(Constraint("regex", "a"), "another")
        os.kill(children[0].process_id, signal.SIGSTOP)
        waiting = [asyncio.create_task(sandbox.check(Constraint("regex", "b" * count))) for count in range(1, 4)]
        await asyncio.sleep(0.1)
        with pytest.raises(Overloaded):
            await sandbox.check(Constraint("regex", "c"))
        os.kill(children[0].process_id, signal.SIGCONT)
        await asyncio.gather(*waiting)

    with_sandbox(use, max_waiting=2)


@on_each_event_loop
def test_a_client_that_leaves_takes_no_verdict_along() -> None:
    async def use(sandbox: GrammarSandbox) -> None:
        await sandbox.check(Constraint("regex", "a"))
        leaving = asyncio.create_task(sandbox.check(Constraint(*HOSTILE["optional characters"]), "another"))
        staying = asyncio.create_task(sandbox.check(Constraint("regex", "b")))
        await asyncio.sleep(0.02)
        leaving.cancel()
        await staying
        with pytest.raises(InvalidConstraint, match="unclosed"):
            await sandbox.check(Constraint("regex", "a("))
        # Until its child has ended.
        await asyncio.wait([leaving])

    with_sandbox(use)


@on_each_event_loop
def test_no_child_means_not_ready_and_not_that_the_constraint_is_bad(monkeypatch: pytest.MonkeyPatch) -> None:
    async def use(sandbox: GrammarSandbox) -> None:
        monkeypatch.setattr(sys, "executable", "/bin/false")
        with pytest.raises(NotReady):
            await sandbox.check(Constraint("regex", "a"))
        monkeypatch.setattr(sys, "executable", PYTHON)
        await sandbox.check(Constraint("regex", "a"))

    with_sandbox(use)
