"""The victim: a client that asks from an address of its own, and what it notices."""

import itertools
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field

import httpx

from loadtest.clients.server import make_body
from loadtest.hostile.attacks import Fields
from loadtest.hostile.target import Target
from loadtest.support.statistics import percentile

VICTIM_ADDRESS = "127.0.0.9"
VICTIM_PERIOD_S, HEALTH_PERIOD_S = 0.3, 0.2
VICTIM_TIMEOUT_S = 60.0


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

    def add(self, other: "Measurement") -> None:
        """Add the results of another measurement."""
        self.latencies_s += other.latencies_s
        self.outcomes += other.outcomes
        self.health_s += other.health_s

    def percentile_s(self, percent: float) -> float | None:
        """Return a percentile of the latencies of answered requests; None if none was answered."""
        return percentile(self.latencies_s, percent) if self.latencies_s else None


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
