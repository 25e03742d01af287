"""Ask for three times what the server can do, and measure what is answered, how refusals come, and how soon all is well again.

    python -m loadtest.overload                                   # starts a server of its own; two and a half minutes
    python -m loadtest.overload --url http://127.0.0.1:8000

Capacity is what clients without a pause get answered. Then requests come at random moments, whatever becomes of those before, at
that rate and at three times that rate, from eight addresses; each posts the clip of the self-check with other samples. Last,
batch requests come at three times the capacity while an interactive client asks once a second. Goodput counts answers that come
within the phase. Prints a table; exits with 1 if a target is missed.
"""

import asyncio
import itertools
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

import httpx

from loadtest.clients.server import make_body
from loadtest.hostile.target import Target, add_target_flags, open_target
from loadtest.support.markdown import table
from loadtest.support.options import new_parser
from loadtest.support.statistics import percentile

ADDRESSES = [f"127.0.1.{number}" for number in range(1, 9)]
INTERACTIVE_ADDRESS = "127.0.2.1"
OVERLOAD = 3.0
REQUEST_TIMEOUT_S = 120.0
MIN_GOODPUT_SHARE, MAX_REFUSAL_S, MAX_RECOVERY_S, MIN_INTERACTIVE_SHARE = 0.9, 0.05, 5.0, 0.95
WELL_AGAIN = 2.0
"""A server is well again if it answers within so many times what it takes alone."""


@dataclass
class Phase:
    """The outcomes of requests by status, seconds of the answered and of the refused ones, and refusals without `Retry-After`.

    A phase begins when it is made. Answers after its `seconds` are no part of its goodput.
    """

    seconds: float
    begun_s: float = field(default_factory=time.perf_counter)
    in_time: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    answered_s: list[float] = field(default_factory=list)
    refused_s: list[float] = field(default_factory=list)
    without_retry_after: int = 0

    @property
    def goodput(self) -> float:
        """Answers per second within the phase."""
        return self.in_time / self.seconds

    @property
    def answered_share(self) -> float:
        return self.outcomes["200"] / self.outcomes.total() if self.outcomes else 0.0

    def add(self, response: httpx.Response | None, took_s: float) -> None:
        """Count a response; None means that there was none."""
        self.outcomes["failed" if response is None else str(response.status_code)] += 1
        if response is None:
            return
        if response.status_code == 200:
            self.answered_s.append(took_s)
            self.in_time += time.perf_counter() <= self.begun_s + self.seconds
        elif response.status_code == 429:
            self.refused_s.append(took_s)
            self.without_retry_after += "retry-after" not in response.headers


@dataclass(frozen=True)
class Report:
    """One run. `recovery_s` is None where the server was not well again within a minute."""

    capacity: float
    normal: Phase
    overload: Phase
    recovery_s: float | None
    batch: Phase
    interactive: Phase

    def checks(self) -> dict[str, tuple[str, bool]]:
        """Return each target with what was measured, and whether that meets it."""
        share = self.overload.goodput / self.normal.goodput if self.normal.goodput else 0.0
        refusal_s = percentile(self.overload.refused_s, 99) if self.overload.refused_s else None
        missing = self.overload.without_retry_after + self.batch.without_retry_after
        others = sum((phase.outcomes for phase in self._loaded), Counter[str]())
        del others["200"], others["429"]
        refused = "none" if refusal_s is None else f"{1000 * refusal_s:.0f} ms"
        recovery = "never" if self.recovery_s is None else f"{self.recovery_s:.1f} s"
        served = self.interactive
        return {
            f"goodput at {OVERLOAD:g}x, at least {MIN_GOODPUT_SHARE:.0%} of that at 1x": (
                f"{self.overload.goodput:.2f} of {self.normal.goodput:.2f} per s, {share:.0%}",
                share >= MIN_GOODPUT_SHARE,
            ),
            f"refusals, p99 at most {1000 * MAX_REFUSAL_S:.0f} ms": (
                f"{len(self.overload.refused_s)} refused, {refused}",
                refusal_s is not None and refusal_s <= MAX_REFUSAL_S,
            ),
            "refusals without `Retry-After`: none": (str(missing), missing == 0),
            "other outcomes than 200 and 429: none": (
                ", ".join(f"{count}x {status}" for status, count in others.items()) or "none",
                not others,
            ),
            f"well again within {MAX_RECOVERY_S:g} s": (
                recovery,
                self.recovery_s is not None and self.recovery_s <= MAX_RECOVERY_S,
            ),
            f"interactive requests answered beside batch work, at least {MIN_INTERACTIVE_SHARE:.0%}": (
                f"{served.outcomes['200']} of {served.outcomes.total()}, p50 "
                + (f"{1000 * percentile(served.answered_s, 50):.0f} ms" if served.answered_s else "-")
                + f"; batch {self.batch.goodput:.2f} per s",
                served.answered_share >= MIN_INTERACTIVE_SHARE,
            ),
        }

    @property
    def _loaded(self) -> tuple[Phase, ...]:
        return self.overload, self.batch, self.interactive

    def markdown(self) -> str:
        """Return the targets as a table."""
        rows = [[target, measured, "yes" if met else "NO"] for target, (measured, met) in self.checks().items()]
        return (
            f"Capacity: {self.capacity:.2f} requests per second.\n\n"
            + "\n".join(table(["target", "measured", "met"], rows))
            + "\n"
        )


