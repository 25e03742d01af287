"""An answer under a constraint satisfies it, whatever the LLM prefers, however the passes are cut."""

import dataclasses
import json
import time
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from random import Random
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher, LLParserLimits

from models.chain import Models
from models.text import constraint as token_constraint
from models.text import grammar
from models.text.constraint import Grammars, TokenConstraint
from server.engine.runner.runner import Runner
from server.engine.runner.sequence import SequenceState
from server.engine.runner.sequence_builder import new_sequence
from server.engine.runner.speculation import TokenDraft
from server.engine.types.events import Ended
from server.engine.types.options import Constraint, SamplingOptions, Scope
from server.engine.types.requests import InstructRequest, LiveRequest, SpeechTask
from server.errors import InvalidConstraint, InvalidRequest
from tests.support.clients.engine_client import Client, instruct, serving
from tests.support.clients.live_client import LiveClient
from tests.support.clients.runner_client import Answer, fake_runner, run
from tests.support.fakes.fake_models import (
    USUAL_TOKENS,
    FakeLLM,
    fake_models,
    silence,
    speech,
    tiny_template,
    tiny_tokeniser,
    tokeniser_definition,
)
from tests.support.inputs.constraints import constraints, satisfies
from tests.support.tasks import change_task

MAX_TOKENS = 150
ENDS = set(tiny_template().end_tokens)
VOCABULARY_SIZE = len(tokeniser_definition()["model"]["vocab"])

chunk_sizes = st.lists(st.integers(1, 40), min_size=1, max_size=4)
samplings = st.builds(
    SamplingOptions,
    max_tokens=st.just(MAX_TOKENS),
    temperature=st.sampled_from([0.0, 1.0]),
    top_k=st.sampled_from([0, 3]),
    top_p=st.sampled_from([1.0, 0.5]),
    repetition_penalty=st.sampled_from([1.0, 1.3]),
    logprobs=st.sampled_from([None, 2]),
    seed=st.integers(0, 2**63),
    constraint=constraints,
)
requests = st.builds(
    lambda seed, sampling: InstructRequest("r", speech(seed), SpeechTask("Transcribe.", sampling)),
    st.integers(0, 2**32),
    samplings,
)


@cache
def models() -> Models:
    """Return fake models whose LLM often wants to end, and mostly says the same two words."""
    return fake_models(FakeLLM(mean_tokens=4))


def asked(kind: str, text: str, audio_s: float = 1.0, **options: object) -> InstructRequest:
    constraint = Constraint(kind, text)  # type: ignore[arg-type]
    return instruct("r", speech(3, audio_s), constraint=constraint, **{"max_tokens": MAX_TOKENS, **options})  # type: ignore[arg-type]


def answer(request: InstructRequest) -> tuple[SequenceState, Answer]:
    return run(Runner(models()), request)


def new_grammars() -> Grammars:
    return Grammars(tiny_tokeniser(), tiny_template().end_tokens, VOCABULARY_SIZE)


def allowed(token_constraint: TokenConstraint) -> set[int]:
    return set(np.flatnonzero(np.isfinite(token_constraint.mask(np.zeros(VOCABULARY_SIZE, np.float32)))).tolist())


@settings(max_examples=100)
@given(request=requests)
def test_every_answer_satisfies_its_constraint(request: InstructRequest) -> None:
    constraint = request.task.sampling.constraint
    assert constraint is not None
    sequence, answered = answer(request)
    assert answered.finish_reason == "stop"
    assert satisfies(answered.text, constraint), answered.text
    assert not set(sequence.tokens) & set(tiny_tokeniser().special_tokens.values())


@given(request=requests, chunks=chunk_sizes, preempt_at=st.sets(st.integers(1, 20), max_size=3))
def test_proposals_chunks_and_preemption_change_nothing(
    request: InstructRequest, chunks: list[int], preempt_at: set[int]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SequenceState, "propose", lambda _self: None)
        plain, alone = answer(request)
    _, answered = run(Runner(models()), request, chunks, sorted(preempt_at))
    assert answered == alone
    assert plain.llm_passes == len(plain.tokens) + (alone.finish_reason == "stop" and not plain.token_constraint.complete)


