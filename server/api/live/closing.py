"""How a live session ends: its outcome, the WebSocket close code, and the error that the client is told first."""

from dataclasses import dataclass

from server.errors import NotReady, Overloaded, ServeError, SessionIdle, SessionTooLong
from server.observability.live import Outcome

NORMAL, POLICY, SERVER_ERROR, RESTART, TRY_AGAIN = 1000, 1008, 1011, 1012, 1013


@dataclass(frozen=True)
class CloseReason:
    """The end of a session: the error that is sent first, and the close code, None if the client does not read any more."""

    outcome: Outcome
    close_code: int | None = None
    error: ServeError | None = None


def close_reason_of(error: ServeError) -> CloseReason:
    """Return how a session ends because of this error."""
    match error:
        case SessionIdle():
            return CloseReason("idle", POLICY, error)
        case SessionTooLong():
            return CloseReason("too_long", POLICY, error)
        case Overloaded():
            return CloseReason("overloaded", TRY_AGAIN, error)
        case NotReady():
            return CloseReason("not_ready", TRY_AGAIN, error)
        case ServeError(status=status) if status < 500:
            return CloseReason("client_error", POLICY, error)
        case _:
            return CloseReason("server_error", SERVER_ERROR, error)
