"""One child process with an engine in it: started, written to, read from, ended. Whether it is well is for others to judge."""

import contextlib
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
from typing import Any

from server.engine.ipc.channel import Channel

# With the descriptor of its socket and this process's import path.
PROGRAM = "import sys; sys.path[:] = sys.argv[2:]; from server.engine.ipc.main import main; main(int(sys.argv[1]))"
KILL_TIMEOUT_S = 5.0


class EngineChild:
    """A fresh interpreter that runs `server.engine.ipc.main`. Start it from a thread that outlives it: it ends with that thread.

    It has a session of its own, so a terminal's Ctrl-C reaches only the parent, and it writes to the parent's stderr.
    """

    def __init__(self, first_message: bytes) -> None:
        """Raises `OSError` where no process can be started, and `RuntimeError` where no thread can."""
        ours, theirs = socket.socketpair()
        self._channel = Channel(ours)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", PROGRAM, str(theirs.fileno()), *(path or os.getcwd() for path in sys.path)],
                stdin=subprocess.DEVNULL,
                stdout=2,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )
        self._posting = threading.Lock()
        # What the socket did not take at once, up to an end; counted until it has gone out.
        self._outbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._backlog = 0
        self._writer = threading.Thread(target=self._write, name="engine-child-writer", daemon=True)
        self._writer.start()
        self.post(first_message)

    @property
    def process_id(self) -> int:
        return self._process.pid

    def post(self, message: bytes) -> None:
        """Send what `pack` made; never blocks, not even on a child that does not read."""
        # A child that is gone is noticed where it is read from.
        with self._posting, contextlib.suppress(OSError):
            # Not left to the writer alone: it would wait for the caller to let go of the interpreter.
            rest = message if self._backlog else self._channel.send_some(message)
            if rest:
                self._backlog += 1
                self._outbox.put(rest)

    def receive(self, timeout_s: float) -> list[Any]:
        """The child's messages that have arrived; none after the timeout. Raises `EOFError` once it is dead."""
        return self._channel.receive(timeout_s)

    def finish(self) -> None:
        """Ask the child to end, after all that was posted."""
        self._outbox.put(None)

    def end(self, grace_s: float) -> str:
        """Leave nothing of the child behind, killing it unless it ends by itself in time; how it ended."""
        try:
            self._process.wait(grace_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(KILL_TIMEOUT_S)
        self._channel.hang_up()
        self.finish()
        self._writer.join()
        self._channel.close()
        return _describe(self._process.returncode)

    def _write(self) -> None:
        with contextlib.suppress(OSError):
            while (message := self._outbox.get()) is not None:
                self._channel.send(message)
                with self._posting:
                    self._backlog -= 1
            self._channel.finish()


def _describe(status: int | None) -> str:
    if status is None:
        return "it cannot be killed"
    return f"exit status {status}" if status >= 0 else f"signal {-status} ({signal.strsignal(-status)})"
