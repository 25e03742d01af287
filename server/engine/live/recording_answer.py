"""The answer to an instruction about all utterances of a session together.

It comes from the speech itself as long as all frames fit the LLM; then from the joined transcript; and if even that is too long,
the instruction is answered for sections of the transcript, and then for those answers joined.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from models.chain import Models
from models.protocols import Float32, ProjectorOutput
from server.engine.runner.sequence import SequenceState
from server.engine.runner.sequence_builder import new_sequence
from server.engine.types.events import Basis, Delta, Done, Ended, Event, Failed, LiveEvent, StageTimes, Usage
from server.engine.types.requests import InstructRequest, LiveRequest, SpeechTask
from server.errors import EngineFailed

# Answers about sections are at most this share of what is read at once, so that they get fewer.
SECTION_ANSWER_SHARE = 0.25


class RecordingAnswer:
    """Takes every utterance, then answers once: it emits `Delta`s, then `Ended` or `Failed`."""

    def __init__(
        self,
        request: LiveRequest,
        models: Models,
        emit_event: Callable[[LiveEvent], None],
        start_sequence: Callable[[SequenceState], None],
    ) -> None:
        """Raises a `ServeError` if the instruction leaves no room for an answer."""
        self._request = request
        self._models = models
        self._emit_event = emit_event
        self._start_sequence = start_sequence
        self._requests = 0
        self._texts: list[str] = []
        self._frames: list[Float32] = []
        self._fits = models.bridge == "frames"
        self._audio_s = 0.0
        self._sections: list[str | None] = []
        self._section_count = 1
        empty = self._sequence(self._speech([]), lambda _event: None)
        self._room = models.prompt_room(request.task.sampling.max_tokens) - len(empty.prompt_ids)
        if self._room < 1:
            raise EngineFailed("The instruction and its answer leave no room for speech.")

    def add_utterance(self, text: str, frames: Float32) -> None:
        """Take the next utterance: its transcript, and its frames for the LLM [frames, embedding_size]."""
        if text:
            self._texts.append(text)
        self._frames.append(frames)
        if sum(map(len, self._frames)) > self._room:
            self._fits = False
        if not self._fits:
            self._frames.clear()

    def request_answer(self, audio_s: float) -> None:
        """Answer about all utterances, after the last of them."""
        self._audio_s = audio_s
        if not self._texts:
            silence = Done(self._request.id, "", "no_speech", Usage(0, 0, 0), StageTimes())
            self._emit_event(Ended(self._request.id, audio_s, "audio", answer=silence))
        elif self._fits:
            self._request_final(self._speech(self._frames), "audio")
        else:
            self._answer_from_text(" ".join(self._texts))

    def _answer_from_text(self, text: str) -> None:
        """Answer from a text, by sections if it is too long."""
        models = self._models
        tokens = models.tokeniser.encode(text)
        if len(tokens) <= self._room:
            basis: Basis = "transcript" if self._section_count == 1 else "sections"
            self._request_final(self._speech([models.require_llm().embed(tokens)]), basis)
            return
        sections = cut_evenly(tokens, self._room, models.tokeniser.begins_word)
        self._sections = [None] * len(sections)
        self._section_count += len(sections) - (self._section_count == 1)
        longest_answer = max(1, int(self._room * SECTION_ANSWER_SHARE))
        for index, section in enumerate(sections):
            sequence = self._sequence(self._speech([models.require_llm().embed(section)]), partial(self._take_section, index))
            sequence.max_tokens = min(sequence.max_tokens, longest_answer)
            self._start_sequence(sequence)

    def _take_section(self, index: int, event: Event) -> None:
        if isinstance(event, Failed):
            self._emit_event(Failed(self._request.id, event.error))
        elif isinstance(event, Done):
            self._sections[index] = event.text
            answers = [answer for answer in self._sections if answer is not None]
            if len(answers) == len(self._sections):
                self._answer_from_text("\n".join(answers))

    def _request_final(self, speech: ProjectorOutput, basis: Basis) -> None:
        self._start_sequence(self._sequence(speech, partial(self._take_final, basis), constrained=True))

    def _take_final(self, basis: Basis, event: Event) -> None:
        id = self._request.id
        match event:
            case Delta():
                self._emit_event(replace(event, request_id=id))
            case Failed(_, error):
                self._emit_event(Failed(id, error))
            case Done(usage=usage):
                if basis != "audio":
                    usage = replace(usage, audio_frames=0, text_tokens=usage.text_tokens + usage.audio_frames)
                done = replace(event, request_id=id, usage=usage)
                self._emit_event(Ended(id, self._audio_s, basis, self._section_count, done))

    def _speech(self, frames: Sequence[Float32]) -> ProjectorOutput:
        """Return frames for the LLM, joined, with no draft."""
        return ProjectorOutput(np.concatenate([np.empty((0, self._models.require_llm().embedding_size), np.float32), *frames]))

    def _sequence(self, speech: ProjectorOutput, deliver: Callable[[Event], None], *, constrained: bool = False) -> SequenceState:
        """Return a sequence over speech that is encoded; only the final answer follows the request's constraint."""
        self._requests += 1
        asked = self._request
        sampling = asked.task.sampling if constrained else replace(asked.task.sampling, constraint=None)
        task = SpeechTask(asked.task.instruction, sampling, draft="off")
        id, nothing = f"{asked.id}/whole {self._requests}", np.empty(0, np.float32)
        request = InstructRequest(id, nothing, task, asked.client, asked.priority)
        return new_sequence(self._models, request, deliver, encoded=speech)


def cut_evenly(tokens: Sequence[int], longest: int, begins_word: Callable[[int], bool]) -> list[Sequence[int]]:
    """Return parts of at most `longest` tokens, about equally long, each from a word's beginning if one is in reach."""
    count = -(-len(tokens) // longest)
    parts: list[Sequence[int]] = []
    start = 0
    while start < len(tokens):
        left = max(1, count - len(parts))
        end = min(start + longest, start + -(-(len(tokens) - start) // left))
        cut = next((each for each in range(end, start, -1) if each == len(tokens) or begins_word(tokens[each])), end)
        parts.append(tokens[start:cut])
        start = cut
    return parts
