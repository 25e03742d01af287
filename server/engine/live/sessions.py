"""All live sessions of one engine, and the stage of its steps that listens to them."""

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from functools import partial

from models.assemble import Models
from server.engine.live.session import EngineHooks, LiveCounters, LiveSession
from server.engine.runner.sequence import SequenceState
from server.engine.types.events import Delta, Ended, Event, Failed, LiveEvent
from server.engine.types.requests import EndOfAudio, LiveInput, LiveRequest
from server.errors import EngineFailed, InvalidRequest, Overloaded, ServeError

logger = logging.getLogger(__name__)

RETRY_AFTER_S = 1


class LiveSessions:
    """Sessions by id. Every method but `listen` is called under the engine's lock, and so are the sessions' clients."""

    def __init__(
        self,
        models: Models,
        sample_rate_hz: int,
        limit: int,
        changed: threading.Condition,
        begin: Callable[[SequenceState], None],
        drop: Callable[[str], None],
    ) -> None:
        """`begin` has the engine take up work, and `drop` has it forget the work with this id."""
        self.limit = limit
        self.counters = LiveCounters()
        self.changed = changed
        self.begin = begin
        self.drop = drop
        self._models = models
        self._sample_rate_hz = sample_rate_hz
        self._sessions: dict[str, SessionHandle] = {}

    def __len__(self) -> int:
        return len(self._sessions)

    @property
    def busy(self) -> int:
        """How many have something to listen to."""
        return sum(served.busy for served in self._sessions.values())

    def open(self, request: LiveRequest, deliver: Callable[[LiveEvent], None]) -> None:
        """Begin a session. Raises the `ServeError` of one that cannot be served."""
        if request.id in self._sessions:
            raise InvalidRequest("A session with this id is being served.")
        if len(self._sessions) >= self.limit:
            raise Overloaded("All live sessions are taken; try again later.", retry_after_s=RETRY_AFTER_S)
        served = SessionHandle(self, request.id, deliver)
        served.session = LiveSession(
            request, self._models, self._sample_rate_hz, EngineHooks(served.emit, served.begin, served.drop), self.counters
        )
        self._sessions[request.id] = served

    def push(self, id: str, item: LiveInput) -> None:
        """Give a session an input, if it is still there."""
        if (served := self._sessions.get(id)) and served.session:
            served.session.push(item)
            self.changed.notify_all()

    def end(self, id: str) -> None:
        """Forget a session, if it is still there, and all its work."""
        if served := self._sessions.pop(id, None):
            served.end()
            self.changed.notify_all()

    def end_all_audio(self) -> None:
        """Have every session answer what was said so far, and then end."""
        for id in self._sessions:
            self.push(id, EndOfAudio())
        self.changed.notify_all()

    def fail_all(self, error: ServeError) -> None:
        for served in list(self._sessions.values()):
            served.fail(error)

    def listen(self) -> None:
        """For the engine's thread: go through what was pushed. A session at which that fails, fails alone."""
        with self.changed:
            busy = [(served, served.session) for served in self._sessions.values() if served.busy]
        for served, session in busy:
            with served.guard():
                if session is not None:
                    session.listen()


class SessionHandle:
    """A session with its client and its work; nothing comes of it once it has `ended`.

    What ends is cut loose from what it refers to: in circles it would keep its audio until Python looks for them.
    """

    def __init__(self, sessions: LiveSessions, id: str, deliver: Callable[[LiveEvent], None]) -> None:
        self.session: LiveSession | None = None
        self.ended = False
        self._sessions = sessions
        self._id = id
        self._deliver = deliver
        self._work: dict[str, SequenceState] = {}

    @property
    def busy(self) -> bool:
        return self.session is not None and self.session.busy

    def end(self) -> None:
        """Forget it and its work."""
        self.ended = True
        self.session = None
        for sequence in list(self._work.values()):
            self.drop(sequence)

    def emit(self, event: LiveEvent) -> None:
        with self._sessions.changed:
            if self.ended:
                return
            ended = isinstance(event, Ended | Failed)
            try:
                self._deliver(event)
            except Exception:
                logger.exception("session %s: its client cannot be told; giving it up", self._id)
                ended = True
            if ended:
                self._sessions.end(self._id)

    def begin(self, sequence: SequenceState) -> None:
        with self._sessions.changed:
            if self.ended:
                return
            sequence.of_session = True
            sequence.deliver = partial(self._take, sequence, sequence.deliver)
            self._work[sequence.request.id] = sequence
            self._sessions.begin(sequence)

    def drop(self, sequence: SequenceState) -> None:
        with self._sessions.changed:
            self._release(sequence)
            self._sessions.drop(sequence.request.id)

    def fail(self, error: ServeError) -> None:
        self.emit(Failed(self._id, error))

    @contextlib.contextmanager
    def guard(self) -> Iterator[None]:
        """What goes wrong in the block ends this session, and no other."""
        try:
            yield
        except Exception:
            logger.exception("session %s failed", self._id)
            self.fail(EngineFailed("The engine failed on this session."))

    def _take(self, sequence: SequenceState, take: Callable[[Event], None], event: Event) -> None:
        if not isinstance(event, Delta):
            self._release(sequence)
        with self.guard():
            take(event)

    def _release(self, sequence: SequenceState) -> None:
        self._work.pop(sequence.request.id, None)
        sequence.deliver = _to_nobody


def _to_nobody(_event: Event) -> None: ...
