"""One request after the other, the systems taking turns on every clip, so that whatever else the machine does hits all alike."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from tqdm import tqdm

from loadtest.clients.server import MAX_TOKENS, BenchServer, Body, make_body
from loadtest.support.instructions import TRANSCRIBE
from loadtest.support.process import LinePeer, cpu_seconds
from loadtest.support.recordings import BenchClip

SETTLE_S = 0.03
"""Runtimes spin for a while after a run: their own CPU time, and not to be met by the system that is next."""


class System(Protocol):
    """Something that turns speech into text."""

    name: str
    pid: int

    def transcribe(self, clip: BenchClip) -> dict[str, Any]:
        """Return an object with `text`, and whatever else the system tells of this request."""
        ...


class Thinbridge:
    """The server over HTTP, under a draft policy; None leaves the choice to a server that does not know drafts."""

    def __init__(self, name: str, server: BenchServer, draft: str | None) -> None:
        self.name, self.pid = name, server.pid
        self._server, self._draft = server, draft
        self._bodies: dict[str, Body] = {}

    def transcribe(self, clip: BenchClip) -> dict[str, Any]:
        if clip.name not in self._bodies:
            self._bodies[clip.name] = make_body(clip.audio, draft=self._draft)
        return self._server.answer(self._bodies[clip.name])


class Peer:
    """A peer process, with the options of its request."""

    def __init__(self, name: str, peer: LinePeer, **options: Any) -> None:
        self.name, self.pid = name, peer.pid
        self._peer, self._options = peer, options

    def transcribe(self, clip: BenchClip) -> dict[str, Any]:
        request = {"audio": str(clip.path), "instruction": TRANSCRIBE, "max_tokens": MAX_TOKENS}
        return self._peer.ask(request | self._options)


@dataclass(frozen=True)
class Sample:
    """One request: what the client waited, and the CPU time of the system's processes."""

    system: str
    length_s: float
    clip: str
    seconds: float
    cpu_s: float
    audio_s: float
    text: str
    reply: dict[str, Any] = field(repr=False)


def time_request(system: System, clip: BenchClip, length_s: float) -> Sample:
    """Return a timed request, and the wait after it."""
    cpu_before_s = cpu_seconds(system.pid)
    started_s = time.perf_counter()
    reply = system.transcribe(clip)
    seconds = time.perf_counter() - started_s
    time.sleep(SETTLE_S)
    cpu_s = cpu_seconds(system.pid) - cpu_before_s
    return Sample(system.name, length_s, clip.name, seconds, cpu_s, clip.seconds, reply["text"].strip(), reply)


def measure_latency(systems: Sequence[System], clips: dict[float, list[BenchClip]], samples: int) -> list[Sample]:
    """`samples` requests of every system at every length, after one at each length that is not counted.

    The order of the systems turns round, so that none always follows the same other, whose memory use empties the caches.
    """
    taken = []
    with tqdm(total=len(systems) * len(clips) * (samples + 1), desc="latency", unit="request", mininterval=2) as progress:
        for turn in range(-1, samples):
            for length_s, choices in clips.items():
                clip = choices[turn % len(choices)]
                for place in range(len(systems)):
                    sample = time_request(systems[(place + turn) % len(systems)], clip, length_s)
                    if turn >= 0:
                        taken.append(sample)
                    progress.update()
    return taken


def transcribe_all(systems: Sequence[System], clips: Sequence[BenchClip]) -> dict[str, list[str]]:
    """Return the text of every clip by every system; nothing is timed."""
    return {
        system.name: [system.transcribe(clip)["text"].strip() for clip in tqdm(clips, desc=f"answers of {system.name}")]
        for system in systems
    }


def texts_by_clip(samples: Sequence[Sample], system: str) -> dict[str, set[str]]:
    """Return all the texts that a system gave for a clip; one, where the same question always gets the same answer."""
    texts: dict[str, set[str]] = {}
    for sample in samples:
        if sample.system == system:
            texts.setdefault(sample.clip, set()).add(sample.text)
    return texts