class Load:
    """Clients at several addresses that post the clip, each time with other samples."""

    def __init__(self, target: Target, clients: dict[str, httpx.AsyncClient]) -> None:
        self._target, self._clients = target, clients
        self._numbers = itertools.count()

    async def post(self, phase: Phase, address: str, priority: str = "interactive") -> None:
        """Ask once, and count what comes back."""
        body = make_body(self._target.clip(next(self._numbers)), priority=priority)
        started_s = time.perf_counter()
        try:
            response = await self._clients[address].post(
                "/v1/instruct", content=body.content, headers={"content-type": body.content_type}
            )
        except httpx.HTTPError:
            response = None
        phase.add(response, time.perf_counter() - started_s)

    async def saturate(self, seconds: float) -> float:
        """Let clients ask without a pause; return the answers per second."""
        phase = Phase(seconds)
        end_s = time.perf_counter() + seconds

        async def ask_on(address: str) -> None:
            while time.perf_counter() < end_s:
                await self.post(phase, address)

        await asyncio.gather(*(ask_on(address) for address in ADDRESSES))
        return len(phase.answered_s) / (time.perf_counter() - phase.begun_s)

    async def arrive(self, rate: float, seconds: float, priority: str = "interactive") -> Phase:
        """Let requests come at random moments at this rate per second; return once the last is answered."""
        phase = Phase(seconds)
        async with asyncio.TaskGroup() as group:
            for due_s, address in zip(_moments(rate, seconds), itertools.cycle(ADDRESSES), strict=False):
                await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
                group.create_task(self.post(phase, address, priority))
        return phase

    async def ask_now_and_then(self, period_s: float, done: asyncio.Event) -> Phase:
        """Ask at an address of its own, so often, until the work of the others is done."""
        phase = Phase(float("inf"))
        while True:
            await self.post(phase, INTERACTIVE_ADDRESS)
            if done.is_set():
                return phase
            await asyncio.sleep(period_s)

    async def recover(self, alone_s: float) -> float | None:
        """Return the seconds until a request is answered nearly as fast as alone; None if that takes over a minute."""
        started_s = time.perf_counter()
        while (waited_s := time.perf_counter() - started_s) < 60.0:
            phase = Phase(1.0)
            await self.post(phase, INTERACTIVE_ADDRESS)
            if phase.answered_s and phase.answered_s[0] <= WELL_AGAIN * alone_s:
                return waited_s
        return None


def _moments(rate: float, seconds: float) -> Iterator[float]:
    """Yield the moments of a Poisson process on the performance counter."""
    chances = random.Random(0)
    now_s = time.perf_counter()
    end_s = now_s + seconds
    while (now_s := now_s + chances.expovariate(rate)) < end_s:
        yield now_s


async def measure(target: Target, seconds: float, period_s: float = 1.0) -> Report:
    """Run all phases, each of so many seconds. Raises `RuntimeError` where the server answers nothing."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=100)
    async with AsyncExitStack() as held:
        clients = {
            address: await held.enter_async_context(
                httpx.AsyncClient(
                    base_url=target.url,
                    timeout=REQUEST_TIMEOUT_S,
                    transport=httpx.AsyncHTTPTransport(verify=False, local_address=address, limits=limits),
                )
            )
            for address in (*ADDRESSES, INTERACTIVE_ADDRESS)
        }
        load = Load(target, clients)
        alone = Phase(1.0)
        for _ in range(5):
            await load.post(alone, INTERACTIVE_ADDRESS)
        capacity = await load.saturate(seconds)
        if not capacity or not alone.answered_s:
            raise RuntimeError(f"The server answered nothing: {dict(alone.outcomes)}.")
        normal = await load.arrive(capacity, seconds)
        overload = await load.arrive(OVERLOAD * capacity, seconds)
        recovery_s = await load.recover(percentile(alone.answered_s, 50))
        done = asyncio.Event()
        interactive = asyncio.create_task(load.ask_now_and_then(period_s, done))
        batch = await load.arrive(OVERLOAD * capacity, seconds, "batch")
        done.set()
        return Report(capacity, normal, overload, recovery_s, batch, await interactive)


def main() -> int:
    parser = new_parser(__doc__)
    add_target_flags(parser)
    parser.add_argument("--seconds", type=float, default=30.0, help="length of each phase")
    arguments = parser.parse_args()
    with open_target(parser, arguments) as target:
        report = asyncio.run(measure(target, arguments.seconds))
    print(report.markdown())
    return 0 if all(met for _, met in report.checks().values()) else 1


if __name__ == "__main__":
    sys.exit(main())
