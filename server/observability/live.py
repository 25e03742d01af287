"""The metrics of live sessions, and how their latencies are measured."""

from collections import deque
from collections.abc import Sequence
from itertools import takewhile
from typing import Literal, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from server.engine.types.events import LiveEvent, Partial, SpeechStarted, UtteranceDone

Outcome = Literal[
    "ended", "client_left", "client_error", "slow_client", "idle", "too_long", "overloaded", "not_ready", "server_error"
]

# An answer to audio that came more pieces ago than this is not timed.
MAX_ARRIVALS = 4096


class LiveMetrics:
    """The metrics of live sessions, in every dialect. All but the open sockets have the label `model`."""

    def __init__(self, registry: CollectorRegistry, seconds_buckets: Sequence[float]) -> None:
        self.open_sockets = Gauge("thinbridge_stream_sockets", "WebSocket sessions that are open.", registry=registry)
        self.sessions = Counter(
            "thinbridge_stream_sessions", "WebSocket sessions by how they ended.", ["model", "outcome"], registry=registry
        )
        self.audio_seconds = Counter(
            "thinbridge_stream_audio_seconds", "Seconds of audio that WebSocket sessions brought.", ["model"], registry=registry
        )
        self.partials = Counter("thinbridge_stream_partials", "Partial texts sent.", ["model"], registry=registry)
        self.revised_words = Counter(
            "thinbridge_stream_revised_words", "Words of partial texts that a later one took back.", ["model"], registry=registry
        )
        self.first_partial_seconds = Histogram(
            "thinbridge_first_partial_latency_seconds",
            "From noticing the start of an utterance to its first text.",
            ["model"],
            buckets=seconds_buckets,
            registry=registry,
        )
        self.final_seconds = Histogram(
            "thinbridge_final_latency_seconds",
            "From the arrival of an utterance's last audio to its answer being sent.",
            ["model"],
            buckets=seconds_buckets,
            registry=registry,
        )

    def add_model(self, model: str) -> None:
        """Serve the metrics of a model before there is any session, so that the first is seen to be one more."""
        for outcome in get_args(Outcome):
            self.sessions.labels(model, outcome)
        for total in (self.audio_seconds, self.partials, self.revised_words):
            total.labels(model)
        for latency in (self.first_partial_seconds, self.final_seconds):
            latency.labels(model)


class SessionTimer:
    """Measures one session with `model`, which may change between utterances.

    Times are by `time.perf_counter`, except those of the session's audio.
    """

    def __init__(self, metrics: LiveMetrics, model: str) -> None:
        self.model = model
        self._metrics = metrics
        # The end of each piece in the audio, and when the piece came; oldest first.
        self._arrivals: deque[tuple[float, float]] = deque(maxlen=MAX_ARRIVALS)
        self._started_s: dict[int, float] = {}
        self._partial_text = ""

    def audio_came(self, seconds: float, end_s: float, now_s: float) -> None:
        """Note that `seconds` of audio were pushed, up to `end_s` of the session's audio."""
        self._metrics.audio_seconds.labels(self.model).inc(seconds)
        self._arrivals.append((end_s, now_s))

    def event_came(self, event: LiveEvent, now_s: float) -> None:
        """Note an event of the engine."""
        match event:
            case SpeechStarted(utterance=number):
                self._started_s = {number: now_s}
            case Partial(utterance=number) if number in self._started_s:
                self._metrics.first_partial_seconds.labels(self.model).observe(now_s - self._started_s.pop(number))

    def event_sent(self, event: LiveEvent, now_s: float) -> None:
        """Note an event that the client was sent."""
        match event:
            case SpeechStarted():
                self._partial_text = ""
            case Partial(stable=stable, tail=tail):
                self._metrics.partials.labels(self.model).inc()
                taken_back = words_taken_back(self._partial_text, stable + tail)
                self._metrics.revised_words.labels(self.model).inc(taken_back)
                self._partial_text = stable + tail
            case UtteranceDone(end_s=end_s) if (arrival_s := self._arrival_s(end_s)) is not None:
                self._metrics.final_seconds.labels(self.model).observe(now_s - arrival_s)

    def _arrival_s(self, audio_s: float) -> float | None:
        """Return when the audio up to `audio_s` had come; None if that is too long ago."""
        arrivals = self._arrivals
        forgotten = len(arrivals) == MAX_ARRIVALS and arrivals[0][0] >= audio_s
        # The engine may have made the last piece a little longer.
        while len(arrivals) > 1 and arrivals[0][0] < audio_s:
            arrivals.popleft()
        return arrivals[0][1] if arrivals and not forgotten else None


def words_taken_back(before: str, after: str) -> int:
    """Return how many words of a text the next one takes back; a word that only got longer still stands."""
    if after.startswith(before):
        return 0
    words = before.split()
    standing = takewhile(lambda pair: pair[0] == pair[1], zip(words, after.split(), strict=False))
    return len(words) - len(list(standing))
