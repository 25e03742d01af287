"""All live sessions of one engine, with their clients and their work."""

import contextlib
import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from models.chain import Models
from server.engine.live.session import EngineHooks, LiveCounters, LiveSession
from server.engine.runner.sequence import SequenceState
from server.engine.types.events import Delta, Ended, Event, Failed, LiveEvent
from server.engine.types.requests import EndOfAudio, LiveInput, LiveRequest
from server.errors import EngineFailed, InvalidRequest, Overloaded, ServeError

logger = logging.getLogger(__name__)

RETRY_AFTER_S = 1
# Audio that a step takes up, over all sessions: voice is detected already, so this bounds only how much new work one step begins.
STEP_AUDIO_S = 32.0


class LiveSessions:
    """Sessions by id. Every method but `take_detected` is called under the engine's lock, and events are delivered under it.

    There are `live_limit` places for live sessions and `recording_limit` for recordings. When all are taken, a client that holds
    fewer gets the place of the newest session of the client that holds most.

    An input goes through two threads: the listener detects voice in it, the engine's thread cuts utterances (`take_detected`).
    """

    def __init__(
        self,
        models: Models,
        sample_rate_hz: int,
        live_limit: int,
        recording_limit: int,
        changed: threading.Condition,
        start_sequence: Callable[[SequenceState], None],
        drop_sequence: Callable[[str], None],
    ) -> None:
        """`start_sequence` has the engine take up work, and `drop_sequence` has it forget the work with this id."""
        self.live_limit = live_limit
        self.recording_limit = recording_limit
        self.counters = LiveCounters()
        self.changed = changed
        self.start_sequence = start_sequence
        self.drop_sequence = drop_sequence
        self._models = models
        self._sample_rate_hz = sample_rate_hz
        self._sessions: dict[str, SessionHandle] = {}
        # Beside the engine's thread, so that no decode step waits for voice detection.
        self._listener = ThreadPoolExecutor(1, "engine-listener")

    def __len__(self) -> int:
        return len(self._sessions)

    @property
    def recordings(self) -> int:
        """How many sessions are recordings."""
        return sum(handle.request.is_recording for handle in self._sessions.values())

    @property
    def busy(self) -> int:
        """How many sessions have inputs that are being listened to or wait to be taken up."""
        return sum(handle.is_listening or handle.has_detected for handle in self._sessions.values())

    @property
    def have_detected(self) -> bool:
        """Whether there is something for `take_detected`."""
        return any(handle.has_detected for handle in self._sessions.values())

    def stop(self) -> None:
        """End the listener; the caller does not hold the lock."""
        self._listener.shutdown(cancel_futures=True)

    def open(self, request: LiveRequest, deliver: Callable[[LiveEvent], None]) -> None:
        """Begin a session. Raises a `ServeError` if it cannot be served."""
        if request.id in self._sessions:
            raise InvalidRequest("A session with this id is being served.")
        displaced = self._find_displaced(request)
        handle = SessionHandle(self, request, deliver)
        hooks = EngineHooks(handle.emit_event, handle.start_sequence, handle.drop_sequence)
        handle.session = LiveSession(request, self._models, self._sample_rate_hz, hooks, self.counters)
        self._sessions[request.id] = handle
        if displaced is not None:
            displaced.fail(_all_taken(request))

    def push(self, id: str, item: LiveInput) -> None:
        """Give a session an input, if it is still there."""
        if (handle := self._sessions.get(id)) and handle.session:
            handle.session.push(item)
            self._request_turn(handle)

    def end(self, id: str) -> None:
        """Forget a session, if it is still there, and all its work."""
        if handle := self._sessions.pop(id, None):
            handle.end()
            self.changed.notify_all()

    def end_all_audio(self) -> None:
        """Have every session answer what was said so far, and then end."""
        for id in self._sessions:
            self.push(id, EndOfAudio())

    def fail_all(self, error: ServeError) -> None:
        for handle in list(self._sessions.values()):
            handle.fail(error)

    def take_detected(self) -> None:
        """Cut into utterances what has passed the voice detector, up to `STEP_AUDIO_S` of it. For the engine's thread.

        A session at which that fails, fails alone.
        """
        with self.changed:
            busy = [(handle, handle.session) for handle in self._sessions.values() if handle.has_detected]
        for handle, session in busy:
            with handle.failing_alone():
                if session is not None:
                    session.take_detected(STEP_AUDIO_S / len(busy))
            with self.changed:
                self._request_turn(handle)

    def _find_displaced(self, request: LiveRequest) -> "SessionHandle | None":
        """Return the session that has to give up its place to a new one, None if a place is free. Raises `Overloaded`."""
        peers = [handle for handle in self._sessions.values() if handle.request.is_recording == request.is_recording]
        if len(peers) < (self.recording_limit if request.is_recording else self.live_limit):
            return None
        held = Counter(handle.request.client for handle in peers)
        most, count = next(iter(held.most_common(1)), ("", 0))
        if count <= held[request.client] + 1:
            raise _all_taken(request)
        return next(handle for handle in reversed(peers) if handle.request.client == most)

    def _request_turn(self, handle: "SessionHandle") -> None:
        """Have the listener go on with a session if it has inputs, and not too much waits behind the voice detector."""
        if handle.session and handle.session.wants_listening and not handle.is_listening:
            handle.is_listening = True
            self._listener.submit(self._detect_voice, handle)

    def _detect_voice(self, handle: "SessionHandle") -> None:
        """Take one turn of a session on the listener's thread."""
        with handle.failing_alone():
            if (session := handle.session) is not None:
                session.detect_voice()
        with self.changed:
            handle.is_listening = False
            self._request_turn(handle)
            self.changed.notify_all()


