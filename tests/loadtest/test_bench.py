"""The benchmark's arithmetic: percentiles, rates, ratios, clips, and what the report says of them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.bench.analysis import EXACT, OFF, WHISPER, compare_answers, latency_table, stage_table, summarise
from loadtest.bench.decode import plain_rate, transcript_rates
from loadtest.bench.latency import Sample
from loadtest.bench.report import markdown
from loadtest.clients.load import LoadResult
from loadtest.support.recordings import RATE_HZ, BenchClip, Recording, cut_to_length
from loadtest.support.statistics import SUMMARY_KEYS, complete_summary, find_void, percentile, ratio, words_differ

TIMES = {
    "audio_decode_ms": 1.0,
    "features_ms": 2.0,
    "queue_ms": 1.0,
    "encode_ms": 40.0,
    "adapter_ms": 10.0,
    "prefill_ms": 30.0,
    "decode_ms": 100.0,
    "detokenise_ms": 1.0,
    "total_ms": 188.0,
}
REPLY: dict[str, Any] = {
    "text": "hello world",
    "finish_reason": "stop",
    "audio_s": 5.0,
    "usage": {"audio_frames": 14, "text_tokens": 39, "output_tokens": 10},
    "times_ms": TIMES,
    "speculation": {"drafted": 12, "accepted": 9, "llm_passes": 2},
}


def sample(system: str, seconds: float, text: str = "hello world", reply: dict[str, Any] = REPLY) -> Sample:
    return Sample(system, 5.0, "clip", seconds, cpu_s=0.5, audio_s=5.0, text=text, reply=reply)


@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(0, 100))
def test_percentile_is_the_least_value_that_enough_do_not_exceed(values: list[float], percent: float) -> None:
    found = percentile(values, percent)
    needed = percent / 100 * len(values)
    assert found in values
    assert sum(value <= found for value in values) >= needed
    assert all(sum(value <= lower for value in values) < max(needed, 1) for lower in values if lower < found)


def test_percentile_of_nothing() -> None:
    with pytest.raises(ValueError, match="no values"):
        percentile([], 50)


def test_ratio_of_what_was_not_measured() -> None:
    assert ratio(1.0, 4.0) == 0.25
    assert ratio(None, 4.0) is None
    assert ratio(1.0, None) is None


def test_words_that_differ() -> None:
    assert words_differ(["a b c d", "e"], ["a b x d", "e"]) == {"equal_share": 0.5, "wer": 0.2, "n": 2}


def test_a_check_that_fails_or_cannot_be_made_voids_the_run() -> None:
    measured: dict[str, bool] = {"a": True}
    assert find_void({"a": lambda: measured["a"]}) == []
    assert find_void({"a": lambda: False, "b": lambda: measured["b"]}) == ["a", "b (not measured)"]


def reply_of(tokens: int, decode_ms: float) -> dict[str, Any]:
    return {**REPLY, "usage": {"output_tokens": tokens}, "times_ms": {**TIMES, "decode_ms": decode_ms}}


def test_the_rate_of_the_llm_leaves_out_what_both_answers_took() -> None:
    assert plain_rate(reply_of(20, 700.0), reply_of(100, 1500.0)) == pytest.approx(100)
    assert plain_rate(reply_of(20, 700.0), reply_of(21, 710.0)) is None


def test_rates_of_drafted_answers() -> None:
    assert transcript_rates([REPLY]) == {"output_tokens_per_s": 76.9, "accepted_share": 0.75, "passes": 2.0}


def test_overhead_is_what_no_stage_accounts_for() -> None:
    row = stage_table([sample(EXACT, 0.190)], EXACT)[0]
    assert (row["overhead_in_server_ms"], row["overhead_of_http_ms"], row["overhead_ms"]) == (4.0, 2.0, 6.0)


def result() -> dict[str, Any]:
    """A whole result from made-up samples."""
    seconds = {EXACT: 0.2, OFF: 0.4, WHISPER: 0.8}
    samples = [sample(system, each) for system, each in seconds.items()]
    stages = stage_table(samples, EXACT)
    levels = [
        LoadResult(clients, 10.0, [0.2] * (20 * clients), 100.0 * clients, lags_s=[0.001], generator_cpu_share=0.02).report()
        | {"cpu_ms_per_answer": 150}
        for clients in (1, 16)
    ]
    whole = [BenchClip("whole", Path("whole.wav"), b"", 2.0, "hello world")]
    decode = {
        "thinbridge_tokens_per_s": 150.0,
        "thinbridge_first_token_ms": 900.0,
        "answers": 1,
        "llamacpp_tokens_per_s": 100.0,
        "llamacpp_prompt_tokens_per_s": 500.0,
        "ratio": 1.5,
        "runs": 1,
        "transcripts_5s": {EXACT: transcript_rates([REPLY])},
    }
    return {
        "date": "2026-01-01T00:00:00Z",
        "git_revision": "abc",
        "machine": "a machine, 2 cores",
        "load_average_before": "0.00",
        "other_cpu_share": 0.01,
        "python": "3.11",
        "versions": {"numpy": "2"},
        "threads": 2,
        "void": [],
        "how": {"clips": "Cut.", "recordings": "tests/clips", "samples": 1},
        "summary": complete_summary(summarise(samples, stages, levels, decode)),
        "latency": latency_table(samples),
        "stages": stages,
        "throughput": levels,
        "faster_whisper_batch": {"clips": 16, "audio_s_per_s": 10.0, "requests_per_s": 2.0},
        "decode": decode,
        "peak_memory_mib": {"Thinbridge": 600},
        "answers": compare_answers(samples, whole, {system: ["hello word"] for system in seconds}, list(seconds)),
    }


def test_summary() -> None:
    summary = result()["summary"]
    assert tuple(summary) == SUMMARY_KEYS
    assert summary["latency_ratio_vs_faster_whisper_5s"] == 0.25
    assert summary["draft_speedup_5s"] == 2.0
    assert summary["decode_ratio_vs_llamacpp"] == 1.5
    assert summary["throughput_c16_over_c1"] == 16.0
    assert summary["server_overhead_p50_ms"] == 16.0
    assert summary["first_token_p50_ms"] == 900.0


def test_answers_are_compared() -> None:
    answers = result()["answers"]
    assert answers["word_error_rate"][EXACT] == 0.5
    assert answers["against_exact"][WHISPER] == {"equal_share": 1.0, "wer": 0.0, "n": 2}
    assert answers["whole_against_exact"][WHISPER]["wer"] == 0.0
    samples = [sample(EXACT, 0.2), sample(EXACT, 0.2, "hello there")]
    assert compare_answers(samples, [BenchClip("w", Path(), b"", 1.0, "a")], {EXACT: ["a"]}, [EXACT])["changed"] == {EXACT: 1}


def test_markdown_says_what_was_met_missed_and_void() -> None:
    report = result()
    text = markdown(report)
    assert "| `draft_speedup_5s` | 2.0 | at least 1.8: met |" in text
    assert "| `server_overhead_p50_ms` | 16.0 | below 5: missed |" in text
    assert "VOID" not in text
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert len(tables) > 20
    report["void"] = ["the load generator kept up"]
    report["summary"]["draft_speedup_5s"] = None
    voided = markdown(report)
    assert "**VOID: these figures must not be quoted.** What did not hold:\n\n- the load generator kept up\n" in voided
    assert "| `draft_speedup_5s` | - | at least 1.8: not measured |" in voided


@given(st.sampled_from([1.0, 3.0, 10.0, 30.0]), st.integers(1, 6))
def test_clips_have_their_length_and_differ(seconds: float, count: int) -> None:
    rng = np.random.default_rng(0)
    recordings = [
        Recording(f"r{number}", "words", rng.random(round(length * RATE_HZ)).astype(np.float32))
        for number, length in enumerate((1.9, 3.4, 3.8, 5.3))
    ]
    pieces = cut_to_length(recordings, seconds, count)
    assert len(pieces) == count
    assert {len(piece) for _, piece in pieces} == {round(seconds * RATE_HZ)}
    assert len({piece.tobytes() for _, piece in pieces}) == count
