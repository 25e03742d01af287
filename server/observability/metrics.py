"""All metrics of the server, by name. Served at `/metrics` from a registry of its own."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from server.engine.types.events import Done
from server.engine.types.stats import EngineStats, RouterStats
from server.observability.live import LiveMetrics

StreamOutcome = Literal["done", "error", "broken_off"]

SECONDS_BUCKETS = (
    *(0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75),
    *(1.0, 1.5, 2.0, 3.0, 5.0, 7.5, 10.0, 20.0, 30.0, 60.0),
)


@dataclass(frozen=True)
class EngineMetric:
    """A metric that is read from one value of the engine, or from several values with labels.

    `values` names a field of `EngineStats` (gauges) or of `EngineCounters`, or the fields by their label values. A field with one
    count per position has the label `position`, from 1 on; the last position counts all from there on.
    """

    name: str
    documentation: str
    values: str | Mapping[tuple[str, ...], str]
    labels: tuple[str, ...] = ()

    def read(self, family: type[GaugeMetricFamily | CounterMetricFamily], sources: Mapping[str, object]) -> Metric:
        """Return the metric with the values of each of the `sources`, which are keyed by the names of models."""
        metric = family(f"thinbridge_{self.name}", self.documentation, labels=("model", *self.labels))
        for model, source in sources.items():
            for labels, value in self._samples(source):
                metric.add_metric((model, *labels), value)
        return metric

    def _samples(self, source: object) -> Iterator[tuple[Sequence[str], float]]:
        if not isinstance(self.values, str):
            yield from ((labels, getattr(source, field)) for labels, field in self.values.items())
            return
        value: Any = getattr(source, self.values)
        if isinstance(value, tuple):
            yield from (([str(position)], count) for position, count in enumerate(value, start=1))
        else:
            yield (), float(value)


ENGINE_GAUGES = (
    EngineMetric("ready", "1 while the engine takes requests.", "ready"),
    EngineMetric("num_requests_waiting", "Requests in the engine's queue.", "waiting"),
    EngineMetric("num_requests_running", "Requests that hold a slot.", "running"),
    EngineMetric("slots", "Slots of the engine.", "slots"),
    EngineMetric("queue_limit", "Requests that may wait.", "queue_limit"),
    EngineMetric("step_age_seconds", "How long the engine's step in progress has run; 0 between steps.", "step_age_s"),
    EngineMetric("predicted_wait_seconds", "Predicted wait of a request that is submitted now.", "predicted_wait_s"),
    EngineMetric("live_sessions", "Live sessions in the engine.", "live_sessions"),
    EngineMetric("live_session_limit", "Live sessions that there may be.", "live_limit"),
    EngineMetric("live_jobs", "Work that live sessions have for the models.", "live_jobs"),
    EngineMetric(
        "cache_bytes",
        "Memory that a cache holds.",
        {("prefix",): "prefix_cache_bytes", ("encoder",): "encoder_cache_bytes"},
        ("cache",),
    ),
)
ENGINE_COUNTERS = (
    EngineMetric("engine_steps", "Steps of the engine.", "steps"),
    EngineMetric("engine_restarts", "Restarts of the engine.", "restarts"),
    EngineMetric("preemptions", "Requests that lost their slot to others for a while.", "preemptions"),
    EngineMetric("llm_passes", "LLM passes.", "llm_passes"),
    EngineMetric("llm_tokens", "Tokens that LLM passes generated, those of aborted requests included.", "generated_tokens"),
    EngineMetric("draft_tokens", "Draft tokens proposed, by place in the draft.", "drafted", ("position",)),
    EngineMetric("draft_accepted_tokens", "Draft tokens accepted, by place in the draft.", "accepted", ("position",)),
    EngineMetric("utterances", "Utterances of live sessions.", "utterances"),
    EngineMetric("silent_utterances", "Utterances in which the models found no text.", "silent_utterances"),
    EngineMetric("live_partials", "Partial texts of utterances in progress.", "partials"),
    EngineMetric(
        "cache_lookups",
        "Lookups in a cache.",
        {
            ("prefix", "hit"): "prefix_hits",
            ("prefix", "miss"): "prefix_misses",
            ("encoder", "hit"): "encoder_cache_hits",
            ("encoder", "miss"): "encoder_cache_misses",
        },
        ("cache", "result"),
    ),
)
# The same values of each GPU's engine, if there are several.
MEMBER_VALUES = (
    (GaugeMetricFamily, "gpu_ready", "1 while this GPU's engine takes requests.", lambda member: float(member.ready)),
    (GaugeMetricFamily, "gpu_num_requests_waiting", "Requests in the engine's queue.", lambda member: member.waiting),
    (GaugeMetricFamily, "gpu_num_requests_running", "Requests that hold a slot.", lambda member: member.running),
    (GaugeMetricFamily, "gpu_live_sessions", "Live sessions in the engine.", lambda member: member.live_sessions),
    (CounterMetricFamily, "gpu_engine_restarts", "Restarts of the engine.", lambda member: member.counters.restarts),
)


class Metrics:
    """The metrics that the server counts itself, and those read from the engines and the decode pool at each scrape.

    `engine_stats` returns the stats of each model by its name, which is the label `model`.
    """

    def __init__(self, engine_stats: Callable[[], Mapping[str, EngineStats]], decode_restarts: Callable[[], int]) -> None:
        registry = self.registry = CollectorRegistry()
        registry.register(_EngineCollector(engine_stats, decode_restarts))

        def counter(name: str, documentation: str, *labels: str) -> Counter:
            return Counter(f"thinbridge_{name}", documentation, labels, registry=registry)

        def histogram(name: str, documentation: str, *labels: str) -> Histogram:
            return Histogram(f"thinbridge_{name}", documentation, labels, buckets=SECONDS_BUCKETS, registry=registry)

        self.http_requests = counter(
            "http_requests", "HTTP requests by route and status; 499 is a client that left.", "route", "status"
        )
        self.in_flight = Gauge("thinbridge_instruct_in_flight", "Instruct requests inside the server.", registry=registry)
        self.stage_seconds = histogram("stage_seconds", "Time per stage of a request.", "model", "stage")
        self.time_to_first_token = histogram(
            "time_to_first_token_seconds", "From the request's start to its first text.", "model"
        )
        self.answer_seconds = histogram("e2e_request_latency_seconds", "From the request's start to its answer.", "model")
        self.answers = counter("request_success", "Answered requests.", "model", "finished_reason")
        self.audio_seconds = counter("audio_seconds", "Seconds of audio answered.", "model")
        self.prompt_tokens = counter("prompt_tokens", "Prompt positions by kind: audio or text.", "model", "kind")
        self.generated_tokens = counter("generation_tokens", "Tokens generated.", "model")
        self.inter_token_seconds = histogram(
            "inter_token_latency_seconds", "Between two pieces of text of a streamed answer, as they leave the engine.", "model"
        )
        self.streams = counter("streams", "Streamed replies by how they ended.", "model", "outcome")
        self.live = LiveMetrics(registry, SECONDS_BUCKETS)

    def add_model(self, model: str) -> None:
        """Serve the metrics of a model before it answers, so that the first answer is seen to be one more."""
        for metric in (self.time_to_first_token, self.answer_seconds, self.inter_token_seconds):
            metric.labels(model)
        for total in (self.audio_seconds, self.generated_tokens):
            total.labels(model)
        for outcome in get_args(StreamOutcome):
            self.streams.labels(model, outcome)
        self.live.add_model(model)

    def count_answer(self, model: str, done: Done, audio_s: float, first_text_s: float | None) -> None:
        """Count an answered request, with all its stage times, and the time from its start to its first text."""
        for name, seconds in vars(done.times).items():
            if name != "total_s":
                self.stage_seconds.labels(model, name.removesuffix("_s")).observe(seconds)
        if first_text_s is not None:
            self.time_to_first_token.labels(model).observe(first_text_s)
        self.answer_seconds.labels(model).observe(done.times.total_s)
        self.answers.labels(model, done.finish_reason).inc()
        self.audio_seconds.labels(model).inc(audio_s)
        self.prompt_tokens.labels(model, "audio").inc(done.usage.audio_frames)
        self.prompt_tokens.labels(model, "text").inc(done.usage.text_tokens)
        self.generated_tokens.labels(model).inc(done.usage.output_tokens)

    def count_stream(self, model: str, outcome: StreamOutcome, arrivals_s: Sequence[float]) -> None:
        """Count a streamed reply that has ended; `arrivals_s` are the times at which each piece of its text came."""
        self.streams.labels(model, outcome).inc()
        for earlier_s, later_s in pairwise(arrivals_s):
            self.inter_token_seconds.labels(model).observe(later_s - earlier_s)

    def render(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self.registry)


class _EngineCollector(Collector):
    """Reads the engines and the decode pool at each scrape, so no value has to be kept up to date."""

    def __init__(self, engine_stats: Callable[[], Mapping[str, EngineStats]], decode_restarts: Callable[[], int]) -> None:
        self._engine_stats = engine_stats
        self._decode_restarts = decode_restarts

    def collect(self) -> Iterator[Metric]:
        stats = self._engine_stats()
        counters = {model: each.counters for model, each in stats.items()}
        yield from (metric.read(GaugeMetricFamily, stats) for metric in ENGINE_GAUGES)
        yield from (metric.read(CounterMetricFamily, counters) for metric in ENGINE_COUNTERS)
        fleets = {model: each for model, each in stats.items() if isinstance(each, RouterStats)}
        for family, name, documentation, value in MEMBER_VALUES if fleets else ():
            metric = family(f"thinbridge_{name}", documentation, labels=["model", "engine"])
            for model, fleet in fleets.items():
                for member_name, member in fleet.members.items():
                    metric.add_metric([model, member_name], value(member))
            yield metric
        restarts = self._decode_restarts()
        yield CounterMetricFamily(
            "thinbridge_decode_worker_restarts", "Audio decode processes that were replaced.", value=restarts
        )
