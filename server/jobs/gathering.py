"""One answer to a recording: what comes of its live session, put together. Pure."""

import dataclasses
from typing import Any, TypeVar

from server.engine.types.events import (
    Basis,
    Delta,
    Done,
    Ended,
    Event,
    Failed,
    FinishReason,
    Listened,
    LiveEvent,
    Problem,
    Speculation,
    StageTimes,
    TokenLogprob,
    Usage,
    UtteranceDone,
    Word,
)
from server.engine.types.requests import InstructRequest, LiveRequest
from server.errors import InvalidRequest

Sums = TypeVar("Sums", Usage, StageTimes, Speculation)


def live_request_from(request: InstructRequest, transcribes: bool) -> LiveRequest:
    """The session that answers a request whose audio is too long for one piece; `transcribes` is said of its instruction.

    Raises `InvalidRequest` where it wants the times of words that nobody says.
    """
    if request.word_times and not transcribes:
        raise InvalidRequest("Times of words and subtitles are offered for transcription only.", param="timestamps")
    return LiveRequest(
        id=request.id,
        instruction=request.instruction,
        sampling=request.sampling,
        client=request.client,
        priority=request.priority,
        draft=request.draft,
        scope="utterance" if transcribes else "recording",
        partials=False,
        word_times=request.word_times,
    )


class LongAudioAggregator:
    """Takes a session's events as they come, and makes of them those of one request.

    The answer is the texts of the utterances, joined with single spaces, or under the scope `recording` the text about all of
    them. What they all took is added up. A problem with one of them fails the whole.
    """

    def __init__(self, request: LiveRequest) -> None:
        self.listened_s = 0.0
        self.audio_s = 0.0
        self.basis: Basis = "utterances"
        self.sections = 1
        self._request = request
        self._texts: list[str] = []
        self._logprobs: list[TokenLogprob] = []
        self._words: list[Word] = []
        self._finish_reason: FinishReason = "no_speech"
        self._usage = Usage(0, 0, 0)
        self._times = StageTimes()
        self._speculation = Speculation()

    def take(self, event: LiveEvent) -> Event | None:
        """What the client of the one request is to hear of this, if anything. A `Done` or `Failed` is the last."""
        match event:
            case Listened():
                self.listened_s = event.audio_s
            case UtteranceDone():
                self._add_up(event.done)
                return self._next_text(event.done) if self._request.scope == "utterance" and event.done.text else None
            case Delta() | Failed():
                return event
            case Problem():
                return Failed(self._request.id, event.error)
            case Ended():
                return self._end(event)
        return None

    def _add_up(self, done: Done) -> None:
        self._usage = _sum(self._usage, done.usage)
        self._times = _sum(self._times, done.times)
        self._speculation = _sum(self._speculation, done.speculation)

    def _next_text(self, done: Done) -> Delta:
        delta = Delta(self._request.id, f" {done.text}" if self._texts else done.text, done.logprobs or ())
        self._texts.append(done.text)
        self._logprobs += delta.logprobs
        self._words += done.words or ()
        if self._finish_reason != "length":
            self._finish_reason = done.finish_reason
        return delta

    def _end(self, ended: Ended) -> Done:
        self.audio_s, self.basis, self.sections = ended.audio_s, ended.basis, ended.sections
        if ended.answer is not None:
            self._add_up(ended.answer)
            return self._done(ended.answer.text, ended.answer.finish_reason, ended.answer.logprobs, ended.answer.words)
        wants_logprobs = self._request.sampling.logprobs is not None
        return self._done(
            " ".join(self._texts),
            self._finish_reason,
            tuple(self._logprobs) if wants_logprobs else None,
            tuple(self._words) if self._request.word_times else None,
        )

    def _done(
        self,
        text: str,
        finish_reason: FinishReason,
        logprobs: tuple[TokenLogprob, ...] | None,
        words: tuple[Word, ...] | None,
    ) -> Done:
        return Done(
            self._request.id, text, finish_reason, self._usage, self._times, self._speculation, logprobs=logprobs, words=words
        )


def _sum(left: Sums, right: Sums) -> Sums:
    values: dict[str, Any] = {
        field.name: getattr(left, field.name) + getattr(right, field.name) for field in dataclasses.fields(left)
    }
    return type(left)(**values)
