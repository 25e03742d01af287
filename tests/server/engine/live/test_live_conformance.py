"""The promises about live sessions that every engine keeps: in this process, in a child or in two, with models or scripted."""

import threading
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from models.protocols import Float32
from server.engine.types.events import Ended, Failed, Flushed, Listened, SpeechStarted, UtteranceDone
from server.engine.types.options import Priority, SamplingOptions
from server.engine.types.protocol import Engine
from server.engine.types.requests import Audio, EndOfAudio, Flush, LiveRequest, SpeechTask
from server.errors import InvalidRequest, NotReady, Overloaded, ServeError
from tests.server.engine.test_engine_conformance import KINDS, make_engine
from tests.support.clients.engine_call import TIMEOUT_S, Call, occupied, request, wait_until
from tests.support.clients.live_client import LiveClient
from tests.support.fakes import fake_models
from tests.support.fakes.engine_children import FileGate


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def shared(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    engine = make_engine(kind, str(FileGate(tmp_path_factory.mktemp("gate") / "closed").path))
    engine.start()
    yield engine
    engine.drain(TIMEOUT_S)


@pytest.fixture
def engine(shared: Engine) -> Iterator[Engine]:
    """A serving engine, which has no session and no work left after the test."""
    yield shared
    wait_until(lambda: sessions(shared) + shared.stats().live_jobs + occupied(shared) == 0)
    assert shared.stats().ready


@pytest.fixture
def rate_hz(shared: Engine) -> int:
    return shared.sample_rate_hz


def live(id: str, instruction: str = "Transcribe.") -> LiveRequest:
    return LiveRequest(id, SpeechTask(instruction, SamplingOptions(max_tokens=8)))


def sessions(engine: Engine) -> int:
    stats = engine.stats()
    return stats.live_sessions + stats.recordings


def refusal(engine: Engine, request: LiveRequest) -> ServeError:
    """The error of a session that has no place, whether it was raised or delivered."""
    try:
        return LiveClient(engine, request).error()
    except ServeError as error:
        return error


def spoken(rate_hz: int, seed: int = 1) -> Float32:
    """Return a second of speech and one of silence."""
    noise = np.random.default_rng(seed).normal(size=rate_hz).astype(np.float32)
    return np.concatenate([noise, np.zeros(rate_hz, np.float32)])


def test_a_session_is_answered_utterance_by_utterance_and_ends(engine: Engine, rate_hz: int) -> None:
    client = LiveClient(engine, live("a"))
    for seed in range(3):
        client.say(spoken(rate_hz, seed), 100)
    end = client.end()
    assert isinstance(end, Ended)
    assert end.audio_s == pytest.approx(6)
    assert client.of(Listened)[-1].audio_s == pytest.approx(6)
    done = client.of(UtteranceDone)
    assert len(done) >= 3
    assert all(event.start_s < event.end_s <= 6 for event in done)
    assert len(client.of(SpeechStarted)) == len(done)


def test_a_flush_comes_back_after_all_that_was_said_before_it(engine: Engine, rate_hz: int) -> None:
    client = LiveClient(engine, live("a"))
    client.flush("nothing yet")
    client.say(spoken(rate_hz)[: rate_hz + rate_hz // 2])
    client.flush("one")
    client.flush("two")
    client.wait_for(lambda: Flushed("a", "two") in client.events)
    kinds = [event for event in client.events if isinstance(event, Flushed | UtteranceDone)]
    assert kinds[0] == Flushed("a", "nothing yet")
    assert kinds[-2:] == [Flushed("a", "one"), Flushed("a", "two")]
    assert len(kinds) > 3
    client.end()


def test_nothing_follows_an_abort(engine: Engine, rate_hz: int) -> None:
    client = LiveClient(engine, live("a"))
    client.say(spoken(rate_hz))
    engine.abort("a")
    seen = len(client.events)
    engine.push("a", Audio(spoken(rate_hz)))
    engine.push("a", EndOfAudio())
    # The id is free again.
    other = LiveClient(engine, live("a"))
    other.say(spoken(rate_hz))
    other.end()
    assert len(client.events) == seen


def test_a_client_may_leave_from_within_a_delivery(engine: Engine, rate_hz: int) -> None:
    client = LiveClient(engine, live("a"), lambda _event: engine.abort("a"))
    client.say(spoken(rate_hz))
    wait_until(lambda: engine.stats().live_sessions == 0)
    assert len(client.events) == 1


def test_a_client_that_cannot_be_told_harms_no_other(engine: Engine, rate_hz: int) -> None:
    def fail(_event: object) -> None:
        raise RuntimeError("the client's loop is closed")

    other = LiveClient(engine, live("other"))
    LiveClient(engine, live("broken"), fail).say(spoken(rate_hz))
    other.say(spoken(rate_hz))
    assert isinstance(other.end(), Ended)


def test_inputs_of_unknown_sessions_do_nothing(engine: Engine, rate_hz: int) -> None:
    for item in (Audio(spoken(rate_hz)), Flush("a"), EndOfAudio()):
        engine.push("unknown", item)


def test_sessions_have_a_limit_of_their_own(engine: Engine) -> None:
    limit = engine.stats().live_limit
    clients = [LiveClient(engine, live(f"s{index}")) for index in range(limit)]
    error = refusal(engine, live("one too many"))
    assert isinstance(error, Overloaded)
    assert error.retry_after_s is not None
    assert (engine.stats().live_sessions, occupied(engine)) == (limit, 0)
    # Requests have places of their own.
    Call(engine, request("request")).done()
    for client in clients:
        client.end()


def test_recordings_and_live_sessions_have_places_of_their_own(engine: Engine, kind: str, rate_hz: int) -> None:
    if kind.startswith("scripted"):
        pytest.skip("a scripted engine counts them together")
    limit = engine.stats().recording_limit
    recordings = [LiveClient(engine, replace(live(f"r{index}"), priority=Priority.BATCH)) for index in range(limit)]
    assert isinstance(refusal(engine, replace(live("one too many"), priority=Priority.INTERACTIVE)), Overloaded)
    client = LiveClient(engine, live("live"))
    assert (engine.stats().live_sessions, engine.stats().recordings) == (1, limit)
    client.say(spoken(rate_hz))
    assert isinstance(client.end(), Ended)
    for recording in recordings:
        assert isinstance(recording.end(), Ended)


@pytest.mark.parametrize("priority", [Priority.LIVE, Priority.BATCH])
def test_a_client_that_holds_all_places_gives_one_up_to_another(
    engine: Engine, kind: str, rate_hz: int, priority: Priority
) -> None:
    if kind.startswith("scripted"):
        pytest.skip("a scripted engine shares nothing")
    stats = engine.stats()
    limit = stats.live_limit if priority == Priority.LIVE else stats.recording_limit
    asked = replace(live("flood"), client="flood", priority=priority)
    flood = [LiveClient(engine, replace(asked, id=f"flood {index}")) for index in range(limit)]
    other = LiveClient(engine, replace(asked, id="other", client="other"))
    other.say(spoken(rate_hz))
    assert isinstance(other.end(), Ended)
    outcomes = [client.end() for client in flood]
    assert [type(outcome.error) for outcome in outcomes if isinstance(outcome, Failed)] == [Overloaded]


def test_an_id_that_is_being_served_is_refused(engine: Engine) -> None:
    client = LiveClient(engine, live("same"))
    try:
        second = LiveClient(engine, live("same"))
    except InvalidRequest:
        pass
    else:
        assert isinstance(second.error(), InvalidRequest)
    client.end()


def test_sessions_and_requests_share_the_engine(engine: Engine, rate_hz: int) -> None:
    clients = [LiveClient(engine, live(f"s{index}")) for index in range(3)]
    calls = [Call(engine, request(f"r{index}", index)) for index in range(6)]
    for client in clients:
        client.say(spoken(rate_hz), 160)
    for call in calls:
        call.done()
    texts = []
    for client in clients:
        assert isinstance(client.end(), Ended)
        texts.append(client.texts())
    assert texts[0] == texts[1] == texts[2] != []


def test_a_drain_answers_what_was_said(kind: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    engine = make_engine(kind, str(FileGate(tmp_path_factory.mktemp("gate") / "closed").path))
    with pytest.raises(NotReady):
        LiveClient(engine, live("early"))
    engine.start()
    client = LiveClient(engine, live("a"))
    client.say(spoken(engine.sample_rate_hz)[: engine.sample_rate_hz])
    engine.drain(TIMEOUT_S)
    outcome = client.outcome()
    assert isinstance(outcome, Ended)
    assert client.of(UtteranceDone)
    with pytest.raises(NotReady):
        LiveClient(engine, live("late"))


def test_a_drain_that_runs_out_of_time_fails_sessions(kind: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    gate = FileGate(tmp_path_factory.mktemp("gate") / "closed")
    engine = make_engine(kind, str(gate.path))
    engine.start()
    client = LiveClient(engine, live("a"))
    if kind.startswith("local"):
        gate.clear()
        client.say(fake_models.speech(1))

        def open_gate() -> None:
            """Let the engine's thread end its step, once the client was told."""
            client.outcome()
            gate.set()

        opening = threading.Thread(target=open_gate)
        opening.start()
        engine.drain(0.05)
        opening.join()
        assert isinstance(client.outcome(), Failed)
        assert isinstance(client.error(), NotReady)
    engine.drain(TIMEOUT_S)
    assert engine.stats().live_sessions == 0
