"""The statistics of the benchmarks: percentiles, ratios, and the checks that make a run void."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from loadtest.support.words import word_error_rate

SUMMARY_KEYS = (
    "latency_ratio_vs_faster_whisper_5s",
    "draft_speedup_5s",
    "decode_ratio_vs_llamacpp",
    "throughput_c16_over_c1",
    "server_overhead_p50_ms",
    "first_token_p50_ms",
)


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the nearest-rank percentile: the least value that at least `percent` of them do not exceed.

    Raises `ValueError` if there are none.
    """
    if not values:
        raise ValueError("no values")
    return float(np.percentile(values, percent, method="inverted_cdf"))


def percentile_ms(seconds: Sequence[float], percent: float) -> float | None:
    """Return a percentile in milliseconds; None if there are no values."""
    return round(1000 * percentile(seconds, percent), 2) if seconds else None


def distribution_ms(seconds: Sequence[float]) -> dict[str, float]:
    """Return p50, p95 and p99 in milliseconds, and the number of values."""
    return {f"p{percent}_ms": round(1000 * percentile(seconds, percent), 2) for percent in (50, 95, 99)} | {"n": len(seconds)}


def ratio(numerator: float | None, denominator: float | None) -> float | None:
    """Return the ratio; None if either was not measured."""
    if numerator is None or not denominator:
        return None
    return round(numerator / denominator, 3)


def words_differ(texts: Sequence[str], others: Sequence[str]) -> dict[str, float]:
    """Return the share of equal texts, and word edits over the words of `texts`."""
    equal = sum(text == other for text, other in zip(texts, others, strict=True))
    return {"equal_share": round(equal / len(texts), 4), "wer": round(word_error_rate(texts, others), 4), "n": len(texts)}


def find_void(checks: dict[str, Callable[[], bool]]) -> list[str]:
    """Return the names of the checks that fail; a check that raises fails."""
    failed = []
    for name, holds in checks.items():
        try:
            if not holds():
                failed.append(name)
        except (KeyError, TypeError, ValueError):
            failed.append(f"{name} (not measured)")
    return failed


def complete_summary(figures: dict[str, Any]) -> dict[str, Any]:
    """Return exactly the keys of a summary, in order. Raises `KeyError` if one is missing."""
    return {key: figures[key] for key in SUMMARY_KEYS}
