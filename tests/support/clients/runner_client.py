"""One request after the other through the runner's stages, without an engine."""

from collections.abc import Sequence
from dataclasses import dataclass

from server.engine.runner.runner import Runner
from server.engine.runner.sequence import SequenceState
from server.engine.runner.sequence_builder import new_sequence
from server.engine.types.events import Done
from server.engine.types.requests import InstructRequest
from tests.support.fakes.fake_models import FakeLLM, fake_models


@dataclass(frozen=True)
class Answer:
    """The parts of an answer that must not depend on how a request was run."""

    text: str
    tokens: tuple[int, ...]
    finish_reason: str
    logprobs: object


def fake_runner(encoder_cache_bytes: int = 0, prefix_cache_bytes: int = 2**20) -> tuple[Runner, FakeLLM]:
    llm = FakeLLM()
    runner = Runner(fake_models(llm), prefix_cache_bytes, encoder_cache_bytes)
    return runner, llm


def run(
    runner: Runner, request: InstructRequest, chunks: Sequence[int] = (1000,), preempt_at: Sequence[int] = ()
) -> tuple[SequenceState, Answer]:
    """All of a request in slot 0, its prefill in chunks (the last size repeats), preempted at some of its passes."""
    sequence = new_sequence(runner.models, request, lambda _event: None)
    runner.encode([sequence])
    passes = 0
    while not sequence.finished:
        if passes in preempt_at and not sequence.entry.to_prefill:
            runner.preempt(sequence)
        if sequence.entry.to_prefill:
            runner.prefill([(sequence, chunks[min(passes, len(chunks) - 1)])])
        else:
            runner.decode([sequence])
        passes += 1
        assert passes < 1000
    done = sequence.terminal_event()
    assert isinstance(done, Done), done
    return sequence, Answer(done.text, tuple(sequence.tokens), done.finish_reason, done.logprobs)
