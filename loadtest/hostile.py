"""Attack a server on a loopback address and measure what another client notices.

    python -m loadtest.hostile --url http://127.0.0.1:8000 --server-pid PID
    python -m loadtest.hostile --url http://127.0.0.1:8000 --only C1 H4

For each attack, a victim is measured alone and then during the attack. The victim posts one 2 s clip every 0.3 s from an address
of its own, and asks for `/health` every 0.2 s, each time on a new connection. All attackers share one other address and run in
another process. Every attack ends with the victim's measurement. With the server's process id its memory is read before each
attack, during it, and after `--settle-seconds`; C3, which kills decode workers, is left out without it. H2 is about a server that
may open few files: start one after `ulimit -n 1024`. Prints one table; exits with 1 if any attack misses the targets.
"""

import argparse
import asyncio
import dataclasses
import io
import ipaddress
import itertools
import json
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import numpy.typing as npt
import soundfile
from websockets.asyncio.client import connect
from websockets.exceptions import WebSocketException

from loadtest import raw_attacks
from loadtest.clients.server import make_body
from loadtest.clients.stream import stream_url
from loadtest.raw_attacks import ATTACK_ADDRESS, repeated
from loadtest.support.answers import TRANSCRIBE
from loadtest.support.footprint import Watch
from loadtest.support.markdown import table
from loadtest.support.process import process_tree
from loadtest.support.statistics import percentile

CLIP = Path(__file__).parent.parent / "server" / "assets" / "selfcheck.flac"
RATE_HZ = 16_000
VICTIM_ADDRESS = "127.0.0.9"
VICTIM_PERIOD_S, HEALTH_PERIOD_S = 0.3, 0.2
VICTIM_TIMEOUT_S = 60.0
HEAD_START_S = 2.0
"""How long an attack runs before the victim is measured."""
RECOVERY_S = 90.0
"""How long the server gets to answer the victim again after an attack."""
MIN_ANSWERED, MAX_SLOWDOWN = 0.95, 5.0
"""The targets: share of the victim's requests answered, and its p95 as a multiple of its p95 alone."""

Int16 = npt.NDArray[np.int16]
Fields = Callable[[int], Mapping[str, str]]
"""Return the further form fields of request number n."""


@dataclass(frozen=True)
class Target:
    """The server under attack, and the clip that is sent to it: 16-bit samples at 16 kHz."""

    url: str
    samples: Int16

    def clip(self, number: int = 0) -> bytes:
        """Return the clip as WAV. Different numbers give different audio, so that no cache has it encoded."""
        buffer = io.BytesIO()
        soundfile.write(buffer, np.roll(self.samples, 160 * number), RATE_HZ, format="WAV")
        return buffer.getvalue()


@dataclass(frozen=True)
class Attack:
    """One kind of attack. `run` is cancelled at its end; `victim_fields` are what the victim asks for meanwhile.

    The victim's clip is repeated `victim_repeats` times.
    """

    summary: str
    run: Callable[[Target], Coroutine[Any, Any, None]]
    victim_fields: Fields = lambda _number: {}
    victim_repeats: int = 1


@dataclass
class Measurement:
    """The victim's results: seconds until each answer with status 200, all outcomes, and the slowest `/health` in seconds."""

    latencies_s: list[float] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)
    health_s: list[float] = field(default_factory=list)

    @property
    def requests(self) -> int:
        return self.outcomes.total()

    @property
    def answered(self) -> float:
        """The share of requests answered with status 200."""
        return self.outcomes["200"] / self.requests if self.requests else 0.0

    def percentile_s(self, percent: float) -> float | None:
        """Return a percentile of the latencies of answered requests; None if none was answered."""
        return percentile(self.latencies_s, percent) if self.latencies_s else None


# The attacks.


async def _post_repeatedly(target: Target, fields: Fields, pause_s: float, numbers: Iterator[int]) -> None:
    """Post the clip on one connection, each request as soon as the one before is answered; pause after a refusal."""
    transport = httpx.AsyncHTTPTransport(local_address=ATTACK_ADDRESS)
    async with httpx.AsyncClient(base_url=target.url, transport=transport, timeout=VICTIM_TIMEOUT_S) as client:
        while True:
            number = next(numbers)
            body = make_body(target.clip(number), **fields(number))
            with suppress(httpx.HTTPError):
                response = await client.post("/v1/instruct", content=body.content, headers={"content-type": body.content_type})
                if response.status_code == 200:
                    continue
            await asyncio.sleep(pause_s)