class SessionHandle:
    """A session with its client and its work; no event is delivered once it has `ended`.

    A session that ends is cut loose from what it refers to. Reference cycles would keep its audio until Python collects them.
    """

    def __init__(self, sessions: LiveSessions, request: LiveRequest, deliver: Callable[[LiveEvent], None]) -> None:
        self.request = request
        self.session: LiveSession | None = None
        self.is_listening = False
        self.ended = False
        self._sessions = sessions
        self._id = request.id
        self._deliver = deliver
        self._sequences: dict[str, SequenceState] = {}

    @property
    def has_detected(self) -> bool:
        return self.session is not None and self.session.has_detected

    def end(self) -> None:
        """Forget the session and its work."""
        self.ended = True
        self.session = None
        for sequence in list(self._sequences.values()):
            self.drop_sequence(sequence)

    def emit_event(self, event: LiveEvent) -> None:
        with self._sessions.changed:
            if self.ended:
                return
            ended = isinstance(event, Ended | Failed)
            try:
                self._deliver(event)
            except Exception:
                logger.exception("session %s: an event cannot be delivered; giving the client up", self._id)
                ended = True
            if ended:
                self._sessions.end(self._id)

    def start_sequence(self, sequence: SequenceState) -> None:
        with self._sessions.changed:
            if self.ended:
                return
            sequence.of_session = True
            sequence.deliver = SequenceEvents(self, sequence, sequence.deliver).deliver
            self._sequences[sequence.request.id] = sequence
            self._sessions.start_sequence(sequence)

    def drop_sequence(self, sequence: SequenceState) -> None:
        with self._sessions.changed:
            self.release_sequence(sequence)
            self._sessions.drop_sequence(sequence.request.id)

    def release_sequence(self, sequence: SequenceState) -> None:
        """Let go of work that has ended or is dropped."""
        self._sequences.pop(sequence.request.id, None)
        sequence.deliver = _ignore_event

    def fail(self, error: ServeError) -> None:
        self.emit_event(Failed(self._id, error))

    @contextlib.contextmanager
    def failing_alone(self) -> Iterator[None]:
        """End this session, and no other, with an exception that leaves the block."""
        try:
            yield
        except Exception:
            logger.exception("session %s failed", self._id)
            self.fail(EngineFailed("The engine failed on this session."))


@dataclass(frozen=True)
class SequenceEvents:
    """The way of a sequence's events to the method of the session that takes them."""

    handle: SessionHandle
    sequence: SequenceState
    take_event: Callable[[Event], None]

    def deliver(self, event: Event) -> None:
        if not isinstance(event, Delta):
            self.handle.release_sequence(self.sequence)
        with self.handle.failing_alone():
            self.take_event(event)


def _ignore_event(_event: Event) -> None: ...


def _all_taken(request: LiveRequest) -> Overloaded:
    places = "places for long recordings" if request.is_recording else "live sessions"
    return Overloaded(f"All {places} are taken; try again later.", retry_after_s=RETRY_AFTER_S)
