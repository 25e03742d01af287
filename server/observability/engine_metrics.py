"""The engine's figures as metrics, made anew at each scrape."""

from collections.abc import Iterator, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from server.engine.types.stats import EngineCounters, EngineStats, RouterStats


def engine_gauges(stats: EngineStats) -> Iterator[Metric]:
    """The engine's present state."""
    yield GaugeMetricFamily("thinbridge_ready", "1 while the engine takes requests.", value=float(stats.ready))
    yield GaugeMetricFamily("thinbridge_num_requests_waiting", "Requests in the engine's queue.", value=stats.waiting)
    yield GaugeMetricFamily("thinbridge_num_requests_running", "Requests that hold a slot.", value=stats.running)
    yield GaugeMetricFamily("thinbridge_slots", "Slots of the engine.", value=stats.slots)
    yield GaugeMetricFamily("thinbridge_queue_limit", "Requests that may wait.", value=stats.queue_limit)
    yield GaugeMetricFamily(
        "thinbridge_step_age_seconds", "How long the engine's step in progress has run; 0 between steps.", value=stats.step_age_s
    )
    yield GaugeMetricFamily(
        "thinbridge_predicted_wait_seconds", "How long a request that came now would wait.", value=stats.predicted_wait_s
    )
    yield GaugeMetricFamily("thinbridge_live_sessions", "Live sessions in the engine.", value=stats.live_sessions)
    yield GaugeMetricFamily("thinbridge_live_session_limit", "Live sessions that there may be.", value=stats.live_limit)
    yield GaugeMetricFamily("thinbridge_live_jobs", "Work that live sessions have for the models.", value=stats.live_jobs)
    cache_bytes = GaugeMetricFamily("thinbridge_cache_bytes", "Memory that a cache holds.", labels=["cache"])
    cache_bytes.add_metric(["prefix"], stats.prefix_cache_bytes)
    cache_bytes.add_metric(["encoder"], stats.encoder_cache_bytes)
    yield cache_bytes


def engine_counters(counters: EngineCounters) -> Iterator[Metric]:
    """Totals since the engine started."""
    yield CounterMetricFamily("thinbridge_engine_steps", "Steps that the engine has made.", value=counters.steps)
    yield CounterMetricFamily("thinbridge_engine_restarts", "Times that the engine was started again.", value=counters.restarts)
    yield CounterMetricFamily(
        "thinbridge_preemptions", "Requests that lost their slot to others for a while.", value=counters.preemptions
    )
    yield CounterMetricFamily("thinbridge_llm_passes", "LLM passes.", value=counters.llm_passes)
    yield CounterMetricFamily(
        "thinbridge_llm_tokens", "Tokens that LLM passes brought, those of aborted requests too.", value=counters.generated_tokens
    )
    yield by_position("thinbridge_draft_tokens", "Draft tokens proposed, by place in the draft.", counters.drafted)
    yield by_position("thinbridge_draft_accepted_tokens", "Draft tokens accepted, by place in the draft.", counters.accepted)
    yield CounterMetricFamily("thinbridge_utterances", "Utterances of live sessions.", value=counters.utterances)
    yield CounterMetricFamily(
        "thinbridge_silent_utterances", "Utterances in which the models found no text.", value=counters.silent_utterances
    )
    yield CounterMetricFamily("thinbridge_live_partials", "Texts of utterances that went on.", value=counters.partials)
    lookups = CounterMetricFamily("thinbridge_cache_lookups", "Lookups in a cache.", labels=["cache", "result"])
    lookups.add_metric(["prefix", "hit"], counters.prefix_hits)
    lookups.add_metric(["prefix", "miss"], counters.prefix_misses)
    lookups.add_metric(["encoder", "hit"], counters.encoder_cache_hits)
    lookups.add_metric(["encoder", "miss"], counters.encoder_cache_misses)
    yield lookups


def member_metrics(stats: EngineStats) -> Iterator[Metric]:
    """The same of each GPU's engine, where there are several."""
    if not isinstance(stats, RouterStats):
        return
    ready = GaugeMetricFamily("thinbridge_gpu_ready", "1 while this GPU's engine takes requests.", labels=["engine"])
    waiting = GaugeMetricFamily("thinbridge_gpu_num_requests_waiting", "Requests in its queue.", labels=["engine"])
    running = GaugeMetricFamily("thinbridge_gpu_num_requests_running", "Requests that hold a slot of it.", labels=["engine"])
    sessions = GaugeMetricFamily("thinbridge_gpu_live_sessions", "Live sessions in it.", labels=["engine"])
    restarts = CounterMetricFamily("thinbridge_gpu_engine_restarts", "Times that it was started again.", labels=["engine"])
    for name, member in stats.members.items():
        ready.add_metric([name], float(member.ready))
        waiting.add_metric([name], member.waiting)
        running.add_metric([name], member.running)
        sessions.add_metric([name], member.live_sessions)
        restarts.add_metric([name], member.counters.restarts)
    yield from (ready, waiting, running, sessions, restarts)


def by_position(name: str, documentation: str, counts: Sequence[int]) -> Metric:
    """One sample per place from 1 on; the last place stands for all from there on."""
    family = CounterMetricFamily(name, documentation, labels=["position"])
    for position, count in enumerate(counts, start=1):
        family.add_metric([str(position)], count)
    return family
