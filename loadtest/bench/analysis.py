"""From measured samples to the tables of the report."""

from collections.abc import Sequence
from typing import Any

from loadtest.bench.latency import Sample, texts_by_clip
from loadtest.support.recordings import BenchClip
from loadtest.support.statistics import distribution_ms, percentile, ratio, words_differ
from loadtest.support.words import word_error_rate

EXACT, OFF = "Thinbridge, exact drafts", "Thinbridge, no drafts"
WHISPER = "faster-whisper base int8, beam 1"
SUMMARY_LENGTH_S = 5.0
INSIDE = ("features_ms", "queue_ms", "encode_ms", "adapter_ms", "prefill_ms", "decode_ms", "detokenise_ms")


def select(samples: Sequence[Sample], system: str, length_s: float) -> list[Sample]:
    return [sample for sample in samples if sample.system == system and sample.length_s == length_s]


def median_s(samples: Sequence[Sample], system: str, length_s: float) -> float | None:
    """None where nothing of the kind was measured."""
    chosen = select(samples, system, length_s)
    return percentile([sample.seconds for sample in chosen], 50) if chosen else None


def latency_table(samples: Sequence[Sample]) -> list[dict[str, Any]]:
    """Return a row for each system and length."""
    rows = []
    for system, length_s in dict.fromkeys((sample.system, sample.length_s) for sample in samples):
        chosen = select(samples, system, length_s)
        cpu_s = sum(sample.cpu_s for sample in chosen) / sum(sample.audio_s for sample in chosen)
        times = distribution_ms([sample.seconds for sample in chosen])
        rows.append({"system": system, "length_s": length_s, **times, "cpu_s_per_audio_s": round(cpu_s, 4)})
    return rows


def stage_table(samples: Sequence[Sample], system: str) -> list[dict[str, Any]]:
    """Our medians by stage at each length, and what is outside the stages."""
    rows = []
    for length_s in dict.fromkeys(sample.length_s for sample in samples if sample.system == system):
        chosen = select(samples, system, length_s)
        replies = [sample.reply for sample in chosen]
        stages = {
            name: _median(reply["times_ms"][name] for reply in replies) for name in ("audio_decode_ms", *INSIDE, "total_ms")
        }
        inside = [sum(reply["times_ms"][name] for name in INSIDE) for reply in replies]
        rows.append(
            {
                "length_s": length_s,
                **stages,
                "client_ms": _median(1000 * sample.seconds for sample in chosen),
                "overhead_in_server_ms": _median(r["times_ms"]["total_ms"] - i for r, i in zip(replies, inside, strict=True)),
                "overhead_of_http_ms": _median(1000 * s.seconds - s.reply["times_ms"]["total_ms"] for s in chosen),
                "overhead_ms": _median(1000 * s.seconds - i for s, i in zip(chosen, inside, strict=True)),
            }
        )
    return rows


def compare_answers(
    samples: Sequence[Sample], whole: Sequence[BenchClip], whole_texts: dict[str, list[str]], systems: Sequence[str]
) -> dict[str, Any]:
    """Word error rates on whole recordings, how near every system is to ours, and whether anyone ever changed an answer."""
    texts = {system: texts_by_clip(samples, system) for system in systems}
    clips = sorted(texts[EXACT])

    def all_texts(system: str) -> list[str]:
        return [*whole_texts[system], *(min(texts[system][clip]) for clip in clips)]

    return {
        "word_error_rate": {
            system: round(word_error_rate([clip.text for clip in whole], whole_texts[system]), 4) for system in systems
        },
        "against_exact": {system: words_differ(all_texts(EXACT), all_texts(system)) for system in systems if system != EXACT},
        "whole_against_exact": {
            system: words_differ(whole_texts[EXACT], whole_texts[system]) for system in systems if system != EXACT
        },
        "whole_texts": {system: list(whole_texts[system]) for system in systems},
        "changed": {system: sum(len(given) > 1 for given in texts[system].values()) for system in systems},
        "recordings": len(whole),
        "clips": len(clips),
    }


def summarise(
    samples: Sequence[Sample],
    stages: Sequence[dict[str, Any]],
    levels: Sequence[dict[str, Any]],
    decode: dict[str, Any],
) -> dict[str, Any]:
    """Return the summary's figures; None where one was not measured."""
    ours, off, whisper = (median_s(samples, system, SUMMARY_LENGTH_S) for system in (EXACT, OFF, WHISPER))
    row = next((row for row in stages if row["length_s"] == SUMMARY_LENGTH_S), {})
    throughput = {level["concurrency"]: level["requests_per_s"] for level in levels}
    return {
        "latency_ratio_vs_faster_whisper_5s": ratio(ours, whisper),
        "draft_speedup_5s": ratio(off, ours),
        "decode_ratio_vs_llamacpp": decode["ratio"],
        "throughput_c16_over_c1": ratio(throughput.get(16), throughput.get(1)),
        "server_overhead_p50_ms": row.get("overhead_ms"),
        "first_token_p50_ms": decode["thinbridge_first_token_ms"],
    }


def _median(values: Any) -> float:
    return round(percentile(list(values), 50), 2)
