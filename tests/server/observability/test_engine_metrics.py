"""The engine's figures at `/metrics`."""

from prometheus_client.parser import text_string_to_metric_families

from server.engine.types.stats import DRAFT_POSITIONS, EngineCounters, EngineStats, RouterStats
from server.observability.metrics import Metrics

COUNTERS = EngineCounters(
    steps=7,
    llm_passes=10,
    generated_tokens=25,
    drafted=(9, 8, *[0] * (DRAFT_POSITIONS - 3), 4),
    accepted=(9, 6, *[0] * (DRAFT_POSITIONS - 3), 1),
    prefix_hits=3,
    prefix_misses=2,
    encoder_cache_hits=1,
    encoder_cache_misses=5,
    preemptions=6,
    utterances=30,
    silent_utterances=4,
    partials=90,
    restarts=11,
)
STATS = EngineStats(
    ready=True,
    waiting=1,
    running=2,
    slots=4,
    queue_limit=16,
    step_age_s=0.25,
    predicted_wait_s=1.5,
    prefix_cache_bytes=1000,
    encoder_cache_bytes=2000,
    live_sessions=3,
    live_limit=8,
    live_jobs=5,
    counters=COUNTERS,
)


def samples(stats: EngineStats) -> dict[str, float]:
    """Return values by name and label values."""
    text = Metrics(lambda: {"a": stats}, lambda: 0).render().decode()
    return {
        " ".join(
            [sample.name.removeprefix("thinbridge_"), *(value for label, value in sample.labels.items() if label != "model")]
        ): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_every_figure_of_the_engine_is_served() -> None:
    expected = {
        "ready": 1,
        "num_requests_waiting": 1,
        "num_requests_running": 2,
        "slots": 4,
        "queue_limit": 16,
        "step_age_seconds": 0.25,
        "predicted_wait_seconds": 1.5,
        "live_sessions": 3,
        "live_session_limit": 8,
        "live_jobs": 5,
        "cache_bytes prefix": 1000,
        "cache_bytes encoder": 2000,
        "engine_steps_total": 7,
        "engine_restarts_total": 11,
        "preemptions_total": 6,
        "utterances_total": 30,
        "silent_utterances_total": 4,
        "live_partials_total": 90,
        "llm_passes_total": 10,
        "llm_tokens_total": 25,
        "draft_tokens_total 1": 9,
        "draft_tokens_total 2": 8,
        f"draft_tokens_total {DRAFT_POSITIONS}": 4,
        "draft_accepted_tokens_total 2": 6,
        f"draft_accepted_tokens_total {DRAFT_POSITIONS}": 1,
        "cache_lookups_total prefix hit": 3,
        "cache_lookups_total prefix miss": 2,
        "cache_lookups_total encoder hit": 1,
        "cache_lookups_total encoder miss": 5,
    }
    served = samples(STATS)
    assert {name: served[name] for name in expected} == expected


def test_each_gpus_engine_is_served_where_there_are_several() -> None:
    fleet = RouterStats(**{**vars(STATS), "members": {"GPU 0": STATS, "GPU 1": EngineStats(False, 0, 0, 4, 16)}})
    served = samples(fleet)
    assert served["num_requests_running"] == 2
    names = (
        "gpu_ready",
        "gpu_num_requests_waiting",
        "gpu_num_requests_running",
        "gpu_live_sessions",
        "gpu_engine_restarts_total",
    )
    assert [served[f"{name} GPU 0"] for name in names] == [1, 1, 2, 3, 11]
    assert [served[f"{name} GPU 1"] for name in names] == [0, 0, 0, 0, 0]
    assert not [name for name in samples(STATS) if name.startswith("gpu_")]


def test_they_are_read_at_every_scrape() -> None:
    waiting = iter([3, 5])
    metrics = Metrics(lambda: {"a": EngineStats(True, next(waiting), 0, 4, 16)}, lambda: 0)
    assert b'thinbridge_num_requests_waiting{model="a"} 3.0' in metrics.render()
    assert b'thinbridge_num_requests_waiting{model="a"} 5.0' in metrics.render()
