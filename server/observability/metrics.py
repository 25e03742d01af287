"""Every metric of the server, by name. Served at `/metrics` from a registry of its own."""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Literal, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from server.engine.types.events import Done
from server.engine.types.stats import EngineStats
from server.observability.engine_metrics import engine_counters, engine_gauges, member_metrics
from server.observability.live import LiveMetrics

StreamOutcome = Literal["done", "error", "broken_off"]

SECONDS_BUCKETS = (
    *(0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75),
    *(1.0, 1.5, 2.0, 3.0, 5.0, 7.5, 10.0, 20.0, 30.0, 60.0),
)


class Metrics:
    """What the context counts itself, and what it reads from the engine and the decode pool at each scrape."""

    def __init__(self, engine_stats: Callable[[], EngineStats], decode_restarts: Callable[[], int]) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(_LiveState(engine_stats, decode_restarts))
        self.http_requests = Counter(
            "thinbridge_http_requests",
            "HTTP requests by route and status; 499 is a client that left.",
            ["route", "status"],
            registry=self.registry,
        )
        self.in_flight = Gauge("thinbridge_instruct_in_flight", "Instruct requests inside the server.", registry=self.registry)
        self.stage_seconds = Histogram(
            "thinbridge_stage_seconds", "Time per stage of a request.", ["stage"], buckets=SECONDS_BUCKETS, registry=self.registry
        )
        self.time_to_first_token = Histogram(
            "thinbridge_time_to_first_token_seconds",
            "From the request's start to its first text.",
            buckets=SECONDS_BUCKETS,
            registry=self.registry,
        )
        self.answer_seconds = Histogram(
            "thinbridge_e2e_request_latency_seconds",
            "From the request's start to its answer.",
            buckets=SECONDS_BUCKETS,
            registry=self.registry,
        )
        self.answers = Counter("thinbridge_request_success", "Answered requests.", ["finished_reason"], registry=self.registry)
        self.audio_seconds = Counter("thinbridge_audio_seconds", "Seconds of audio answered.", registry=self.registry)
        self.prompt_tokens = Counter(
            "thinbridge_prompt_tokens", "Prompt positions by kind: audio or text.", ["kind"], registry=self.registry
        )
        self.generated_tokens = Counter("thinbridge_generation_tokens", "Tokens generated.", registry=self.registry)
        self.inter_token_seconds = Histogram(
            "thinbridge_inter_token_latency_seconds",
            "Between two pieces of text of a streamed answer, as they leave the engine.",
            buckets=SECONDS_BUCKETS,
            registry=self.registry,
        )
        self.streams = Counter("thinbridge_streams", "Streamed replies by how they ended.", ["outcome"], registry=self.registry)
        for outcome in get_args(StreamOutcome):
            self.streams.labels(outcome)
        self.live = LiveMetrics(self.registry, SECONDS_BUCKETS)

    def count_answer(self, done: Done, audio_s: float) -> None:
        """Count a request that was answered, with all its stage times."""
        for name, seconds in vars(done.times).items():
            if name != "total_s":
                self.stage_seconds.labels(name.removesuffix("_s")).observe(seconds)
        self.answer_seconds.observe(done.times.total_s)
        self.answers.labels(done.finish_reason).inc()
        self.audio_seconds.inc(audio_s)
        self.prompt_tokens.labels("audio").inc(done.usage.audio_frames)
        self.prompt_tokens.labels("text").inc(done.usage.text_tokens)
        self.generated_tokens.inc(done.usage.output_tokens)

    def count_stream(self, outcome: StreamOutcome, arrivals_s: Sequence[float]) -> None:
        """Count a streamed reply that is over, and when each piece of its text had come."""
        self.streams.labels(outcome).inc()
        for earlier_s, later_s in pairwise(arrivals_s):
            self.inter_token_seconds.observe(later_s - earlier_s)

    def render(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self.registry)


class _LiveState(Collector):
    """Reads at scrape time, so that nothing has to be kept in step."""

    def __init__(self, engine_stats: Callable[[], EngineStats], decode_restarts: Callable[[], int]) -> None:
        self._engine_stats = engine_stats
        self._decode_restarts = decode_restarts

    def collect(self) -> Iterator[Metric]:
        stats = self._engine_stats()
        yield from engine_gauges(stats)
        yield from engine_counters(stats.counters)
        yield from member_metrics(stats)
        yield CounterMetricFamily(
            "thinbridge_decode_worker_restarts", "Audio decode processes that were replaced.", value=self._decode_restarts()
        )
