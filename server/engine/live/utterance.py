"""One utterance of a live session: its answer on the way, and its text while it is spoken."""

from dataclasses import dataclass, replace

from server.engine.live.stable_text import StableText
from server.engine.runner.sequence import SequenceState
from server.engine.types.events import Done, Failed, Partial, Problem, UtteranceDone, Word


@dataclass(eq=False)
class Utterance:
    """It begins at sample `start` and, once it is over, ends before `end`.

    `answer` runs from the first moment at which the utterance may be over, so that its `outcome` is near when it is. `partial`
    is the hypothesis on its way; the next one is due when the audio has got to `partial_due`.
    """

    number: int
    start: int
    instruction: str
    text: StableText
    partial_due: int
    end: int = 0
    answer: SequenceState | None = None
    outcome: Done | Failed | None = None
    partial: SequenceState | None = None

    def answered(self, session_id: str, sample_rate_hz: int) -> UtteranceDone | Problem:
        """The event that ends it; it has an outcome."""
        start_s, end_s = self.start / sample_rate_hz, self.end / sample_rate_hz
        if not isinstance(self.outcome, Done):
            error = self.outcome.error if self.outcome else None
            if error is None:
                raise RuntimeError("the utterance has no outcome yet")
            return Problem(session_id, error, self.number)
        words = self.outcome.words
        if words is not None:
            words = tuple(Word(word.text, word.start_s + start_s, word.end_s + start_s) for word in words)
        done = replace(self.outcome, request_id=session_id, words=words)
        return UtteranceDone(session_id, self.number, start_s, end_s, done)

    def heard_so_far(self, session_id: str, sample_rate_hz: int, end_s: float) -> Partial:
        """Its text, as it was heard up to `end_s`."""
        text = self.text
        return Partial(session_id, self.number, text.stable, text.tail, self.start / sample_rate_hz, text.stable_end_s, end_s)
