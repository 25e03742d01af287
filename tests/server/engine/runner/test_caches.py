"""The caches between requests: prefixes, and encoder outputs if the operator asks for them."""

import dataclasses

from server.engine.types.options import SamplingOptions
from server.engine.types.requests import InstructRequest, SpeechTask
from tests.support.clients.runner_client import fake_runner, run
from tests.support.fakes.fake_models import speech

SAMPLING = SamplingOptions(max_tokens=12)


def ask(seed: int, instruction: str = "Transcribe.", client: str = "") -> InstructRequest:
    return InstructRequest("r", speech(seed), SpeechTask(instruction, SAMPLING), client=client)


def test_a_known_prefix_is_not_computed_again_and_changes_nothing() -> None:
    runner, _ = fake_runner()
    first, _ = run(runner, ask(1))
    again, with_cache = run(runner, ask(2))
    _, without = run(fake_runner()[0], ask(2))
    assert (first.cached_tokens, again.cached_tokens) == (0, again.prefix_length)
    assert with_cache == without
    assert (runner.prefix_cache.hits, runner.prefix_cache.misses) == (1, 1)


def test_an_instruction_has_a_prefix_of_its_own() -> None:
    runner, _ = fake_runner()
    run(runner, ask(1))
    other, answer = run(runner, ask(1, "Translate."))
    assert other.cached_tokens == 0
    assert answer == run(fake_runner()[0], ask(1, "Translate."))[1]


def test_the_prefix_cache_is_bounded_and_can_be_switched_off() -> None:
    runner, _ = fake_runner(prefix_cache_bytes=3000)
    for index in range(20):
        run(runner, ask(1, f"Instruction {index}"))
        assert 0 < runner.prefix_cache.nbytes <= 3000
    none, _ = fake_runner(prefix_cache_bytes=0)
    run(none, ask(1))
    again, _ = run(none, ask(1))
    assert (again.cached_tokens, none.prefix_cache.nbytes) == (0, 0)


def test_several_instructions_on_one_clip_encode_it_once() -> None:
    runner, _ = fake_runner(encoder_cache_bytes=2**20)
    _, first = run(runner, ask(1, client="ann"))
    second, answer = run(runner, ask(1, "Translate.", client="ann"))
    assert (runner.encoder_cache.hits, runner.encoder_cache.misses) == (1, 1)
    assert second.times.encode_s == 0
    assert answer == run(fake_runner()[0], ask(1, "Translate."))[1]
    assert run(runner, ask(1, client="ann"))[1] == first


def test_nobody_meets_what_another_client_sent() -> None:
    runner, _ = fake_runner(encoder_cache_bytes=2**20)
    run(runner, ask(1, client="ann"))
    other, _ = run(runner, ask(1, client="bob"))
    assert runner.encoder_cache.hits == 0
    assert other.times.encode_s > 0


def test_the_encoder_cache_is_off_unless_it_is_given_room_and_keeps_to_it() -> None:
    off, _ = fake_runner()
    run(off, ask(1))
    run(off, ask(1))
    assert (off.encoder_cache.hits, off.encoder_cache.nbytes) == (0, 0)
    small, _ = fake_runner(encoder_cache_bytes=2000)
    for seed in range(10):
        run(small, dataclasses.replace(ask(seed), client="ann"))
        assert small.encoder_cache.nbytes <= 2000
