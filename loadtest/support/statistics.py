"""The arithmetic of the benchmark: percentiles, ratios, and when a run is void."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from loadtest.support.answers import word_error_rate

SUMMARY_KEYS = (
    "latency_ratio_vs_faster_whisper_5s",
    "latency_ratio_vs_transformers_5s",
    "draft_speedup_5s",
    "decode_ratio_vs_llamacpp",
    "throughput_c16_over_c1",
    "server_overhead_p50_ms",
    "floor_multiple_5s",
)


def percentile(values: Sequence[float], percent: float) -> float:
    """Nearest rank: the least of `values` that at least `percent` of them do not exceed. Raises `ValueError` for none."""
    if not values:
        raise ValueError("no values")
    rank = math.ceil(percent / 100 * len(values))
    return sorted(values)[max(rank, 1) - 1]


def distribution_ms(seconds: Sequence[float]) -> dict[str, float]:
    """p50, p95 and p99 in milliseconds, and how many values they are of."""
    return {f"p{percent}_ms": round(1000 * percentile(seconds, percent), 2) for percent in (50, 95, 99)} | {"n": len(seconds)}


def ratio(numerator: float | None, denominator: float | None) -> float | None:
    """None where either was not measured."""
    if numerator is None or not denominator:
        return None
    return round(numerator / denominator, 3)


def words_differ(texts: Sequence[str], others: Sequence[str]) -> dict[str, float]:
    """Share of equal texts, and word edits over the words of `texts`; regardless of case and punctuation for the latter."""
    pairs = list(zip(texts, others, strict=True))
    words = sum(max(1, len(text.split())) for text, _ in pairs)
    edits = sum(word_error_rate(text or "-", other) * max(1, len(text.split())) for text, other in pairs)
    return {"equal_share": round(sum(a == b for a, b in pairs) / len(pairs), 4), "wer": round(edits / words, 4), "n": len(pairs)}


def find_void(checks: dict[str, Callable[[], bool]]) -> list[str]:
    """The names of the checks that fail; a check that cannot be made fails."""
    failed = []
    for name, holds in checks.items():
        try:
            if not holds():
                failed.append(name)
        except (KeyError, TypeError, ValueError):
            failed.append(f"{name} (not measured)")
    return failed


def complete_summary(figures: dict[str, Any]) -> dict[str, Any]:
    """Exactly the keys of a summary, in order. Raises `KeyError` where one is missing."""
    return {key: figures[key] for key in SUMMARY_KEYS}
