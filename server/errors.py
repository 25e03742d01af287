"""Every error that a client can see: one class each, one table, one shape (the OpenAI error object).

Messages are complete sentences for the client; they never hold paths, addresses or tracebacks.
"""

from typing import Any, ClassVar, Self


class ServeError(Exception):
    """A fault of the server that has no class of its own.

    Every other error is a subclass. `message` is public, and `code` is stable: clients may branch on it.
    """

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    code: ClassVar[str] = "internal_error"

    def __init__(self, message: str, *, param: str | None = None, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s

    def body(self) -> dict[str, Any]:
        """Return the JSON body of the reply."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}


class InvalidRequest(ServeError):
    """A field is missing, doubled, of the wrong kind or out of range, or the request is malformed."""

    status, type, code = 400, "invalid_request_error", "invalid_request"


class UnknownField(InvalidRequest):
    """The request has a field that the dialect does not know."""

    code = "unknown_field"


class UnsupportedOption(InvalidRequest):
    """The option is known, and this server or its model does not offer it."""

    code = "unsupported_option"


class InvalidInstruction(InvalidRequest):
    """The instruction is empty or too long."""

    code = "invalid_instruction"


class InvalidConstraint(InvalidRequest):
    """No answer can match the schema, regular expression or choice."""

    code = "invalid_constraint"

    @classmethod
    def because(cls, kind: str, problem: object) -> Self:
        """Return the error of a constraint whose kind is also the name of its field; `problem` says what is wrong, and where."""
        return cls(f"No answer can match this {kind}: {problem}.", param=kind)


class PromptTooLong(InvalidRequest):
    """Audio and instruction together do not fit the LLM."""

    code = "prompt_too_long"


class AudioTooShort(InvalidRequest):
    """The audio is shorter than `min_audio_s`."""

    code = "audio_too_short"


class InvalidAudio(InvalidRequest):
    """The file was decoded, but its samples are no sound: NaN, infinite or far too large."""

    code = "invalid_audio"


class AudioTooLong(InvalidRequest):
    """The audio is longer than `max_audio_s`."""

    status, code = 413, "audio_too_long"


class BodyTooLarge(InvalidRequest):
    """The body is larger than `max_body_bytes`."""

    status, code = 413, "body_too_large"


class UndecodableAudio(InvalidRequest):
    """The file is in an unknown format, or so damaged that nothing can be decoded."""

    status, code = 415, "undecodable_audio"


class InvalidKey(InvalidRequest):
    """The request has no API key, or none that is valid."""

    status, code = 401, "invalid_api_key"


class ForbiddenHost(InvalidRequest):
    """The request calls the server by a name that is not its own."""

    status, code = 403, "forbidden_host"


class ForbiddenOrigin(InvalidRequest):
    """The request comes from the page of another server."""

    status, code = 403, "forbidden_origin"


class NotFound(InvalidRequest):
    """The server has no such path."""

    status, code = 404, "not_found"


class ModelNotFound(NotFound):
    """The server has no model with the name that was asked for."""

    code = "model_not_found"


class AdminRequired(InvalidRequest):
    """Only an operator may do this, and the request does not come from one."""

    status, code = 403, "admin_required"


class MethodNotAllowed(InvalidRequest):
    """The path takes another method."""

    status, code = 405, "method_not_allowed"


class UpgradeRequired(InvalidRequest):
    """The address takes WebSockets only."""

    status, code = 426, "upgrade_required"


class HeadTooLarge(InvalidRequest):
    """The head of the request is larger than 32 KiB."""

    status, code = 431, "head_too_large"


class Overloaded(ServeError):
    """The queue is full, the predicted wait is too long, or another client took the place."""

    status, type, code = 429, "rate_limit_error", "overloaded"


class RateLimited(Overloaded):
    """The API key may not be used for more at present."""

    code = "rate_limit_exceeded"


class DeadlineUnmeetable(Overloaded):
    """The answer would come after the request's deadline."""

    code = "deadline_unmeetable"


class NotReady(ServeError):
    """The server starts or stops, or a process of it was lost and is being replaced."""

    status, type, code = 503, "server_error", "not_ready"


class ModelNotLoaded(NotReady):
    """An operator has unloaded the model."""

    code = "model_not_loaded"


class ModelLoadFailed(ServeError):
    """A model could not be loaded; the message says why."""

    code = "model_load_failed"


class EngineFailed(ServeError):
    """The engine failed while it worked on this request."""

    code = "engine_failed"


class BodyTimedOut(InvalidRequest):
    """The client was too slow to send its body."""

    status, code = 408, "body_timed_out"


class HeadTimedOut(InvalidRequest):
    """The client was too slow to send the head of its request."""

    status, code = 408, "head_timed_out"


class RequestTimedOut(ServeError):
    """There was no answer within the server's time limit, and the work was stopped."""

    status, type, code = 504, "server_error", "request_timed_out"


class SessionIdle(InvalidRequest):
    """The client of a live session sent nothing for too long."""

    status, code = 408, "session_idle"


class SessionTooLong(InvalidRequest):
    """A live session lasted as long as one may."""

    status, code = 413, "session_too_long"