def _flood(connections: int, fields: Fields, pause_s: float = 0.05) -> Callable[[Target], Coroutine[Any, Any, None]]:
    """Return an attack that posts on so many connections at once."""

    async def run(target: Target) -> None:
        numbers = itertools.count()
        await asyncio.gather(*(_post_repeatedly(target, fields, pause_s, numbers) for _ in range(connections)))

    return run


async def _stream_repeatedly(target: Target, messages: Callable[[], Iterable[str | bytes]]) -> None:
    """Open one live session after the other and send its messages as fast as the server reads them."""
    first = json.dumps({"type": "start", "instruction": TRANSCRIBE, "sample_rate_hz": RATE_HZ})
    while True:
        with suppress(WebSocketException, OSError):
            async with connect(
                stream_url(target.url), compression=None, proxy=None, ping_interval=None, local_addr=(ATTACK_ADDRESS, 0)
            ) as connection:
                await connection.send(first)
                reader = asyncio.create_task(_read_all(connection))
                try:
                    for message in messages():
                        await connection.send(message)
                    await connection.send('{"type": "end"}')
                    await reader
                finally:
                    reader.cancel()
        await asyncio.sleep(0.2)


async def _read_all(connection: Any) -> None:
    with suppress(WebSocketException):
        async for _event in connection:
            pass


def _updates() -> Iterator[str | bytes]:
    """Yield updates of the instruction, each followed by 10 ms of silence: every one could be laid out and tokenised."""
    update = json.dumps({"type": "update", "instruction": "7" * 1990})
    for _ in range(40_000):
        yield update
        yield bytes(322)


async def _update_flood(target: Target) -> None:
    await asyncio.gather(*(_stream_repeatedly(target, _updates) for _ in range(12)))


def _speech_flat_out(sessions: int) -> Callable[[Target], Coroutine[Any, Any, None]]:
    """Return an attack whose sessions send two minutes of speech as fast as the server reads."""

    async def run(target: Target) -> None:
        frame_bytes = 8192
        speech = np.resize(target.samples, 120 * RATE_HZ).tobytes()
        frames = [speech[start : start + frame_bytes] for start in range(0, len(speech), frame_bytes)]
        await asyncio.gather(*(_stream_repeatedly(target, lambda: frames) for _ in range(sessions)))

    return run


async def _nothing(_target: Target) -> None:
    await asyncio.Event().wait()


def _long_answers(_number: int) -> Mapping[str, str]:
    return {"max_tokens": "512", "regex": "[a-z ]{3000,4000}"}


def _heavy_schema(number: int) -> Mapping[str, str]:
    """Return a schema of 1,200 properties that no request before has had."""
    properties = {f"property_{number}_{index}": {"type": "string"} for index in range(1200)}
    return {"json_schema": json.dumps({"type": "object", "properties": properties, "additionalProperties": False})}


def _light_constraint(number: int) -> Mapping[str, str]:
    """Return a small constraint that no request before has had, so that no cache answers it."""
    return {"choice": json.dumps(["yes", "no", f"number {time.monotonic_ns()} {number}"])}


def _raw(attack: raw_attacks.Attack) -> Callable[[Target], Coroutine[Any, Any, None]]:
    async def run(target: Target) -> None:
        await attack(target.url)

    return run


ATTACKS = {
    "C1": Attack("12 live sessions flood `update` messages", _update_flood),
    "H4": Attack("one address floods with 40 connections", _flood(40, lambda _number: {})),
    "H4-batch": Attack("the same, as `priority=batch`", _flood(40, lambda _number: {"priority": "batch"})),
    "H5": Attack("4 requests of 512 tokens hold the slots", _flood(4, _long_answers)),
    "H5-18": Attack("18 requests of 512 tokens hold the slots", _flood(18, _long_answers)),
    "M2": Attack("one live session sends flat out", _speech_flat_out(1)),
    "M2-16": Attack("16 live sessions send flat out", _speech_flat_out(16)),
    "M4": Attack("16 connections send heavy constraints", _flood(16, _heavy_schema), _light_constraint),
    "C2": Attack("one connection sends 1-byte chunks to `/health`", _raw(repeated(1, raw_attacks.send_one_byte_chunks))),
    "C2-post": Attack("4 connections post 1-byte chunks", _raw(repeated(4, raw_attacks.post_one_byte_chunks))),
    "H1": Attack("12 connections break uploads of 33 MB off", _raw(repeated(12, raw_attacks.break_upload_off))),
    "H2": Attack("1,100 connections say nothing", _raw(repeated(1100, raw_attacks.say_nothing))),
    "H2-half": Attack("600 connections send half a head", _raw(repeated(600, raw_attacks.send_half_a_head))),
    "H2-deaf": Attack("50 connections read no answers", _raw(repeated(50, raw_attacks.read_no_answers))),
    "H3": Attack("36 connections announce uploads", _raw(repeated(36, raw_attacks.announce_upload))),
    "H3-slow": Attack("200 connections send a byte per second", _raw(repeated(200, raw_attacks.drip_upload))),
    "H6": Attack("8 connections post 8 MB of `OggS`", _raw(repeated(8, raw_attacks.post_ogg_bomb))),
    "M1": Attack("16 live sessions say nothing", _raw(repeated(16, raw_attacks.squat)), victim_repeats=20),
    "M3": Attack("40 connections claim other addresses", _raw(repeated(40, raw_attacks.pretend_to_be_others))),
    "W1": Attack("20 WebSockets leave 15 MiB unfinished", _raw(repeated(20, raw_attacks.leave_frame_unfinished))),
    # The last, because a server that does not replace its decode workers answers nothing afterwards.
    "C3": Attack("the idle decode workers are killed", _nothing),
}


