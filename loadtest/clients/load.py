"""A closed loop over HTTP: as many clients as asked for, each sends its next request when its answer is there."""

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from loadtest.clients.server import REQUEST_TIMEOUT_S, Body
from loadtest.support.statistics import distribution_ms, percentile

LAG_PERIOD_S = 0.02
MAX_GENERATOR_CPU_SHARE = 0.25
MAX_LAG_SHARE = 0.1
DEFAULT_RETRY_S = 1.0


@dataclass(frozen=True)
class Question:
    """A request, the seconds of audio in it, and the text that it has to give."""

    body: Body
    audio_s: float
    text: str


@dataclass
class LoadResult:
    """The result of one level of concurrency within its window. `generator_cpu_share` is of one core; `lags_s` says how late the
    generator's own timer was, as its reaction to an answer would be."""

    concurrency: int
    window_s: float
    latencies_s: list[float] = field(default_factory=list)
    audio_s: float = 0.0
    refused: int = 0
    errors: list[str] = field(default_factory=list)
    changed: int = 0
    lags_s: list[float] = field(default_factory=list)
    generator_cpu_share: float = 0.0

    def merge(self, other: "LoadResult") -> "LoadResult":
        """Two runs of the same level as one."""
        window_s = self.window_s + other.window_s
        cpu_s = self.generator_cpu_share * self.window_s + other.generator_cpu_share * other.window_s
        return LoadResult(
            self.concurrency,
            window_s,
            self.latencies_s + other.latencies_s,
            self.audio_s + other.audio_s,
            self.refused + other.refused,
            self.errors + other.errors,
            self.changed + other.changed,
            self.lags_s + other.lags_s,
            cpu_s / window_s,
        )

    def kept_up(self) -> bool:
        """Return whether the generator, and not the server, set the pace at no time that matters."""
        if not self.latencies_s or not self.lags_s:
            return False
        late = percentile(self.lags_s, 95) > MAX_LAG_SHARE * percentile(self.latencies_s, 50)
        return self.generator_cpu_share <= MAX_GENERATOR_CPU_SHARE and not late

    def report(self) -> dict[str, Any]:
        return {
            "concurrency": self.concurrency,
            "window_s": round(self.window_s, 2),
            "requests_per_s": round(len(self.latencies_s) / self.window_s, 3),
            "audio_s_per_s": round(self.audio_s / self.window_s, 2),
            **(distribution_ms(self.latencies_s) if self.latencies_s else {}),
            "refused_429": self.refused,
            "errors": len(self.errors),
            "first_error": self.errors[0] if self.errors else None,
            "changed_answers": self.changed,
            "generator_cpu_share": round(self.generator_cpu_share, 3),
            "generator_lag_p95_ms": round(1000 * percentile(self.lags_s, 95), 2) if self.lags_s else None,
            "generator_kept_up": self.kept_up(),
        }


def measure_load(url: str, questions: Sequence[Question], concurrency: int, warm_up_s: float, window_s: float) -> LoadResult:
    """Run one level. Requests that end within the window count; a latency begins with a request's first attempt and holds the
    waits after refusals, which are as long as the server asks for."""
    return asyncio.run(_Level(url, questions, concurrency, warm_up_s, window_s).run())


class _Level:
    def __init__(self, url: str, questions: Sequence[Question], concurrency: int, warm_up_s: float, window_s: float) -> None:
        self._url, self._questions = url, questions
        self._warm_up_s, self._window_s = warm_up_s, window_s
        self._result = LoadResult(concurrency, window_s)
        self._next = 0
        self._begin_s = self._end_s = 0.0

    async def run(self) -> LoadResult:
        self._begin_s = time.perf_counter() + self._warm_up_s
        self._end_s = self._begin_s + self._window_s
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        async with httpx.AsyncClient(base_url=self._url, timeout=REQUEST_TIMEOUT_S, limits=limits, trust_env=False) as client:
            watch = asyncio.create_task(self._watch_generator())
            await asyncio.gather(*(self._ask_on(client) for _ in range(self._result.concurrency)))
            await watch
        return self._result

    async def _ask_on(self, client: httpx.AsyncClient) -> None:
        while time.perf_counter() < self._end_s:
            question = self._questions[self._next % len(self._questions)]
            self._next += 1
            await self._ask(client, question)

    async def _ask(self, client: httpx.AsyncClient, question: Question) -> None:
        started_s = time.perf_counter()
        headers = {"content-type": question.body.content_type}
        while True:
            try:
                response = await client.post("/v1/instruct", content=question.body.content, headers=headers)
            except httpx.HTTPError as error:
                self._result.errors.append(repr(error))
                return
            if response.status_code != 429:
                break
            self._result.refused += 1
            if time.perf_counter() > self._end_s:
                return
            await asyncio.sleep(float(response.headers.get("Retry-After", DEFAULT_RETRY_S)))
        ended_s = time.perf_counter()
        if response.status_code != 200:
            self._result.errors.append(f"status {response.status_code}: {response.text[:200]}")
            return
        if json.loads(response.content)["text"].strip() != question.text:
            self._result.changed += 1
        if self._begin_s <= ended_s <= self._end_s:
            self._result.latencies_s.append(ended_s - started_s)
            self._result.audio_s += question.audio_s

    async def _watch_generator(self) -> None:
        await asyncio.sleep(self._warm_up_s)
        cpu_s, started_s = time.process_time(), time.perf_counter()
        while (now_s := time.perf_counter()) < self._end_s:
            await asyncio.sleep(LAG_PERIOD_S)
            self._result.lags_s.append(time.perf_counter() - now_s - LAG_PERIOD_S)
        self._result.generator_cpu_share = (time.process_time() - cpu_s) / (time.perf_counter() - started_s)
