"""The child process of an engine: `EngineChild` starts, writes to, reads from and ends one; `Watchdog` judges from reports."""

import contextlib
import os
import queue
import socket
import subprocess
import sys
import threading
from typing import Any

from server.child_process import describe_exit
from server.engine.ipc.codec import Address, Channel
from server.engine.types.stats import EngineStats

# Gets the descriptor of its socket and this process's import path as arguments.
PROGRAM = "import sys; sys.path[:] = sys.argv[2:]; from server.engine.ipc.main import main; main(int(sys.argv[1]))"
KILL_TIMEOUT_S = 5.0
# A longer pause between two looks means that the watcher itself did not run, which says nothing about the child.
LONGEST_TICK_S = 0.5
# A piece of work may take this many times as long as the child estimated: other processes may share the machine.
WORK_MARGIN = 4.0


class EngineChild:
    """A new interpreter that runs `server.engine.ipc.main`. Start it from a thread that outlives it: it ends with that thread.

    The process has a session of its own, so a terminal's Ctrl-C reaches only the parent, and writes to the parent's stderr.
    """

    def __init__(self, first_frame: bytearray) -> None:
        """Raises `OSError` if no process can be started, and `RuntimeError` if no thread can."""
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
        # Frames that the socket did not take at once, until None; counted until they are sent.
        self._outbox: queue.SimpleQueue[bytearray | memoryview | None] = queue.SimpleQueue()
        self._backlog = 0
        self._writer = threading.Thread(target=self._write, name="engine-child-writer", daemon=True)
        self._writer.start()
        self.post(first_frame)

    @property
    def process_id(self) -> int:
        return self._process.pid

    def post(self, frame: bytearray) -> None:
        """Send what `pack` returned. Never blocks, not even on a child that does not read."""
        # `receive` notices a child that is gone.
        with self._posting, contextlib.suppress(OSError):
            # Sent here if possible: the writer would wait for the caller to release the interpreter's lock.
            rest = frame if self._backlog else self._channel.send_some(frame)
            if rest:
                self._backlog += 1
                self._outbox.put(rest)

    def receive(self, timeout_s: float) -> list[tuple[Address, Any]]:
        """Return the child's messages that have arrived, none after the timeout. Raises `EOFError` once it is dead."""
        return self._channel.receive(timeout_s)

    def finish(self) -> None:
        """Ask the child to end after everything that was posted."""
        self._outbox.put(None)

    def end(self, grace_s: float) -> str:
        """End the child, by force if it does not end by itself in time, and return how it ended. Nothing of it is left."""
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
        return describe_exit(self._process.returncode)

    def _write(self) -> None:
        with contextlib.suppress(OSError):
            while (frame := self._outbox.get()) is not None:
                self._channel.send(frame)
                with self._posting:
                    self._backlog -= 1
            self._channel.finish()


class Watchdog:
    """Judges a child by its reports alone: it may be silent for a time, and have work without progress for a time.

    Both times are `start_timeout_s` before the first report, then `stall_timeout_s`. A model may be so slow that one piece of
    its work takes longer than that; then the second is `WORK_MARGIN` times what the child estimated for it, up to
    `start_timeout_s`: a model's first run, from which it estimates, may be much slower than later ones.
    """

    def __init__(self, now_s: float, start_timeout_s: float, stall_timeout_s: float) -> None:
        self.silent_s = 0.0
        self.stuck_s = 0.0
        self._silence_limit_s = self._stall_limit_s = start_timeout_s
        self._start_timeout_s, self._stall_timeout_s = start_timeout_s, stall_timeout_s
        self._now_s = now_s
        self._progress = (0, 0)

    def advance(self, now_s: float) -> None:
        """Let time pass. Call it several times a second, after the reports that have come."""
        passed_s = min(now_s - self._now_s, LONGEST_TICK_S)
        self._now_s = now_s
        self.silent_s += passed_s
        self.stuck_s += passed_s

    def take_report(self, stats: EngineStats) -> None:
        self.silent_s = 0.0
        self._silence_limit_s = self._stall_timeout_s
        longest_s = min(WORK_MARGIN * stats.longest_work_s, self._start_timeout_s)
        self._stall_limit_s = max(self._stall_timeout_s, longest_s)
        progress = (stats.counters.steps, stats.counters.progress)
        if progress != self._progress or stats.waiting + stats.running + stats.live_jobs == 0:
            self.stuck_s = 0.0
        self._progress = progress

    @property
    def is_stuck(self) -> bool:
        """Whether the child has had work without progress for half of the time after which it has to be replaced."""
        return self.stuck_s > self._stall_limit_s / 2

    @property
    def problem(self) -> str | None:
        """Why the child has to be replaced; None while it is well."""
        if self.silent_s > self._silence_limit_s:
            return f"it reported nothing for {self._silence_limit_s:g} s"
        if self.stuck_s > self._stall_limit_s:
            return f"it had work and made no progress for {self._stall_limit_s:g} s"
        return None
