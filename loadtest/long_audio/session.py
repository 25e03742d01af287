"""A live session of an hour, fed as fast as the server takes it: what a second of audio costs at its beginning and at its end."""

import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean

from loadtest.clients.stream import StreamRun
from loadtest.support.footprint import Reading

WINDOW_S = 300.0


@dataclass(frozen=True)
class Stretch:
    """The server while it listened to a stretch of a session's audio: its CPU seconds per second of that audio, and the memory
    of its processes on average, by name."""

    start_s: float
    end_s: float
    cpu_s_per_audio_s: float
    anonymous_mib: dict[str, float]


def stretches(run: StreamRun, readings: Sequence[Reading], window_s: float = WINDOW_S) -> list[Stretch]:
    """Return a stretch for each window of the audio, by the readings that were taken while the session ran.

    How far the server had listened at a moment is known from the events that had come, so the edges of a stretch are as exact
    as those are frequent. Windows of which less than half was watched are left out.
    """
    moments = [run.origin_s + arrival.at_s for arrival in run.arrivals]
    listened_s = [0.0]
    for arrival in run.arrivals:
        listened_s.append(max(listened_s[-1], arrival.event.get("end_s", 0.0), arrival.event.get("audio_s", 0.0)))
    placed = [(listened_s[bisect.bisect_right(moments, reading.moment_s)], reading) for reading in readings]
    found, start_s = [], 0.0
    while start_s < run.script.audio_s:
        within = [(audio_s, reading) for audio_s, reading in placed if start_s <= audio_s < start_s + window_s]
        if within and within[-1][0] - within[0][0] >= window_s / 2:
            (first_s, first), (last_s, last) = within[0], within[-1]
            found.append(
                Stretch(
                    first_s,
                    last_s,
                    (last.cpu_s - first.cpu_s) / (last_s - first_s),
                    {name: mean(reading.anonymous_mib.get(name, 0.0) for _, reading in within) for name in last.anonymous_mib},
                )
            )
        start_s += window_s
    return found
