"""The engine on fake models: what it answers, whoever else it serves, and what it refuses."""

from dataclasses import astuple

import numpy as np
import pytest

from models.protocols import DecodeRow, PrefillRow
from models.text.tokeniser import lay_out_prompt
from server.engine.types.events import Usage
from server.engine.types.requests import InstructRequest
from server.errors import PromptTooLong
from tests.support.clients.engine_client import NEVER, Client, answers_alone, crowd, instruct, serving, without_times
from tests.support.fakes.fake_models import END_TOKEN, FakeEncoder, FakeLLM, fake_models, silence, speech


def expected_text(request: InstructRequest) -> str:
    """The greedy answer, without an engine."""
    models = fake_models(llm := FakeLLM(slots=1))
    ids = lay_out_prompt(models.template, models.tokeniser, request.task.instruction)
    (speech_frames,) = models.projector.project(models.encoder.encode([models.features(request.audio)]))
    before = [llm.embed(ids.before_speech), models.projector.boundary_before]
    after = [models.projector.boundary_after, llm.embed(ids.after_speech)]
    prompt = np.concatenate([*before, speech_frames.embeddings, *after])
    (logits,) = llm.prefill([PrefillRow(0, 0, prompt)])
    tokens: list[int] = []
    while (token := int(logits.argmax())) != END_TOKEN and len(tokens) < request.task.sampling.max_tokens:
        (logits,) = llm.decode([DecodeRow(0, len(prompt) + len(tokens), (token,))])
        tokens.append(token)
    return models.tokeniser.decode(tokens).strip()


@pytest.mark.parametrize("seed", range(8))
def test_the_answer_is_what_the_models_say(seed: int) -> None:
    request = instruct("a", speech(seed, duration_s=0.5 + seed / 4), f"Say {seed}.", max_tokens=5 + 4 * seed)
    with serving() as engine:
        assert Client(engine, request).done().text == expected_text(request)


def test_company_does_not_change_an_answer() -> None:
    requests = crowd(20)
    one_by_one = answers_alone(requests)
    encoder = FakeEncoder()
    with serving(encoder=encoder) as engine:
        encoder.gate.clear()
        clients = [Client(engine, request) for request in requests]
        encoder.gate.set()
        together = [client.done() for client in clients]
    assert max(encoder.batches) > 1
    assert list(map(without_times, together)) == list(map(without_times, one_by_one))
    assert {done.finish_reason for done in one_by_one} == {"stop", "length"}
    assert len({done.text for done in one_by_one}) > len(one_by_one) / 2


def test_silence_is_answered_with_nothing_and_without_the_llm() -> None:
    llm = FakeLLM()
    with serving(llm) as engine:
        prefills = llm.prefills
        client = Client(engine, instruct("silent", silence()))
        done = client.done()
    assert (done.text, done.finish_reason) == ("", "no_speech")
    assert done.usage == Usage(audio_frames=0, text_tokens=0, output_tokens=0)
    assert client.events == [done]
    assert llm.prefills == prefills


def test_usage_counts_frames_and_tokens() -> None:
    with serving(FakeLLM(mean_tokens=NEVER)) as engine:
        done = Client(engine, instruct("a", speech(1, duration_s=2.0), max_tokens=3)).done()
        longer = Client(engine, instruct("b", speech(1, duration_s=2.0), "Transcribe. 1", max_tokens=3)).done()
    assert done.usage.audio_frames == 25
    assert done.usage.output_tokens == 3
    assert longer.usage.text_tokens == done.usage.text_tokens + 2


def test_the_times_of_the_stages_add_up() -> None:
    with serving(FakeLLM(mean_tokens=NEVER)) as engine:
        times = Client(engine, instruct("a", speech(1))).done().times
    *stages_s, total_s = astuple(times)
    assert min(stages_s) >= 0
    assert sum(stages_s) == pytest.approx(total_s)
    for stage_s in (times.features_s, times.encode_s, times.adapter_s, times.prefill_s, times.decode_s, times.detokenise_s):
        assert stage_s > 0


def test_without_a_queue_a_slot_is_free_again_as_soon_as_its_answer_is_out() -> None:
    with serving(FakeLLM(slots=1), queue_limit=0) as engine:
        for index in range(50):
            Client(engine, instruct(f"r{index}", speech(index))).done()


def test_speech_that_leaves_no_room_fails_with_prompt_too_long() -> None:
    with serving(FakeLLM(max_positions=60)) as engine:
        assert isinstance(Client(engine, instruct("long", speech(1, duration_s=5.0))).error(), PromptTooLong)


def test_an_answer_is_cut_where_the_positions_end() -> None:
    llm = FakeLLM(max_positions=60, mean_tokens=NEVER)
    with serving(llm) as engine:
        request = instruct("a", speech(2, duration_s=2.0), "no", max_tokens=1000)
        done = Client(engine, request).done()
    boundaries = 4
    assert done.finish_reason == "length"
    assert done.usage.audio_frames + done.usage.text_tokens + boundaries + done.usage.output_tokens == llm.max_positions
