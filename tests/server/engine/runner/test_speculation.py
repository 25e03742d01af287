"""A draft changes what an answer costs and nothing else."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.ctc import collapse
from server.engine.runner.sequence_builder import new_sequence
from server.engine.runner.speculation import DraftGate, TokenDraft
from server.engine.runner.verification import RELAXED_OVERRUN
from server.engine.types.options import DraftPolicy, SamplingOptions
from server.engine.types.requests import InstructRequest, SpeechTask
from server.errors import InvalidRequest
from tests.support.clients.runner_client import fake_runner, run
from tests.support.fakes.fake_models import fake_models, speech
from tests.support.tasks import change_task

samplings = st.builds(
    SamplingOptions,
    max_tokens=st.integers(1, 60),
    temperature=st.sampled_from([0.0, 0.0, 0.7, 1.5]),
    top_k=st.sampled_from([0, 5]),
    top_p=st.sampled_from([1.0, 0.8]),
    repetition_penalty=st.sampled_from([1.0, 1.1]),
    logprobs=st.sampled_from([None, 2]),
    seed=st.integers(0, 2**63),
)
requests = st.builds(
    lambda seed, seconds, sampling: InstructRequest("r", speech(seed, seconds), SpeechTask("Transcribe.", sampling)),
    st.integers(0, 2**32),
    st.floats(0.1, 3.0),
    samplings,
)
chunk_sizes = st.lists(st.integers(1, 40), min_size=1, max_size=5)
pass_numbers = st.sets(st.integers(1, 20), max_size=3)


def with_draft(request: InstructRequest, draft: DraftPolicy) -> InstructRequest:
    return change_task(request, draft=draft)


@given(request=requests, chunks=chunk_sizes, preempt_at=pass_numbers)
def test_exact_drafts_give_what_no_draft_gives(request: InstructRequest, chunks: list[int], preempt_at: set[int]) -> None:
    _, plain = run(fake_runner()[0], with_draft(request, "off"))
    _, drafted = run(fake_runner()[0], with_draft(request, "exact"), chunks, sorted(preempt_at))
    assert drafted == plain


@given(request=requests, chunks=chunk_sizes, preempt_at=pass_numbers)
def test_a_relaxed_answer_does_not_depend_on_how_it_was_run(
    request: InstructRequest, chunks: list[int], preempt_at: set[int]
) -> None:
    relaxed = with_draft(request, "relaxed")
    _, whole = run(fake_runner()[0], relaxed)
    _, in_pieces = run(fake_runner()[0], relaxed, chunks, sorted(preempt_at))
    assert in_pieces == whole


def test_relaxed_answers_differ_from_exact_ones() -> None:
    differing = 0
    for seed in range(10):
        request = InstructRequest("r", speech(seed, 3.0), SpeechTask("Transcribe.", SamplingOptions(max_tokens=40)))
        _, exact = run(fake_runner()[0], request)
        _, relaxed = run(fake_runner()[0], with_draft(request, "relaxed"))
        differing += relaxed.tokens != exact.tokens
    assert differing > 0


def test_a_relaxed_answer_does_not_run_away_from_its_draft() -> None:
    for seed in range(10):
        request = InstructRequest(
            "r", speech(seed, 1.0), SpeechTask("Transcribe.", SamplingOptions(max_tokens=200), draft="relaxed")
        )
        runner, llm = fake_runner()
        drafted = collapse(
            runner.models.projector.project(runner.models.encoder.encode([runner.models.features(request.audio)]))[0]
            .require_draft()
            .best_token
        )
        llm.mean_tokens = 10**9
        _, answer = run(runner, request)
        assert answer.finish_reason == "stop"
        assert 0 < len(answer.tokens) <= len(drafted) + RELAXED_OVERRUN


def test_drafts_save_passes() -> None:
    """The fakes' draft is right about every second token, so there must be more tokens than passes."""
    drafted = passes = tokens = 0
    for seed in range(20):
        runner, _ = fake_runner()
        sequence, _ = run(
            runner, InstructRequest("r", speech(seed, 3.0), SpeechTask("Transcribe.", SamplingOptions(max_tokens=60)))
        )
        assert sequence.accepted <= sequence.drafted
        assert sum(runner.counters.drafted) == sequence.drafted
        assert sum(runner.counters.accepted) == sequence.accepted
        assert runner.counters.generated_tokens == len(sequence.tokens)
        drafted += sequence.drafted
        passes += sequence.llm_passes
        tokens += len(sequence.tokens)
    assert drafted > 0
    assert passes < 0.9 * tokens


def test_without_a_draft_every_token_is_a_pass() -> None:
    request = InstructRequest("r", speech(3), SpeechTask("Transcribe.", SamplingOptions(max_tokens=9), draft="off"))
    sequence, answer = run(fake_runner()[0], request)
    assert sequence.drafted == 0
    assert sequence.llm_passes == len(answer.tokens) + (answer.finish_reason == "stop")


def test_relaxed_is_refused_where_no_transcript_is_asked_for() -> None:
    models = dataclasses.replace(fake_models(fake_runner()[1]), boundary_instructions=frozenset({"transcribe"}))
    request = InstructRequest("r", speech(3), SpeechTask("Who speaks?", draft="relaxed"))
    with pytest.raises(InvalidRequest, match="transcription only"):
        new_sequence(models, request, lambda _event: None)
    new_sequence(models, change_task(request, instruction="Transcribe!"), lambda _event: None)


def test_a_draft_goes_on_behind_the_llms_own_word() -> None:
    draft = TokenDraft((1, 2, 3, 4, 5, 6))
    draft.advance(1)
    draft.advance(9)
    assert draft.propose(10) == (3, 4, 5, 6), "9 stands for 2"
    draft.advance(4)
    assert draft.propose(10) == (5, 6), "3 was left out"
    assert draft.propose(1) == (5,)
    assert draft.propose(-1) == ()


def test_a_draft_that_is_never_right_is_given_up() -> None:
    draft = TokenDraft(range(100))
    proposals = []
    while proposal := draft.propose(1000):
        proposals.append(len(proposal))
        draft.learn(len(proposal), 0)
    assert proposals == [48, 8, 4, 2, 1]


def test_the_gate_closes_for_an_instruction_whose_drafts_fail_and_probes_it() -> None:
    gate = DraftGate(min_acceptance=0.3, min_drafted=10, probe_every=4)
    gate.record("summarise", 20, 1)
    gate.record("transcribe", 20, 18)
    assert [gate.allows("summarise") for _ in range(8)] == [False, False, False, True] * 2
    assert gate.allows("transcribe")
    assert gate.allows("unheard of")
    for _ in range(10):
        gate.record("summarise", 20, 18)
    assert gate.allows("summarise"), "what was learnt long ago counts less"
