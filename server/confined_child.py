"""The child's side of `server.child_process`; light, because every child loads it."""

import ctypes
import os
import resource
import signal
import sys

READY = b"ready"
PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS = 1, 38


def confine(memory_bytes: int) -> None:
    """Limit this process, a child, to `memory_bytes` of address space, and have it end with the thread that started it.

    From here on it writes no files, dumps no core, gains no rights by running programs, and prints nothing to stderr.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    for option, value in ((PR_SET_PDEATHSIG, signal.SIGKILL), (PR_SET_NO_NEW_PRIVS, 1)):
        if libc.prctl(option, value, 0, 0, 0):
            raise OSError(ctypes.get_errno(), "prctl failed")
    for limit, size in ((resource.RLIMIT_AS, memory_bytes), (resource.RLIMIT_CORE, 0), (resource.RLIMIT_FSIZE, 0)):
        resource.setrlimit(limit, (size, size))
    # Codecs such as mpg123 complain on stderr about every damaged frame.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


def announce_ready() -> None:
    """Tell the parent that this process takes requests."""
    sys.stdout.buffer.write(READY)
    sys.stdout.buffer.flush()


def limit_cpu(cpu_s: float | None) -> None:
    """Have this process end once it has used `cpu_s` more of CPU time, in whatever code it is then; None lifts the limit."""
    # Nothing handles the timer's signal, and unlike RLIMIT_CPU it counts fractions of a second.
    signal.setitimer(signal.ITIMER_PROF, 0 if cpu_s is None else max(cpu_s, 1e-3))