@given(constraint=constraints, seed=st.integers(0, 2**32))
def test_a_follower_lets_the_end_come_where_the_answer_satisfies(constraint: Constraint, seed: int) -> None:
    """The end may come at these positions of a random walk, and at no other."""
    random, following, tokens = Random(seed), models().grammars.follow(constraint.kind, constraint.grammar), list[int]()
    while not following.complete:
        choices = allowed(following)
        content = b"".join(map(tiny_tokeniser().token_bytes, tokens))
        assert choices & ENDS == (ENDS if is_satisfied(content, constraint) else set())
        if not choices - ENDS:
            break
        tokens.append(random.choice(sorted(choices - ENDS)))
        following.advance(tokens[-1])
    assert satisfies(tiny_tokeniser().decode(tokens), constraint)


def is_satisfied(content: bytes, constraint: Constraint) -> bool:
    try:
        return satisfies(content.decode(), constraint)
    except (ValueError, jsonschema.ValidationError):
        return False


def test_what_is_forced_costs_few_passes() -> None:
    schema = {"type": "object", "properties": {"coffee drink": {"enum": ["latte", "mocha"]}}, "required": ["coffee drink"]}
    sequence, answered = answer(asked("json_schema", json.dumps({**schema, "additionalProperties": False})))
    assert json.loads(answered.text)["coffee drink"] in ("latte", "mocha")
    assert sequence.llm_passes < len(sequence.tokens) / 3
    assert (sequence.drafted, sequence.accepted) == (0, 0), "they are none of the draft's"


def test_a_transcript_in_json_is_drafted_too() -> None:
    """The fakes' draft is right about every second token, and continues where it was after the JSON around it."""
    usual = tiny_tokeniser().decode(USUAL_TOKENS)
    schema = {"type": "object", "properties": {"text": {"type": "string", "pattern": f"^[{usual}]{{30}}$"}}, "required": ["text"]}
    sequence, answered = answer(asked("json_schema", json.dumps({**schema, "additionalProperties": False}), audio_s=3.0))
    assert len(json.loads(answered.text)["text"]) == 30
    assert sequence.accepted > 5


def test_a_draft_waits_until_the_constraint_lets_its_words_stand() -> None:
    sequence = new_sequence(models(), asked("regex", "[xyz]{3}[89]{9}"), lambda _event: None)
    sequence.draft = TokenDraft(USUAL_TOKENS * 5)
    for token in tiny_tokeniser().encode("xyz"):
        sequence.append(token)
        assert sequence.draft.propose(3) == (USUAL_TOKENS * 5)[:3]
    for count, token in enumerate((USUAL_TOKENS * 5)[:9], start=1):
        sequence.append(token)
        assert sequence.draft.propose(3) == (USUAL_TOKENS * 5)[count : count + 3]
    assert sequence.finish_reason == "stop"


def test_an_answer_ends_with_what_it_has_to_be() -> None:
    """There is no pass for the end, and the reason is `stop`, not `length`."""
    tokens = tiny_tokeniser().encode("zwölf, wie bitte")
    _, answered = answer(asked("choice", json.dumps(["zwölf, wie bitte"]), max_tokens=len(tokens)))
    assert (answered.text, answered.finish_reason) == ("zwölf, wie bitte", "stop")
    assert list(answered.tokens) == tokens
    _, cut = answer(asked("choice", json.dumps(["zwölf, wie bitte"]), max_tokens=len(tokens) - 1))
    assert (cut.text, cut.finish_reason) == ("zwölf, wie bitt", "length")


def test_blanks_around_an_answer_are_part_of_it() -> None:
    assert answer(asked("choice", json.dumps([" \n a  "])))[1].text == " \n a  "


def test_a_stop_string_ends_an_answer_all_the_same() -> None:
    _, answered = answer(asked("choice", json.dumps(["one, two"]), stop=(",",)))
    assert (answered.text, answered.finish_reason) == ("one", "stop")


def test_logprobs_are_the_models_own() -> None:
    runner, llm = fake_runner()
    llm.mean_tokens = 10**9
    request = asked("choice", json.dumps(["one", "two"]), logprobs=3)
    sequence, _ = run(runner, request)
    free, _ = run(runner, change_task(request, sampling=SamplingOptions(logprobs=3)))
    assert sequence.logprobs[0].top == free.logprobs[0].top
    assert sequence.logprobs[0].logprob < free.logprobs[0].logprob


def test_silence_has_no_answer_whatever_it_should_have_been() -> None:
    request = dataclasses.replace(asked("choice", json.dumps(["one", "two"])), audio=silence())
    _, answered = answer(request)
    assert (answered.text, answered.finish_reason) == ("", "no_speech")


