"""A child process is confined, ends with its parent, and its end is told apart from an answer."""

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from server.child_process import ChildFailed, ChildProcess, describe_exit
from tests.support.clients.live_server import wait_until
from tests.support.processes import has_ended

pytestmark = pytest.mark.usefixtures("each_event_loop")

# Answers each line by running it.
SCRIPT = """
import resource, sys
from server.confined_child import announce_ready, confine, limit_cpu
confine(2**30)
announce_ready()
for line in sys.stdin:
    exec(line)
    print("done", flush=True)
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module that runs what it reads."""
    (tmp_path / "scripted_child.py").write_text(SCRIPT)
    monkeypatch.syspath_prepend(tmp_path)
    return "scripted_child"


def with_child(module: str, use: Callable[[ChildProcess], Awaitable[None]]) -> None:
    async def run() -> None:
        child = await ChildProcess.start(module)
        try:
            await use(child)
        finally:
            child.kill()
            await child.wait()

    asyncio.run(run())


def test_it_answers_and_is_confined(module: str) -> None:
    async def use(child: ChildProcess) -> None:
        child.write(b"1 + 1\n")
        assert await child.read_line(20) == b"done\n"
        status = Path(f"/proc/{child.process_id}/status").read_text()
        assert "NoNewPrivs:\t1" in status
        assert os.getsid(child.process_id) == child.process_id

    with_child(module, use)


@pytest.mark.parametrize(
    ("line", "reached_cpu_limit", "crashed"),
    [
        (b"limit_cpu(0.05); [0 for _ in iter(int, 1)]\n", True, False),
        (b"import os; os.abort()\n", False, True),
        (b"bytes(2**31)\n", False, True),
        (b"import os; os.kill(os.getpid(), 9)\n", False, False),
        (b"import os; os.close(1)\n", False, True),
    ],
)
def test_how_it_ended_is_known(module: str, line: bytes, reached_cpu_limit: bool, crashed: bool) -> None:
    async def use(child: ChildProcess) -> None:
        child.write(line)
        with pytest.raises(ChildFailed):
            await child.read_line(20)
        await child.wait()
        assert (child.reached_cpu_limit, child.crashed) == (reached_cpu_limit, crashed)
        # Nothing of this raises where it is gone.
        child.write(b"1\n")
        child.kill()
        with pytest.raises(ChildFailed):
            await child.read(1, 1.0)

    with_child(module, use)


def test_a_child_that_is_silent_fails_at_its_deadline(module: str) -> None:
    async def use(child: ChildProcess) -> None:
        os.kill(child.process_id, signal.SIGSTOP)
        child.write(b"1\n")
        with pytest.raises(ChildFailed, match="did not answer"):
            await child.read_line(0.2)

    with_child(module, use)


@pytest.mark.parametrize("missing", ["no_such_module", "this"])
def test_a_module_that_is_never_ready_is_not_started(missing: str) -> None:
    async def run() -> None:
        with pytest.raises(ChildFailed):
            await ChildProcess.start(missing)

    asyncio.run(run())


def test_it_ends_with_its_parent(module: str) -> None:
    parent = textwrap.dedent("""
        import asyncio, sys, time
        from server.child_process import ChildProcess
        async def run():
            child = await ChildProcess.start(sys.argv[1])
            child.write(b"while True: pass\\n")
            print(child.process_id, flush=True)
            time.sleep(60)
        asyncio.run(run())
    """)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
    with subprocess.Popen([sys.executable, "-c", parent, module], stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        process.kill()
    wait_until(lambda: has_ended(child))


def test_an_end_in_words() -> None:
    assert describe_exit(3) == "exit status 3"
    assert describe_exit(-9) == "signal 9 (Killed)"
    assert describe_exit(None) == "it cannot be killed"
