"""Faults that are injected into a running server, one at a time."""

import asyncio
import contextlib
import os
import resource
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from loadtest.clients.server import BenchServer
from loadtest.faults import engine_pid, seconds_until_ready
from loadtest.hostile import raw
from loadtest.soak.clock import Clock
from loadtest.soak.proxy import Proxy
from loadtest.support.process import find_processes, process_tree

HOLD_S = 5.0
"""How long a fault that does not end by itself lasts."""
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")

SLOW_BYTES_PER_S = 8_000.0
"""A quarter of what one live session of 16 kHz sends."""
CLOCK_JUMP_S = 3600


@dataclass(frozen=True)
class Target:
    """All that faults can touch: the server, the network before it, and its clock."""

    server: BenchServer
    proxy: Proxy
    clock: Clock


Fault = Callable[[Target], None]
"""Inflicts a fault, waits until its cause is gone and, where it made the server unready, until that is over."""


def _signal_engine(number: signal.Signals) -> Fault:
    def inflict(target: Target) -> None:
        moment_s = time.monotonic()
        os.kill(engine_pid(target.server.pid), number)
        seconds_until_ready(target.server.url, moment_s)

    return inflict


def _kill(module: str) -> Fault:
    def inflict(target: Target) -> None:
        for pid in find_processes(target.server.pid, module):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    return inflict


def _stop_for_a_while(module: str) -> Fault:
    def inflict(target: Target) -> None:
        stopped = find_processes(target.server.pid, module)
        for number in (signal.SIGSTOP, signal.SIGCONT):
            for pid in stopped:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            if number is signal.SIGSTOP:
                time.sleep(HOLD_S)

    return inflict


def _limit(kind: int, find: Callable[[BenchServer], list[int]], value: Callable[[int], int]) -> Fault:
    """Lower a limit of some processes for a while; `value` returns it for a process."""

    def inflict(target: Target) -> None:
        before = {}
        for pid in find(target.server):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                before[pid] = resource.prlimit(pid, kind)
                resource.prlimit(pid, kind, (value(pid), before[pid][1]))
        time.sleep(HOLD_S)
        for pid, limits in before.items():
            with contextlib.suppress(ProcessLookupError):
                resource.prlimit(pid, kind, limits)

    return inflict


def _address_space_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * PAGE_BYTES


def _take_memory_from(find: Callable[[BenchServer], list[int]]) -> Fault:
    """Forbid processes any memory beyond what they have."""
    return _limit(resource.RLIMIT_AS, find, _address_space_bytes)


def _slow_network(target: Target) -> None:
    target.proxy.bytes_per_s = SLOW_BYTES_PER_S
    time.sleep(HOLD_S)
    target.proxy.bytes_per_s = None


def _jump(seconds: int) -> Fault:
    def inflict(target: Target) -> None:
        target.clock.be_wrong_by(seconds)
        time.sleep(HOLD_S)
        target.clock.be_wrong_by(0)

    return inflict


def _attack(attack: raw.Attack) -> Fault:
    def inflict(target: Target) -> None:
        async def run() -> None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(attack(target.server.url), HOLD_S)

        asyncio.run(run())

    return inflict


DECODERS, CONSTRAINTS = "server.audio.worker", "server.constraints.worker"
FAULTS: dict[str, Fault] = {
    "engine killed (SIGKILL)": _signal_engine(signal.SIGKILL),
    "decoders killed (SIGKILL)": _kill(DECODERS),
    "200 connections with half a head": _attack(raw.repeated(200, raw.send_half_a_head)),
    "engine frozen (SIGSTOP)": _signal_engine(signal.SIGSTOP),
    "decoders frozen for 5 s (SIGSTOP)": _stop_for_a_while(DECODERS),
    "2 connections post broken Ogg files of 8 MB": _attack(raw.repeated(2, raw.post_ogg_bomb)),
    "decoders without further memory for 5 s": _take_memory_from(lambda server: find_processes(server.pid, DECODERS)),
    "50 uploads at a byte per second": _attack(raw.repeated(50, raw.drip_upload)),
    "constraint processes killed (SIGKILL)": _kill(CONSTRAINTS),
    "8 uploads broken off": _attack(raw.repeated(8, raw.break_upload_off)),
    "20 WebSockets leave a frame unfinished": _attack(raw.repeated(20, raw.leave_frame_unfinished)),
    "disk full for 5 s (no file may grow)": _limit(
        resource.RLIMIT_FSIZE, lambda server: process_tree(server.pid), lambda _pid: 0
    ),
    "network of 8 kB/s for 5 s": _slow_network,
    "engine without further memory for 5 s": _take_memory_from(lambda server: [engine_pid(server.pid)]),
    "every connection reset": lambda target: target.proxy.reset_all(),
    "clock an hour ahead for 5 s": _jump(CLOCK_JUMP_S),
    "clock an hour behind for 5 s": _jump(-CLOCK_JUMP_S),
}
