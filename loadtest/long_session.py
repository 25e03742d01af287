"""A live session of an hour, fed as fast as the server takes it: what a second of audio costs at its beginning and at its end."""

import bisect
from collections.abc import Sequence
from dataclasses import dataclass

from loadtest.footprint import Reading
from loadtest.stream_client import StreamRun

WINDOW_S = 300.0


@dataclass(frozen=True)
class Stretch:
    """The server while it listened to a stretch of a session's audio: CPU seconds per second of audio, mean resident memory."""

    start_s: float
    end_s: float
    cpu_s_per_audio_s: float
    resident_mib: float


def stretches(run: StreamRun, readings: Sequence[Reading], window_s: float = WINDOW_S) -> list[Stretch]:
    """One for each window of the audio, the last one shorter; by the readings that were taken while the session ran.

    How far the server had listened at a moment is known from its events, so that the edges of a stretch are as exact as those
    are frequent. Windows within which there were fewer than two readings are left out.
    """
    moments = [run.origin_s + arrival.at_s for arrival in run.arrivals]
    listened_s: list[float] = []
    for arrival in run.arrivals:
        now_s = arrival.event.get("end_s", arrival.event.get("audio_s", 0.0))
        listened_s.append(max(now_s, listened_s[-1] if listened_s else 0.0))
    found, start_s = [], 0.0
    while start_s < run.script.audio_s:
        end_s = min(start_s + window_s, run.script.audio_s)
        within = [
            (audio_s, reading)
            for reading in readings
            if (place := bisect.bisect_right(moments, reading.moment_s))
            and start_s <= (audio_s := listened_s[place - 1]) <= end_s
        ]
        if len(within) > 1 and within[-1][0] > within[0][0]:
            (first_s, first), (last_s, last) = within[0], within[-1]
            cost = (last.cpu_s - first.cpu_s) / (last_s - first_s)
            found.append(Stretch(first_s, last_s, cost, sum(each.total_mib for _, each in within) / len(within)))
        start_s = end_s
    return found
