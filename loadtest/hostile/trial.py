"""One attack and the victim's figures before it, during it and after it."""

import asyncio
import contextlib
import dataclasses
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.synchronize import Event

import numpy as np

from loadtest.hostile.attacks import ATTACKS
from loadtest.hostile.target import Target
from loadtest.hostile.victim import VICTIM_TIMEOUT_S, Measurement, Victim
from loadtest.support.footprint import Watch
from loadtest.support.markdown import table
from loadtest.support.process import find_processes
from loadtest.support.statistics import percentile

HEAD_START_S = 2.0
"""How long an attack runs before the victim is measured."""
RECOVERY_S = 90.0
"""How long the server gets to answer the victim again after an attack."""
PERCENTILES = (50, 95, 99)
ATTACKERS_NICENESS = 10
"""On one machine the attackers take processor time of the server, as they would not from afar; so they get what is left."""
MIN_ANSWERED, MAX_SLOWDOWN = 0.95, 5.0
"""The targets: share of the victim's requests answered, and its p95 as a multiple of its p95 alone."""


@dataclass(frozen=True)
class Outcome:
    """One attack: the victim alone, the victim under attack, and seconds from its end until the victim was answered again."""

    name: str
    alone: Measurement
    attacked: Measurement
    recovered_s: float | None
    memory_mib: tuple[float, float, float] | None = None
    """Resident memory of all processes before, at most during, and after; None without the server's process id."""

    @property
    def meets_targets(self) -> bool:
        alone_s, attacked_s = self.alone.percentile_s(95), self.attacked.percentile_s(95)
        if alone_s is None or attacked_s is None:
            return False
        return self.attacked.answered >= MIN_ANSWERED and attacked_s <= MAX_SLOWDOWN * alone_s


def carry_out(
    name: str, target: Target, server_pid: int | None, alone_s: float, attack_s: float, settle_s: float = 0.0, rounds: int = 1
) -> Outcome:
    """Measure the victim alone and under one attack, in turns. The attack is over when this returns."""
    if server_pid is None:
        return _measure(name, target, None, alone_s, attack_s, rounds)
    with Watch(server_pid, 0.5) as watch:
        before_mib = watch.read().total_mib
        outcome = _measure(name, target, server_pid, alone_s, attack_s, rounds)
    if settle_s:
        time.sleep(settle_s)
    return dataclasses.replace(outcome, memory_mib=(before_mib, watch.peak().total_mib, Watch(server_pid, 1.0).read().total_mib))


def _measure(name: str, target: Target, server_pid: int | None, alone_s: float, attack_s: float, rounds: int) -> Outcome:
    samples = np.tile(target.samples, ATTACKS[name].victim_repeats)
    victim = Victim(Target(target.url, samples), ATTACKS[name].victim_fields)
    alone, attacked = Measurement(), Measurement()
    recovered_s = victim.wait_for_answer(RECOVERY_S)
    for _ in range(rounds):
        alone.add(victim.measure(alone_s / rounds))
        with _attackers(name, target, server_pid):
            attacked.add(victim.measure(attack_s / rounds))
        recovered_s = victim.wait_for_answer(RECOVERY_S)
    return Outcome(name, alone, attacked, recovered_s)


@contextlib.contextmanager
def _attackers(name: str, target: Target, server_pid: int | None) -> Iterator[None]:
    """Have the attack go on, from some seconds before the block to its end."""
    processes = multiprocessing.get_context("spawn")
    begun = processes.Event()
    attackers = processes.Process(target=_attack, args=(name, target, begun), daemon=True)
    attackers.start()
    begun.wait(VICTIM_TIMEOUT_S)
    try:
        if name == "C3" and server_pid is not None:
            print(f"C3: killed {kill_decode_workers(server_pid)} decode workers", flush=True)
        time.sleep(HEAD_START_S)
        yield
    finally:
        attackers.terminate()
        attackers.join()


def kill_decode_workers(server_pid: int) -> int:
    """Kill the processes below the server that decode audio, and return how many there were."""
    workers = find_processes(server_pid, "server.audio.worker")
    for pid in workers:
        os.kill(pid, signal.SIGKILL)
    return len(workers)


def _attack(name: str, target: Target, begun: Event) -> None:
    """Run one attack until the process is terminated; `begun` is set once it has started, which takes a while."""
    os.nice(ATTACKERS_NICENESS)
    begun.set()
    asyncio.run(ATTACKS[name].run(target))


def report(outcomes: list[Outcome]) -> str:
    """Return the outcomes as a Markdown table; latencies are in milliseconds."""
    head = ["attack", "what it does", "requests", "answered", "other outcomes"]
    head += [f"p{percent} {when}" for when in ("alone", "attacked") for percent in PERCENTILES]
    head += ["p95, x alone", "/health p95", "/health max", "recovered after", "memory before, most, after", "targets met"]
    rows = []
    for outcome in outcomes:
        alone, attacked = outcome.alone, outcome.attacked
        times = [measurement.percentile_s(percent) for measurement in (alone, attacked) for percent in PERCENTILES]
        slowdown = times[4] / times[1] if times[1] and times[4] else None
        others = ", ".join(f"{count}x {name}" for name, count in attacked.outcomes.most_common() if name != "200")
        rows.append(
            [
                outcome.name,
                ATTACKS[outcome.name].summary,
                attacked.requests,
                f"{attacked.answered:.0%}",
                others or "-",
                *(None if seconds is None else f"{1000 * seconds:.0f}" for seconds in times),
                None if slowdown is None else f"{slowdown:.1f}",
                f"{1000 * percentile(attacked.health_s, 95):.0f}" if attacked.health_s else None,
                f"{1000 * max(attacked.health_s, default=0.0):.0f}",
                "never" if outcome.recovered_s is None else f"{outcome.recovered_s:.1f} s",
                None if outcome.memory_mib is None else ", ".join(f"{each:.0f}" for each in outcome.memory_mib) + " MiB",
                "yes" if outcome.meets_targets else "NO",
            ]
        )
    return "\n".join(table(head, rows)) + "\n"
