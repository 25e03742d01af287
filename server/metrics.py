"""Every metric of the server, by name. Served at `/metrics` from a registry of its own."""

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from server.request import Done, EngineStats

SECONDS_BUCKETS = (
    *(0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75),
    *(1.0, 1.5, 2.0, 3.0, 5.0, 7.5, 10.0, 20.0, 30.0, 60.0),
)


class Metrics:
    """What the edge counts itself, and what it reads from the engine and the decode pool at each scrape."""

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

    def count_answer(self, done: Done, audio_s: float) -> None:
        """Count a request that was answered, with all its stage times."""
        for name, milliseconds in done.times.as_milliseconds().items():
            if name != "total_ms":
                self.stage_seconds.labels(name.removesuffix("_ms")).observe(milliseconds / 1000)
        self.answer_seconds.observe(done.times.total_s)
        self.answers.labels(done.finish_reason).inc()
        self.audio_seconds.inc(audio_s)
        self.prompt_tokens.labels("audio").inc(done.usage.audio_frames)
        self.prompt_tokens.labels("text").inc(done.usage.text_tokens)
        self.generated_tokens.inc(done.usage.output_tokens)

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
        yield GaugeMetricFamily("thinbridge_ready", "1 while the engine takes requests.", value=float(stats.ready))
        yield GaugeMetricFamily("thinbridge_num_requests_waiting", "Requests in the engine's queue.", value=stats.waiting)
        yield GaugeMetricFamily("thinbridge_num_requests_running", "Requests that hold a slot.", value=stats.running)
        yield GaugeMetricFamily("thinbridge_slots", "Slots of the engine.", value=stats.slots)
        yield GaugeMetricFamily("thinbridge_queue_limit", "Requests that may wait.", value=stats.queue_limit)
        yield CounterMetricFamily("thinbridge_engine_steps", "Steps that the engine has made.", value=stats.steps)
        yield CounterMetricFamily(
            "thinbridge_decode_worker_restarts", "Audio decode processes that were replaced.", value=self._decode_restarts()
        )
