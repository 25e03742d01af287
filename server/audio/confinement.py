"""The kernel's protections around a decoder: it opens no file and no socket, starts no process and no thread.

Landlock denies paths, TCP ports and other processes' sockets; seccomp denies every system call that decoding does not need. A
decoder whose code is taken over by a hostile file then holds two pipes and its memory. Either may be missing in a kernel or a
container, and then the other still holds.
"""

import ctypes
import os
import platform
import struct
from errno import EPERM

PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 22, 2
# The same numbers on every architecture.
LANDLOCK_CREATE_RULESET, LANDLOCK_RESTRICT_SELF = 444, 446
LANDLOCK_GET_VERSION = 1
# Rights over files that each version of Landlock knows, as a count of bits; TCP ports from version 4 on, and sockets and signals
# beyond this process from version 6 on.
LANDLOCK_FILE_BITS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
LANDLOCK_TCP_VERSION, LANDLOCK_SCOPE_VERSION = 4, 6

ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
"""The place of an architecture's numbers in `CALLS`, and the kernel's number for itself."""
CALLS = {
    "read": (0, 63),
    "write": (1, 64),
    "readv": (19, 65),
    "writev": (20, 66),
    "close": (3, 57),
    "fstat": (5, 80),
    "lseek": (8, 62),
    "poll": (7, 73),
    "mmap": (9, 222),
    "mprotect": (10, 226),
    "munmap": (11, 215),
    "brk": (12, 214),
    "mremap": (25, 216),
    "madvise": (28, 233),
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "sigaltstack": (131, 132),
    "restart_syscall": (219, 128),
    "tgkill": (234, 131),
    "getpid": (39, 172),
    "gettid": (186, 178),
    "futex": (202, 98),
    "sched_yield": (24, 124),
    "sched_getaffinity": (204, 123),
    "nanosleep": (35, 101),
    "clock_nanosleep": (230, 115),
    "clock_gettime": (228, 113),
    "getitimer": (36, 102),
    "setitimer": (38, 103),
    "getrusage": (98, 165),
    "getrandom": (318, 278),
    "rseq": (334, 293),
    "exit": (60, 93),
    "exit_group": (231, 94),
}
"""The system calls that a decoder needs, with their numbers on each architecture; `poll` is `ppoll` where there is no other."""
# Of the kernel's filter programs: load a word of the call's description, jump if it is equal, return.
LOAD, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06
CALL_OFFSET, ARCHITECTURE_OFFSET = 0, 4
ALLOW, REFUSE, KILL = 0x7FFF0000, 0x00050000 | EPERM, 0x80000000


def confine_decoder() -> tuple[str, ...]:
    """Confine this process for good, and return the names of the protections that this kernel does not give.

    `no_new_privs` has to be set before (`server.confined_child.confine`), and all modules have to be loaded.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    protections = {"Landlock": _restrict_by_landlock, "seccomp": _restrict_calls}
    return tuple(name for name, restrict in protections.items() if not restrict(libc))


def _restrict_by_landlock(libc: ctypes.CDLL) -> bool:
    version = libc.syscall(LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), LANDLOCK_GET_VERSION)
    if version < 1:
        return False
    files = (1 << LANDLOCK_FILE_BITS.get(version, max(LANDLOCK_FILE_BITS.values()))) - 1
    ports = 0b11 if version >= LANDLOCK_TCP_VERSION else 0
    scopes = 0b11 if version >= LANDLOCK_SCOPE_VERSION else 0
    attributes = struct.pack("<QQQ", files, ports, scopes)
    size = 8 if not ports else 16 if not scopes else 24
    # Everything that is handled is denied, since no rule allows it.
    rules = libc.syscall(LANDLOCK_CREATE_RULESET, attributes, ctypes.c_size_t(size), 0)
    if rules < 0:
        return False
    refused: int = libc.syscall(LANDLOCK_RESTRICT_SELF, rules, 0)
    os.close(rules)
    return not refused


def _restrict_calls(libc: ctypes.CDLL) -> bool:
    if platform.machine() not in ARCHITECTURES:
        return False
    place, architecture = ARCHITECTURES[platform.machine()]
    program = b"".join(_filter_program(architecture, [numbers[place] for numbers in CALLS.values()]))
    buffer = ctypes.create_string_buffer(program)

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))

    described = Program(len(program) // 8, ctypes.addressof(buffer))
    refused: int = libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(described), 0, 0)
    return not refused


def _filter_program(architecture: int, calls: list[int]) -> list[bytes]:
    """Return instructions: calls of another architecture kill, the listed ones pass, all others fail with EPERM."""

    def instruction(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
        return struct.pack("<HBBI", code, if_true, if_false, value)

    head = [
        instruction(LOAD, ARCHITECTURE_OFFSET),
        instruction(JUMP_IF_EQUAL, architecture, if_true=1),
        instruction(RETURN, KILL),
        instruction(LOAD, CALL_OFFSET),
    ]
    tests = [instruction(JUMP_IF_EQUAL, call, if_true=len(calls) - place) for place, call in enumerate(calls)]
    return [*head, *tests, instruction(RETURN, REFUSE), instruction(RETURN, ALLOW)]
