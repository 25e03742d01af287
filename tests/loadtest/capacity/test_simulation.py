"""The simulator: mixes whose figures can be computed by hand, and what holds for any."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadtest.capacity.costs import DecoderCost, EncodeCost, Phase, StreamEvent, StreamProfile
from loadtest.capacity.engine import RefusedError, SimulatedEngine
from loadtest.capacity.simulation import TrafficMix, draw_arrivals, repeat_profile, simulate_mix
from tests.loadtest.capacity.fake_costs import ANSWER_S, ENCODE_S, PASS_S, PASSES, PREFILL_S, STREAM, make_costs, work

FILE = (work("file"),)
# Speech from 1.3 s to 2 s, and then silence.
PAUSED = StreamProfile(
    5.0,
    (StreamEvent("began", 1.4, 1.0), StreamEvent("paused", 2.08, 1.0, 2.06), StreamEvent("over", 3.52, 1.0, 2.06)),
    ((1.3, 3.0),),
)


def test_one_client_waits_for_the_stages_and_the_door() -> None:
    outcome = simulate_mix(make_costs(door_s=0.01), TrafficMix("one", clients=1, works=FILE), 10.0)
    assert outcome.file_waits_s == pytest.approx([ANSWER_S + 0.01] * len(outcome.file_waits_s))
    assert outcome.utilisation == pytest.approx(ANSWER_S / (ANSWER_S + 0.01), rel=0.05)


def test_clients_share_decode_passes_and_not_the_encoder() -> None:
    outcome = simulate_mix(make_costs(), TrafficMix("four", clients=4, works=FILE), 30.0, warm_up_s=5.0)
    assert outcome.utilisation == pytest.approx(1.0)
    assert 1 / ANSWER_S < outcome.files_per_s < 1 / ENCODE_S


def test_a_rate_that_the_machine_holds_is_held() -> None:
    rate_hz = 0.5 / ANSWER_S
    outcome = simulate_mix(make_costs(), TrafficMix("half", rate_hz=rate_hz, works=FILE), 200.0)
    assert outcome.files_per_s == pytest.approx(rate_hz, rel=0.2)
    assert outcome.refused == 0


def test_a_rate_that_the_machine_does_not_hold_is_refused_in_part() -> None:
    outcome = simulate_mix(make_costs(), TrafficMix("double", rate_hz=2 / ENCODE_S, works=FILE), 30.0)
    assert outcome.refused > 50
    assert outcome.utilisation == pytest.approx(1.0, rel=0.05)


def test_files_come_when_their_arrivals_say() -> None:
    arrivals = ((1.0, 0), (5.0, 0), (5.1, 0))
    mix = TrafficMix("three", rate_hz=100.0, works=FILE, arrivals=arrivals)
    outcome = simulate_mix(make_costs(), mix, 20.0)
    assert outcome.file_waits_s[0] == pytest.approx(ANSWER_S)
    assert len(outcome.file_waits_s) == 3
    assert outcome.file_waits_s[2] > ANSWER_S


def test_arrivals_are_those_of_a_poisson_process_and_of_their_seed() -> None:
    arrivals = draw_arrivals(5.0, 3, 400.0, seed=1)
    assert arrivals == draw_arrivals(5.0, 3, 400.0, seed=1)
    assert arrivals != draw_arrivals(5.0, 3, 400.0, seed=2)
    assert len(arrivals) == pytest.approx(2000, rel=0.1)
    assert {number for _, number in arrivals} == {0, 1, 2}
    assert all(0 < at_s < 400.0 for at_s, _ in arrivals)


def test_work_at_the_door_slows_others_and_not_a_lone_client() -> None:
    costs = replace(make_costs(), door_cpu_s=0.1, cores=2)
    alone = TrafficMix("one", clients=1, works=FILE)
    assert simulate_mix(costs, alone, 10.0).file_waits_s == simulate_mix(make_costs(), alone, 10.0).file_waits_s
    four = TrafficMix("four", clients=4, works=FILE)
    slowed, before = (simulate_mix(each, four, 60.0).files_per_s for each in (costs, make_costs()))
    assert 1 / slowed - 1 / before == pytest.approx(0.05, rel=0.3)


def test_more_clients_than_places_come_again() -> None:
    costs = make_costs()
    outcome = simulate_mix(costs, TrafficMix("many", clients=30, works=FILE), 30.0)
    assert outcome.refused > 0
    assert outcome.files_per_s > 1 / ANSWER_S


def test_a_final_comes_when_the_utterance_is_over() -> None:
    outcome = simulate_mix(make_costs(), TrafficMix("live", sessions=1, streams=(STREAM,)), STREAM.audio_s)
    # The answer that was begun at the pause is there before the utterance is over.
    assert outcome.final_waits_s == pytest.approx([3.52 - 3.0], abs=0.05)
    assert outcome.partials >= 1


def test_a_hypothesis_gives_way_to_an_answer() -> None:
    # It is begun at 1.48 s and would be encoded until 3.48 s, but the pause comes at 2.08 s.
    slow = make_costs(encode=EncodeCost(0.0, (1.0,), (2.0,)))
    outcome = simulate_mix(slow, TrafficMix("live", sessions=1, streams=(PAUSED,)), PAUSED.audio_s)
    assert outcome.partials == 0
    assert outcome.final_waits_s == pytest.approx([2.08 - 3.0 + 2.0 + ANSWER_S - ENCODE_S], abs=0.05)


def test_no_hypothesis_is_made_in_silence() -> None:
    silent = replace(PAUSED, events=(PAUSED.events[0], StreamEvent("silent", 1.44), *PAUSED.events[1:]))
    spoken = replace(silent, events=(*silent.events[:2], StreamEvent("speaks", 1.48), *PAUSED.events[1:]))
    counts = [
        simulate_mix(make_costs(), TrafficMix("live", sessions=1, streams=(each,)), 5.0).partials
        for each in (PAUSED, silent, spoken)
    ]
    assert counts[1] == 0
    assert counts[0] == counts[2] > 0


def test_an_answer_of_a_session_waits_for_the_times_of_its_words() -> None:
    waits = [
        simulate_mix(make_costs(words_s=words_s), TrafficMix("live", sessions=1, streams=(PAUSED,)), 5.0).final_waits_s
        for words_s in (0.0, 2.0)
    ]
    spoken_s = PAUSED.events[1].end_s - PAUSED.events[0].start_s
    assert waits[1][0] == pytest.approx(2.08 - 3.0 + ANSWER_S + 2.0 * spoken_s, abs=0.05)
    assert waits[1][0] > waits[0][0]


def test_passes_with_more_positions_take_longer() -> None:
    costs = make_costs(decoders=(replace(make_costs().decoders[0], decode_position_s=0.01),))
    drafted = replace(FILE[0], phases=(replace(FILE[0].phases[0], pass_positions=3.0),))
    one, three = (simulate_mix(costs, TrafficMix("one", clients=1, works=(each,)), 5.0) for each in (FILE[0], drafted))
    assert three.file_waits_s[0] - one.file_waits_s[0] == pytest.approx(2 * 0.01 * PASSES)


def test_where_no_partial_was_measured_an_answer_stands_for_it() -> None:
    costs = make_costs(profiles=(work("answer"),))
    assert costs.draw_work("partial", 1.0, np.random.default_rng(0)).kind == "answer"
    with pytest.raises(ValueError, match="no work of the kind draft"):
        costs.draw_work("draft", 1.0, np.random.default_rng(0))


def test_many_sessions_all_begin_soon() -> None:
    few, many = (
        simulate_mix(
            make_costs(decoders=(DecoderCost(0.0, 0.0, 0.0, 1e-5, 0.0, 0.0),), encode=EncodeCost(1e-4, (1.0,), (0.0,))), mix, 20.0
        )
        for mix in (TrafficMix("live", sessions=count, streams=(STREAM,)) for count in (10, 40))
    )
    assert many.utilisation > 2 * few.utilisation


def test_a_slow_answer_is_waited_for() -> None:
    costs = make_costs(decoders=(replace(make_costs().decoders[0], decode_call_s=0.5),))
    outcome = simulate_mix(costs, TrafficMix("live", sessions=1, streams=(STREAM,)), STREAM.audio_s)
    assert outcome.final_waits_s[0] > 3.08 - 3.0 + ENCODE_S + PREFILL_S + 5 * 0.5


def test_sessions_go_before_files() -> None:
    alone = simulate_mix(make_costs(), TrafficMix("live", sessions=1, streams=(STREAM,)), STREAM.audio_s)
    beside = simulate_mix(make_costs(), TrafficMix("live", clients=8, works=FILE, sessions=1, streams=(STREAM,)), STREAM.audio_s)
    longest_step_s = 4 * ENCODE_S + PREFILL_S + PASS_S
    assert beside.final_waits_s[0] <= alone.final_waits_s[0] + ENCODE_S + longest_step_s


def test_a_request_passes_its_decoders_in_turn() -> None:
    costs = make_costs(decoders=(make_costs().decoders[0],) * 2)
    question = replace(work("file"), phases=(Phase(0, 10, 5), Phase(1, 40, 3)))
    outcome = simulate_mix(costs, TrafficMix("questions", clients=1, works=(question,)), 10.0)
    assert outcome.file_waits_s[0] == pytest.approx(ENCODE_S + 2 * PREFILL_S + 8 * PASS_S)


def test_an_encoder_beside_the_decoders_hides_its_time() -> None:
    mix = TrafficMix("four", clients=8, works=FILE)
    alone = simulate_mix(make_costs(), mix, 30.0, warm_up_s=5.0)
    beside = simulate_mix(make_costs(encodes_beside=True), mix, 30.0, warm_up_s=5.0)
    assert beside.files_per_s > alone.files_per_s


def test_a_cancelled_request_is_gone_and_says_nothing() -> None:
    engine = SimulatedEngine(make_costs(), np.random.default_rng(0))
    told: list[float | None] = []
    requests = [engine.submit(work("file"), told.append, 0.0) for _ in range(3)]
    engine.cancel(requests[2])
    engine.step(0.0)
    engine.cancel(requests[0])
    now_s = 1.0
    while engine.has_work:
        now_s = engine.step(now_s)
    assert len(told) == 1


def test_a_full_queue_refuses() -> None:
    engine = SimulatedEngine(make_costs(queue_limit=0), np.random.default_rng(0))
    for _ in range(4):
        engine.submit(work("file"), lambda _at_s: None, 0.0)
    with pytest.raises(RefusedError):
        engine.submit(work("file"), lambda _at_s: None, 0.0)


def test_sessions_are_made_of_profiles_one_after_the_other() -> None:
    whole = repeat_profile((STREAM, StreamProfile(2.0, (), ())), 11.0, first=0)
    assert whole.audio_s == 12.0
    assert whole.spoken == ((1.3, 3.0), (8.3, 10.0))
    assert [event.at_s for event in whole.events][5:] == pytest.approx([event.at_s + 7.0 for event in STREAM.events])


@settings(max_examples=10)
@given(
    clients=st.integers(0, 30), rate_hz=st.floats(0, 8), sessions=st.integers(0, 6), seed=st.integers(0, 9), beside=st.booleans()
)
def test_whatever_the_mix_all_work_ends(clients: int, rate_hz: float, sessions: int, seed: int, beside: bool) -> None:
    mix = TrafficMix("any", clients, rate_hz, sessions, FILE, (STREAM,))
    outcome = simulate_mix(make_costs(encodes_beside=beside), mix, 8.0, seed=seed)
    assert len(outcome.final_waits_s) == sessions
    assert all(wait_s >= 3.5 - 3.0 for wait_s in outcome.final_waits_s)
    assert all(wait_s >= ANSWER_S - 1e-9 for wait_s in outcome.file_waits_s)
    assert 0 <= outcome.utilisation <= 1 + 1e-9