def kill_decode_workers(server_pid: int) -> int:
    """Kill the processes below the server that decode audio, and return how many there were."""
    killed = 0
    for pid in process_tree(server_pid)[1:]:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
        if b"server.audio.worker" in command or b"server.decode_worker" in command:
            os.kill(pid, signal.SIGKILL)
            killed += 1
    return killed


def _attack(name: str, target: Target, begun: Event) -> None:
    """Run one attack until the process is terminated; `begun` is set once it has started, which takes a while."""
    begun.set()
    asyncio.run(ATTACKS[name].run(target))


# The victim.


class Victim:
    """A client that posts the clip from its own address, and a monitor that asks for `/health`, both in threads."""

    def __init__(self, target: Target, fields: Fields) -> None:
        self._target, self._fields = target, fields

    def measure(self, seconds: float) -> Measurement:
        """Ask for so many seconds and return what came back; the last request is waited for."""
        result, done = Measurement(), threading.Event()
        monitor = threading.Thread(target=self._watch_health, args=(result, done))
        monitor.start()
        try:
            with self._client(VICTIM_TIMEOUT_S) as client:
                # Making a client may take as long as a request on a busy machine.
                end_s = time.monotonic() + seconds
                for number in itertools.count():
                    started_s = time.monotonic()
                    if started_s >= end_s:
                        break
                    outcome = self._ask(client, number)
                    took_s = time.monotonic() - started_s
                    result.outcomes[outcome] += 1
                    if outcome == "200":
                        result.latencies_s.append(took_s)
                    time.sleep(max(0.0, VICTIM_PERIOD_S - took_s))
        finally:
            done.set()
            monitor.join()
        return result

    def wait_for_answer(self, seconds: float) -> float | None:
        """Return how long it took until a request was answered with status 200; None if that was too long."""
        started_s = time.monotonic()
        with self._client(10.0) as client:
            while (waited_s := time.monotonic() - started_s) < seconds:
                if self._ask(client, 0) == "200":
                    return waited_s
                time.sleep(0.5)
        return None

    def _client(self, timeout_s: float) -> httpx.Client:
        transport = httpx.HTTPTransport(local_address=VICTIM_ADDRESS)
        return httpx.Client(base_url=self._target.url, transport=transport, timeout=timeout_s, headers={"connection": "close"})

    def _ask(self, client: httpx.Client, number: int) -> str:
        body = make_body(self._target.clip(), **self._fields(number))
        try:
            response = client.post("/v1/instruct", content=body.content, headers={"content-type": body.content_type})
        except httpx.HTTPError as error:
            return type(error).__name__
        return str(response.status_code)

    def _watch_health(self, result: Measurement, done: threading.Event) -> None:
        with self._client(VICTIM_TIMEOUT_S) as client:
            while True:
                started_s = time.monotonic()
                with suppress(httpx.HTTPError):
                    client.get("/health")
                result.health_s.append(time.monotonic() - started_s)
                if done.wait(HEALTH_PERIOD_S):
                    return


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
    name: str, target: Target, server_pid: int | None, alone_s: float, attack_s: float, settle_s: float = 0.0
) -> Outcome:
    """Measure the victim alone and under one attack. The attack is over when this returns."""
    if server_pid is None:
        return _measure(name, target, None, alone_s, attack_s)
    with Watch(server_pid, 0.5) as watch:
        before_mib = watch.read().total_mib
        outcome = _measure(name, target, server_pid, alone_s, attack_s)
    if settle_s:
        time.sleep(settle_s)
    return dataclasses.replace(outcome, memory_mib=(before_mib, watch.peak().total_mib, Watch(server_pid, 1.0).read().total_mib))