def test_a_constraint_goes_with_no_relaxed_draft() -> None:
    with pytest.raises(InvalidRequest, match="together with regex") as refusal:
        new_sequence(models(), change_task(asked("regex", "a"), draft="relaxed"), lambda _event: None)
    assert refusal.value.param == "draft"


def test_a_constraint_that_turns_out_too_complex_fails_its_request_alone() -> None:
    with serving() as engine:
        failing = Client(engine, dataclasses.replace(asked("regex", "[ab]a{100000}"), id="failing"))
        fine = Client(engine, asked("regex", "[ab]a{10}"))
        assert fine.done().text[1:] == "a" * 10
        error = failing.error()
    assert isinstance(error, InvalidConstraint)
    assert (error.param, "too complex" in error.message) == ("regex", True)


def test_a_constraint_that_takes_too_long_fails_its_request_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_constraint, "START_CPU_S", 0.0)
    monkeypatch.setattr(token_constraint, "CPU_S_PER_TOKEN", 1e-9)
    with serving() as engine:
        failing = Client(engine, asked("regex", "[ab]{100}"))
        fine = Client(engine, instruct("fine", speech(3)))
        assert fine.done().finish_reason
        error = failing.error()
    assert isinstance(error, InvalidConstraint)
    assert (error.param, "takes too long" in error.message) == ("regex", True)


def test_threads_that_want_the_same_grammar_compile_it_once(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = 0

    def compile_slowly(*arguments: Any) -> LLMatcher:
        nonlocal compiled
        compiled += 1
        time.sleep(0.1)
        return grammar.compile_grammar(*arguments)

    monkeypatch.setattr(token_constraint, "compile_grammar", compile_slowly)
    grammars = new_grammars()
    with ThreadPoolExecutor(4) as threads:
        assert len(list(threads.map(lambda _number: grammars.follow("regex", "[ab]{3}"), range(4)))) == 4
    assert compiled == 1


def test_engines_refuse_at_once_what_no_answer_can_match() -> None:
    with serving() as engine, pytest.raises(InvalidConstraint, match="unclosed group"):
        Client(engine, asked("regex", "a(b"))


def test_answers_that_share_a_grammar_have_its_limits_each_to_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    """The lexer learns during an answer, up to a limit that is enough for any of these answers and not for all of them."""
    compiled = 0

    def compile_grammar(*arguments: Any) -> LLMatcher:
        nonlocal compiled
        compiled += 1
        return grammar.compile_grammar(*arguments)

    monkeypatch.setattr(grammar, "LIMITS", LLParserLimits(max_lexer_states=200, verbose_errors=False))
    monkeypatch.setattr(token_constraint, "compile_grammar", compile_grammar)
    for seed in range(20):
        walk(new_grammars(), seed)
    assert compiled == 20
    shared = new_grammars()
    for seed in range(20):
        walk(shared, seed)
    assert compiled > 21


def walk(grammars: Grammars, seed: int) -> None:
    """Follow a random answer of 60 tokens."""
    random, following = Random(seed), grammars.follow("regex", "(?s:.*)a(?s:.){12}b(?s:.*)c(?s:.){12}")
    for _ in range(60):
        following.advance(random.choice(sorted(allowed(following) - ENDS)))


@pytest.mark.parametrize("scope", ["utterance", "recording"])
def test_live_answers_match_what_they_have_to(scope: Scope) -> None:
    """With the scope `recording` this is the one answer about all of it."""
    audio = np.concatenate([speech(1, 0.8), silence(), speech(2, 0.8), silence()])
    request = LiveRequest(
        "session", SpeechTask("Transcribe.", asked("choice", '["one", "two"]').task.sampling), scope=scope, partials=False
    )
    with serving() as engine:
        client = LiveClient(engine, request)
        client.say(audio)
        ended = client.end()
    assert isinstance(ended, Ended)
    texts = client.texts() if ended.answer is None else [ended.answer.text]
    assert len(texts) == (2 if scope == "utterance" else 1)
    assert set(texts) <= {"one", "two"}


def test_a_session_whose_answers_can_match_nothing_is_refused_at_once() -> None:
    request = LiveRequest("session", SpeechTask("Transcribe.", asked("choice", "[]").task.sampling))
    with serving() as engine, pytest.raises(InvalidConstraint):
        LiveClient(engine, request)
