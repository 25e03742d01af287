"""One utterance of a live session: where it lies, what is made of it, and the events about it."""

from dataclasses import dataclass, field, replace

from models.text.tokeniser import PromptIds
from server.engine.live.agreed_text import AgreedText
from server.engine.live.stable_text import StableText
from server.engine.runner.caches import KeptSpeech
from server.engine.runner.sequence import SequenceState
from server.engine.types.events import Done, Failed, Partial, Problem, UtteranceDone, Word, shift_words
from server.engine.types.requests import SpeechTask


@dataclass(eq=False)
class Utterance:
    """One utterance: it begins at sample `start` and, once it is over, ends before `end`.

    `answer` runs from the first moment at which the utterance may be over, so that its `outcome` is near when it is over.
    `partial` is the hypothesis being made. The next one is due when the audio has got to `partial_due`, but, if audio comes
    faster than it is spoken, not before the clock shows `partial_due_at_s`. `hypothesis` are the tokens of the last one, if the
    projector drafts nothing. `kept` is what was computed for hypotheses that later ones, and the answer, need too.
    """

    number: int
    start: int
    task: SpeechTask
    prompt_ids: PromptIds
    text: StableText | AgreedText
    partial_due: int
    partial_due_at_s: float = 0.0
    end: int = 0
    answer: SequenceState | None = None
    outcome: Done | Failed | None = None
    partial: SequenceState | None = None
    hypothesis: tuple[int, ...] = ()
    kept: KeptSpeech = field(default_factory=KeptSpeech)

    def forget_kept(self) -> None:
        """Let go of what was kept, once nothing more is made of the utterance."""
        self.kept = KeptSpeech()
        if self.answer is not None:
            self.answer.kept = None

    def known_words(self, start: int, sample_rate_hz: int) -> tuple[Word, ...]:
        """Return the words of the last hypothesis behind sample `start`, in seconds from there; none if they have no times."""
        start_s, words = start / sample_rate_hz, self.text.words if isinstance(self.text, StableText) else []
        return shift_words([word for word in words if word.start_s >= start_s], -start_s)

    def final_event(self, session_id: str, sample_rate_hz: int) -> UtteranceDone | Problem:
        """Return the event that ends the utterance, which has an outcome."""
        start_s, end_s = self.start / sample_rate_hz, self.end / sample_rate_hz
        if self.outcome is None:
            raise RuntimeError("the utterance has no outcome yet")
        if isinstance(self.outcome, Failed):
            return Problem(session_id, self.outcome.error, self.number)
        words = None if self.outcome.words is None else shift_words(self.outcome.words, start_s)
        done = replace(self.outcome, request_id=session_id, words=words)
        return UtteranceDone(session_id, self.number, start_s, end_s, done)

    def partial_event(self, session_id: str, sample_rate_hz: int, end_s: float) -> Partial:
        """Return the utterance's text as it was heard up to `end_s`."""
        text = self.text
        return Partial(session_id, self.number, text.stable, text.tail, self.start / sample_rate_hz, text.stable_end_s, end_s)
