"""Paced streams side by side, alone or beside a client that posts files."""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from loadtest.clients.load import LoadResult, Question, measure_load
from loadtest.clients.stream import Script, StreamRun, run_stream
from loadtest.live.audio import StreamAudio
from loadtest.live.figures import Heard, match
from loadtest.support.process import cpu_seconds
from loadtest.support.recordings import RATE_HZ

STAGGER_S = 0.7


@dataclass(frozen=True)
class Level:
    """The load of one measurement, and the silence that ends an utterance."""

    streams: int
    rest: bool
    silence_ms: int

    @property
    def name(self) -> str:
        beside = " beside REST" if self.rest else ""
        return f"{self.streams} stream{'s' if self.streams > 1 else ''}{beside}, {self.silence_ms} ms of silence"


@dataclass(frozen=True)
class LevelResult:
    """The sessions of a level in the order of its streams; `cpu_cores` is how many cores the server kept busy on average."""

    level: Level
    audios: Sequence[StreamAudio]
    runs: Sequence[StreamRun]
    load: LoadResult | None
    cpu_cores: float

    def heard(self) -> list[Heard]:
        """Return the events of all recordings that were said."""
        return [each for audio, run in zip(self.audios, self.runs, strict=True) for each in match(run, audio.spoken)]

    def slips_s(self) -> list[float]:
        """Return how late the pieces of all streams were sent."""
        return [slip_s for run in self.runs for slip_s in run.slips_s]


def run_level(url: str, pid: int, level: Level, audios: Sequence[StreamAudio], question: Question) -> LevelResult:
    """Play one stream for each of `audios`, each from another moment on, and post the question over and over where the level
    says so. `pid` is the server's. Raises `Refused` where a stream is not taken."""
    last_end_s = max(number * STAGGER_S + len(audio.samples) / RATE_HZ for number, audio in enumerate(audios))
    options = {"voice": {"silence_duration_ms": level.silence_ms}}
    cpu_before_s, started_s = cpu_seconds(pid), time.perf_counter()
    with ThreadPoolExecutor(len(audios) + 1) as pool:
        load = pool.submit(measure_load, url, [question], 1, 0.0, last_end_s) if level.rest else None
        plays = [
            pool.submit(_play, url, Script(audio.pcm, options=options), number * STAGGER_S) for number, audio in enumerate(audios)
        ]
        runs = [play.result() for play in plays]
    cpu_cores = (cpu_seconds(pid) - cpu_before_s) / (time.perf_counter() - started_s)
    return LevelResult(level, audios, runs, load.result() if load else None, cpu_cores)


def _play(url: str, script: Script, after_s: float) -> StreamRun:
    time.sleep(after_s)
    return run_stream(url, script)
