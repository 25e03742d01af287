"""Conditions that hold for every session at `/v1/stream`, whatever the audio and the load: checked on each run."""

from collections.abc import Iterator, Sequence
from typing import Any

from loadtest.clients.stream import Arrival, StreamRun
from loadtest.support.statistics import percentile

MAX_SLIP_P99_S = 0.02
TOLERANCE_S = 0.011
"""Times on the wire are rounded, and resampling may add or take a little."""
PARTIAL_TIMES = ("start_s", "stable_end_s", "end_s")


def complaints(run: StreamRun) -> list[str]:
    """Everything that is wrong with a session; each sentence names the event. An event that lacks a key is a complaint too."""
    try:
        return [
            *_frame(run),
            *_utterances(run),
            *_stable_text(run),
            *_spans(run),
            *_causality(run),
            *_flushes(run),
        ]
    except (KeyError, TypeError, ValueError) as error:
        return [f"an event has not the right shape: {error!r}"]


def slip_complaint(slips_s: Sequence[float], most_s: float = MAX_SLIP_P99_S) -> str:
    """Why a run is void where its generator was late, or an empty string."""
    if slips_s and percentile(slips_s, 99) > most_s:
        return f"the generator slipped: p99 {1000 * percentile(slips_s, 99):.1f} ms, above {1000 * most_s:g} ms"
    return ""


def _frame(run: StreamRun) -> Iterator[str]:
    """A session begins with `ready`, goes on without errors, and ends with `ended` and an orderly close."""
    types = [arrival.type for arrival in run.arrivals]
    known = {"ready", "speech_started", "partial", "final", "delta", "flushed", "ended", "error"}
    yield from (f"unknown event {name!r}" for name in set(types) - known)
    if types[:1] != ["ready"] or types.count("ready") != 1:
        yield f"ready is not the first event and the only one of its kind: {types[:3]}"
    for arrival in run.of_type("error"):
        yield f"error {arrival.event['error']['code']}: {arrival.event['error']['message']}"
    if types[-1:] != ["ended"] or types.count("ended") != 1:
        yield f"ended is not the last event and the only one of its kind: {types[-3:]}"
    for arrival in run.of_type("ended"):
        if abs(arrival.event["audio_s"] - run.script.audio_s) > TOLERANCE_S:
            yield f"ended counts {arrival.event['audio_s']} s of audio, {run.script.audio_s} s were sent"
    if run.close_code != 1000:
        yield f"the socket was closed with {run.close_code}, not 1000"


def _answered(arrival: Arrival) -> bool:
    """Whether an event is the end of an utterance: its answer, or the news that it has none."""
    return arrival.type == "final" or (arrival.type == "error" and arrival.event.get("utterance") is not None)


def _utterances(run: StreamRun) -> Iterator[str]:
    """Each utterance is started once, in order, and answered once, in order; partials lie between."""
    started, answered = 0, 0
    for arrival in run.arrivals:
        number = arrival.event.get("utterance")
        if arrival.type == "speech_started":
            if number != started:
                yield f"speech_started of utterance {number} where {started} is next"
            started += 1
        elif _answered(arrival):
            if number != answered:
                yield f"{arrival.type} of utterance {number} where {answered} is next"
            elif answered >= started:
                yield f"{arrival.type} of utterance {number} before its speech_started"
            answered += 1
        elif arrival.type == "partial" and not answered <= _number(arrival) < started:
            yield f"partial of utterance {number}, which is not going on"
    if started != answered:
        yield f"{started} utterances were started and {answered} answered"


def _number(arrival: Arrival) -> int:
    number = arrival.event["utterance"]
    if not isinstance(number, int):
        raise TypeError(f"utterance {number!r}")
    return number


def _stable_text(run: StreamRun) -> Iterator[str]:
    """Stable text only grows within an utterance, and so does the time up to which it is stable."""
    last: dict[int, dict[str, Any]] = {}
    for arrival in run.of_type("partial"):
        before, now = last.get(_number(arrival)), dict(arrival.event)
        if before and not now["stable"].startswith(before["stable"]):
            yield f"stable text of utterance {now['utterance']} changed from {before['stable']!r} to {now['stable']!r}"
        if before and now["stable_end_s"] < before["stable_end_s"]:
            yield f"stable_end_s of utterance {now['utterance']} went back to {now['stable_end_s']}"
        last[_number(arrival)] = now


def _spans(run: StreamRun) -> Iterator[str]:
    """An utterance keeps its start, the times of an event are in order, and utterances do not overlap."""
    starts = {_number(arrival): arrival.event["start_s"] for arrival in run.of_type("speech_started")}
    for arrival in run.of_type("partial", "final"):
        start_s = arrival.event["start_s"]
        if abs(starts.get(_number(arrival), start_s) - start_s) > TOLERANCE_S:
            yield f"utterance {arrival.event['utterance']} starts at {start_s} in its {arrival.type}"
    for arrival in run.of_type("partial"):
        times = [arrival.event[name] for name in PARTIAL_TIMES]
        if times != sorted(times):
            yield f"the times of a partial are not in order: {times}"
    past_s = 0.0
    for arrival in run.of_type("final"):
        start_s, end_s = arrival.event["start_s"], arrival.event["end_s"]
        if start_s < past_s - TOLERANCE_S or end_s <= start_s:
            yield f"utterance {arrival.event['utterance']} from {start_s} to {end_s} s begins before {past_s} s or is empty"
        past_s = end_s
        times = [word[name] for word in arrival.event.get("words") or () for name in ("start_s", "end_s")]
        if times != sorted(times) or (times and not (start_s - TOLERANCE_S <= times[0] and times[-1] <= end_s + TOLERANCE_S)):
            yield f"the words of utterance {arrival.event['utterance']} are not in order within it: {times}"


def _causality(run: StreamRun) -> Iterator[str]:
    """No event tells of audio that was not sent before it came."""
    sent = iter([*run.sent, (float("inf"), run.script.audio_s)])
    (next_at_s, next_audio_s), audio_s = next(sent), 0.0
    for arrival in run.arrivals:
        while next_at_s <= arrival.at_s:
            audio_s = next_audio_s
            next_at_s, next_audio_s = next(sent)
        known_s = max(arrival.event.get(name, 0.0) for name in PARTIAL_TIMES)
        if known_s > audio_s + TOLERANCE_S:
            yield f"{arrival.type} tells of {known_s} s when {audio_s:.2f} s of audio had been sent"


def _flushes(run: StreamRun) -> Iterator[str]:
    """Each flush comes back once, in order, when everything that began before it is answered."""
    asked = [(audio_s, message["id"]) for audio_s, message in run.messages if message["type"] == "flush"]
    came = [arrival.event["id"] for arrival in run.of_type("flushed")]
    if came != [marker for _, marker in asked]:
        yield f"flushed came for {came}, flush was sent for {[marker for _, marker in asked]}"
        return
    asked_at_s = {marker: audio_s for audio_s, marker in asked}
    open_from_s: dict[int, float] = {}
    for arrival in run.arrivals:
        if arrival.type == "speech_started":
            open_from_s[_number(arrival)] = arrival.event["start_s"]
        elif _answered(arrival):
            open_from_s.pop(_number(arrival), None)
        elif arrival.type == "flushed":
            early = [number for number, start_s in open_from_s.items() if start_s < asked_at_s[arrival.event["id"]] - TOLERANCE_S]
            if early:
                yield f"flushed {arrival.event['id']!r} came before the answer to utterance {early[0]}"
