"""The memory, files and threads that a server holds while nothing goes on, and how much of that is new."""

import time
from dataclasses import dataclass

from loadtest.clients.server import BenchServer, ServerError
from loadtest.support.footprint import Footprint, footprints, total
from loadtest.support.gauges import read_metrics

QUIET_TIMEOUT_S = 60.0
SETTLE_S = 2.0
MAX_GROWTH_MIB = 4.0
GAUGES = (
    "live_sessions",
    "live_jobs",
    "stream_sockets",
    "num_requests_running",
    "num_requests_waiting",
)
"""All of them are 0 where nothing is going on."""


@dataclass(frozen=True)
class Look:
    """At a server on which nothing goes on, after so many sessions: its gauges, and what its processes hold."""

    sessions: int
    gauges: dict[str, float]
    processes: list[Footprint]


def read_gauges(server: BenchServer) -> dict[str, float]:
    """Return the gauges by name. Raises `ServerError` for one that the server does not have."""
    values = read_metrics(server.client)
    if missing := [name for name in GAUGES if name not in values]:
        raise ServerError(f"The server has no metric thinbridge_{missing[0]}.")
    return {name: values[name] for name in GAUGES}


def look(server: BenchServer, sessions: int) -> Look:
    """Once all gauges are 0 and memory had time to settle, or after `QUIET_TIMEOUT_S`."""
    deadline_s = time.monotonic() + QUIET_TIMEOUT_S
    while any((gauges := read_gauges(server)).values()) and time.monotonic() < deadline_s:
        time.sleep(0.2)
    time.sleep(SETTLE_S)
    return Look(sessions, gauges, footprints(server.pid))


def leaks(before: Look, middle: Look, after: Look) -> list[str]:
    """Return the quantities that did not return to their earlier values, a sentence each."""
    found = [f"{name} is {value:g} after all sessions" for name, value in after.gauges.items() if value]
    begun, ended = total(before.processes), total(after.processes)
    found += [
        f"{ended[kind]:g} {kind} after all sessions, {begun[kind]:g} before"
        for kind in ("processes", "files", "threads")
        if ended[kind] > begun[kind]
    ]
    growth_mib = total(after.processes)["anonymous_mib"] - total(middle.processes)["anonymous_mib"]
    if growth_mib > MAX_GROWTH_MIB:
        found.append(f"memory grew by {growth_mib:.1f} MiB from session {middle.sessions} to session {after.sessions}")
    return found