def _measure(name: str, target: Target, server_pid: int | None, alone_s: float, attack_s: float) -> Outcome:
    samples = np.tile(target.samples, ATTACKS[name].victim_repeats)
    victim = Victim(Target(target.url, samples), ATTACKS[name].victim_fields)
    victim.wait_for_answer(RECOVERY_S)
    alone = victim.measure(alone_s)
    processes = multiprocessing.get_context("spawn")
    begun = processes.Event()
    attackers = processes.Process(target=_attack, args=(name, target, begun), daemon=True)
    attackers.start()
    begun.wait(VICTIM_TIMEOUT_S)
    try:
        if name == "C3" and server_pid is not None:
            print(f"C3: killed {kill_decode_workers(server_pid)} decode workers", flush=True)
        time.sleep(HEAD_START_S)
        attacked = victim.measure(attack_s)
    finally:
        attackers.terminate()
        attackers.join()
    return Outcome(name, alone, attacked, victim.wait_for_answer(RECOVERY_S))


def report(outcomes: list[Outcome]) -> str:
    """Return the outcomes as a Markdown table; latencies are in milliseconds."""
    head = ["attack", "what it does", "requests", "answered", "other outcomes", "p50 alone", "p95 alone", "p50 attacked"]
    head += [
        "p95 attacked",
        "x alone",
        "/health p95",
        "/health max",
        "recovered after",
        "memory before, most, after",
        "targets met",
    ]
    rows = []
    for outcome in outcomes:
        alone, attacked = outcome.alone, outcome.attacked
        times = [measurement.percentile_s(percent) for measurement in (alone, attacked) for percent in (50, 95)]
        slowdown = times[3] / times[1] if times[1] and times[3] else None
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


def chosen_attacks(only: list[str] | None) -> list[str]:
    """Return the attacks to run: those named, or those whose name begins with a given one and a hyphen; all without names.

    Raises `ValueError` for a name that is not known.
    """
    for name in only or []:
        if name not in ATTACKS:
            raise ValueError(f"{name} is not an attack; known are {', '.join(ATTACKS)}.")
    return [name for name in ATTACKS if only is None or name in only or name.split("-")[0] in only]


def check_loopback(url: str) -> None:
    """Raise `ValueError` unless the URL names an IPv4 loopback address."""
    host = urlsplit(url).hostname or ""
    try:
        is_loopback = ipaddress.IPv4Address(host).is_loopback
    except ValueError:
        is_loopback = False
    if not is_loopback:
        raise ValueError(f"{url} is not a loopback address such as http://127.0.0.1:8000; no other server may be attacked.")


def read_target(url: str) -> Target:
    """Return the server and the clip that comes with it."""
    samples, rate_hz = soundfile.read(CLIP, dtype="int16")
    if rate_hz != RATE_HZ:
        raise ValueError(f"{CLIP} is not at {RATE_HZ} Hz")
    return Target(url, samples)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", required=True, help="the server, at a loopback address; it is slowed down and may fail")
    parser.add_argument("--only", nargs="+", metavar="NAME", help=f"which attacks; default: all of {', '.join(ATTACKS)}")
    parser.add_argument("--server-pid", type=int, help="the server's process id, which C3 needs")
    parser.add_argument("--seconds", type=float, default=20.0, help="how long the victim is measured under each attack")
    parser.add_argument("--settle-seconds", type=float, default=0.0, help="how long memory gets to come back after each attack")
    parser.add_argument("--alone-seconds", type=float, default=6.0, help="how long it is measured alone before each attack")
    arguments = parser.parse_args()
    try:
        check_loopback(arguments.url)
        names = chosen_attacks(arguments.only)
    except ValueError as error:
        parser.error(str(error))
    if arguments.server_pid is None and "C3" in names:
        print("C3 is left out: it needs --server-pid.", flush=True)
        names.remove("C3")
    target = read_target(arguments.url)
    outcomes = []
    for name in names:
        print(f"{name}: {ATTACKS[name].summary} ...", flush=True)
        times_s = (arguments.alone_seconds, arguments.seconds, arguments.settle_seconds)
        outcomes.append(carry_out(name, target, arguments.server_pid, *times_s))
        print(report(outcomes[-1:]), flush=True)
    print(report(outcomes))
    return 0 if all(outcome.meets_targets for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
