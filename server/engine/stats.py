"""A snapshot of a `LocalEngine` from the counters of its parts."""

from server.engine.live.sessions import LiveSessions
from server.engine.request_table import RequestTable
from server.engine.runner.runner import Runner
from server.engine.types.stats import EngineCounters, EngineStats


def engine_stats(
    requests: RequestTable,
    live: LiveSessions,
    runner: Runner,
    *,
    ready: bool,
    steps: int,
    step_age_s: float,
    longest_work_s: float,
) -> EngineStats:
    """Return a snapshot; the caller holds the engine's lock."""
    scheduler = requests.scheduler
    counted = [id for id, sequence in requests.sequences.items() if not sequence.of_session]
    # An encoded request, which will have the next free slot, counts as running if there is one.
    begun = sum(not scheduler.is_queued(id) for id in counted)
    running = min(begun, scheduler.slots)
    return EngineStats(
        ready=ready,
        waiting=len(counted) - running,
        running=running,
        slots=scheduler.slots,
        queue_limit=scheduler.queue_limit,
        step_age_s=step_age_s,
        predicted_wait_s=requests.predict_wait_s(),
        prefix_cache_bytes=runner.prefix_cache.nbytes,
        encoder_cache_bytes=runner.encoder_cache.nbytes,
        live_sessions=len(live) - live.recordings,
        live_limit=live.live_limit,
        recordings=live.recordings,
        recording_limit=live.recording_limit,
        live_jobs=len(requests.sequences) - len(counted) + live.busy,
        longest_work_s=longest_work_s,
        counters=_counters(runner, live, steps),
    )


def _counters(runner: Runner, live: LiveSessions, steps: int) -> EngineCounters:
    counters, prefixes, encoded = runner.counters, runner.prefix_cache, runner.encoder_cache
    return EngineCounters(
        steps=steps,
        progress=counters.progress + live.counters.progress,
        llm_passes=counters.llm_passes,
        generated_tokens=counters.generated_tokens,
        drafted=tuple(counters.drafted),
        accepted=tuple(counters.accepted),
        prefix_hits=prefixes.hits,
        prefix_misses=prefixes.misses,
        encoder_cache_hits=encoded.hits,
        encoder_cache_misses=encoded.misses,
        preemptions=counters.preemptions,
        utterances=live.counters.utterances,
        silent_utterances=live.counters.silent_utterances,
        partials=live.counters.partials,
    )
