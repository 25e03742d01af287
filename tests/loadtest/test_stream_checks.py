"""The load test's client of live audio: what it records, and that it finds every way in which a server can break the protocol."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from loadtest.clients.stream import Arrival, Refused, Script, StreamRun, run_stream, stream_url
from loadtest.live.checks import complaints, slip_complaint
from loadtest.live.figures import Spoken, count_revisions, final_text, match
from tests.support.clients.live_server import tone
from tests.support.fakes.scripted_stream import Event, scripted_server

RATE_HZ = 16_000
FLUSH = {"type": "flush", "id": "here"}


def pcm(*parts: tuple[float, bool], rate_hz: int = RATE_HZ) -> bytes:
    """Audio of parts that are so many seconds long, and loud or silent."""
    pieces = [tone(seconds, rate_hz) if is_loud else np.zeros(round(seconds * rate_hz), np.float32) for seconds, is_loud in parts]
    return (np.concatenate(pieces) * 32767).astype("<i2").tobytes()


TWO = pcm((0.3, False), (0.8, True), (0.6, False), (0.6, True), (0.6, False))
"""Two utterances, 0.3 to 1.1 s and 1.7 to 2.3 s."""


def play(twist: Callable[[Event], list[Event]], speed: float = 0.0, **attributes: Any) -> StreamRun:
    """A session with a flush within the second utterance."""
    with scripted_server(twist=twist, **attributes) as server:
        return run_stream(server.url, Script(TWO, speed=speed, messages=[(2.0, FLUSH)]))


def as_it_is(event: Event) -> list[Event]:
    return [event]


def test_a_session_that_keeps_to_the_protocol() -> None:
    run = play(as_it_is)
    assert complaints(run) == []
    assert [arrival.type for arrival in run.of_type("final", "flushed", "ended")] == [
        "final",
        "final",
        "flushed",
        "final",
        "ended",
    ]
    assert run.messages == [(2.0, FLUSH), (pytest.approx(2.9), {"type": "end"})]
    assert run.slips_s == []


def change(**values: Any) -> Callable[[Event], Event]:
    return lambda event: {**event, **values}


def alter(kind: str, number: int | None, *changes: Callable[[Event], Event]) -> Callable[[Event], list[Event]]:
    """A twist of one kind of event (of one utterance): none in its place, or one for each change."""

    def twist(event: Event) -> list[Event]:
        if event["type"] != kind or (number is not None and event.get("utterance") != number):
            return [event]
        return [each(event) for each in changes]

    return twist


def same(event: Event) -> Event:
    return event


def swap(first: str, second: str) -> Callable[[Event], list[Event]]:
    """The first event of one kind is held back until the next of another has been sent."""
    held: list[Event] = []
    done: list[bool] = []

    def twist(event: Event) -> list[Event]:
        if event["type"] == first and not held and not done:
            held.append(event)
            return []
        if event["type"] == second and held:
            done.append(True)
            return [event, held.pop()]
        return [event]

    return twist


PROBLEM = {"error": {"code": "engine_failed", "message": "No."}, "request_id": "r", "fatal": False}
BAD_SERVERS = {
    "no ready": (alter("ready", None), "ready is not the first event"),
    "ready twice": (alter("ready", None, same, same), "ready is not the first event"),
    "an unknown event": (alter("ready", None, same, change(type="hello")), "unknown event 'hello'"),
    "an event that is none": (alter("partial", 0, lambda _event: {"type": "partial"}), "not the right shape"),
    "no ended": (alter("ended", None), "ended is not the last event"),
    "something after the end": (alter("ended", None, same, change(type="flushed", id="here")), "ended is not the last event"),
    "lost audio": (alter("ended", None, change(audio_s=2.5)), "ended counts 2.5 s of audio, 2.9 s were sent"),
    "a failure": (alter("final", 0, lambda event: {**event, **PROBLEM, "type": "error"}), "error engine_failed: No."),
    "no speech_started": (alter("speech_started", 0), "speech_started of utterance 1 where 0 is next"),
    "speech_started twice": (alter("speech_started", 1, same, same), "speech_started of utterance 1 where 2 is next"),
    "no final": (alter("final", 2), "3 utterances were started and 2 answered"),
    "two finals": (alter("final", 0, same, same), "final of utterance 0 where 1 is next"),
    "finals out of order": (swap("final", "final"), "final of utterance 1 where 0 is next"),
    "a final before its start": (swap("speech_started", "final"), "final of utterance 0 before its speech_started"),
    "a partial after its final": (
        alter("final", 0, same, change(type="partial", stable="", tail="", stable_end_s=1)),
        "partial of",
    ),
    "changed stable text": (
        alter("partial", 0, change(stable="alpha", tail=""), change(stable="beta", tail="")),
        "stable text of",
    ),
    "stable text taken back": (
        alter("partial", 0, change(stable="alpha", tail=""), change(stable="al", tail="")),
        "stable text of",
    ),
    "stable time gone back": (
        alter("partial", 0, change(stable_end_s=0.45), change(stable_end_s=0.4)),
        "stable_end_s of utterance",
    ),
    "another start": (alter("final", 0, change(start_s=0.1)), "utterance 0 starts at 0.1 in its final"),
    "a partial's times": (alter("partial", 0, change(stable_end_s=9)), "the times of a partial are not in order"),
    "overlapping utterances": (alter("final", 0, change(end_s=1.6)), "utterance 1 from"),
    "an empty utterance": (alter("final", 0, change(end_s=0.0)), "is empty"),
    "words in disorder": (
        alter(
            "final", 0, change(words=[{"word": "a", "start_s": 0.5, "end_s": 0.6}, {"word": "b", "start_s": 0.4, "end_s": 0.7}])
        ),
        "the words of utterance 0",
    ),
    "words elsewhere": (
        alter("final", 0, change(words=[{"word": "a", "start_s": 1.5, "end_s": 1.6}])),
        "the words of utterance 0",
    ),
    "no flushed": (alter("flushed", None), "flushed came for []"),
    "another flushed": (alter("flushed", None, change(id="there")), "flushed came for ['there']"),
    "flushed too early": (swap("final", "flushed"), "final of utterance 1 where 0 is next"),
    "a flush before the answer": (alter("final", 1), "flushed 'here' came before the answer to utterance"),
}


@pytest.mark.parametrize(("twist", "expected"), BAD_SERVERS.values(), ids=list(BAD_SERVERS))
def test_a_server_that_breaks_the_protocol(twist: Callable[[Event], list[Event]], expected: str) -> None:
    found = complaints(play(twist, idle_timeout_s=0.3))
    assert any(expected in complaint for complaint in found), found


def test_a_server_that_tells_of_audio_that_was_not_sent() -> None:
    hasty = alter("partial", 0, change(end_s=2.0))
    assert any("tells of 2.0 s when" in complaint for complaint in complaints(play(hasty, speed=4)))


def test_a_server_that_closes_in_disorder() -> None:
    assert complaints(play(as_it_is, close_code=1011)) == ["the socket was closed with 1011, not 1000"]


def test_a_server_that_has_no_place() -> None:
    with (
        scripted_server(refusal=(429, "overloaded")) as server,
        pytest.raises(Refused, match="status 429: overloaded") as refused,
    ):
        run_stream(server.url, Script(TWO))
    assert (refused.value.code, refused.value.retry_after_s) == ("overloaded", 3.0)
    with pytest.raises(Refused, match="status 0: ConnectionRefusedError"):
        run_stream(server.url, Script(TWO))


def test_latencies_count_from_the_truth_of_the_audio() -> None:
    with scripted_server() as server:
        script = Script(TWO, options={"voice": {"silence_duration_ms": 200}}, speed=1)
        run = run_stream(server.url, script)
    assert complaints(run) == []
    assert server.starts[0]["voice"] == {"silence_duration_ms": 200}
    first, second, never = match(run, [Spoken("a", "", 0.3, 1.1), Spoken("b", "", 1.7, 2.3), Spoken("c", "", 2.5, 2.9)])
    assert (first.utterances, second.utterances, never.utterances) == (1, 1, 0)
    for heard in (first, second):
        assert heard.final_s is not None
        assert heard.first_partial_s is not None
        assert heard.final_s >= 0.2 - 0.02
        assert heard.first_partial_s >= 0.25 - 0.02
        assert heard.end_off_s == pytest.approx(0.04, abs=0.021)
        assert not heard.cut_off
    assert (never.final_s, never.first_partial_s) == (None, None)
    assert final_text(run) == "alpha bravo charlie alpha bravo"
    assert len(run.slips_s) == len(run.sent) == 73


def test_speech_in_several_utterances_and_a_final_that_comes_too_early() -> None:
    spans = [(1.0, 0.3, 0.9), (2.0, 0.9, 1.9)]
    finals = [
        Arrival(at_s, {"type": "final", "utterance": 0, "start_s": start_s, "end_s": end_s}) for at_s, start_s, end_s in spans
    ]
    run = StreamRun(Script(b""), arrivals=finals)
    whole, first, longer = match(run, [Spoken("a", "", 0.3, 1.8), Spoken("b", "", 0.3, 0.85), Spoken("c", "", 0.3, 2.5)])
    assert [each.utterances for each in (whole, first, longer)] == [2, 1, 2]
    assert [each.final_s for each in (whole, first, longer)] == pytest.approx([0.2, 0.15, -0.5])
    assert [each.cut_off for each in (whole, first, longer)] == [False, False, True]


def test_words_that_were_taken_back() -> None:
    texts = [(0, "one"), (0, "one tw"), (1, "other"), (0, "one two"), (0, "won two three"), (1, "other one"), (0, "won two")]
    partials = [Arrival(0, {"type": "partial", "utterance": number, "stable": "", "tail": text}) for number, text in texts]
    revisions = count_revisions(StreamRun(Script(b""), arrivals=partials))
    assert (revisions.partials, revisions.words, revisions.revised) == (7, 4 + 2, 2)


def test_a_late_generator_voids_a_run() -> None:
    assert slip_complaint([]) == slip_complaint([0.001] * 199 + [0.5]) == ""
    assert slip_complaint([0.001] * 98 + [0.5] * 2) == "the generator slipped: p99 500.0 ms, above 20 ms"


def test_addresses() -> None:
    assert stream_url("http://127.0.0.1:8000") == "ws://127.0.0.1:8000/v1/stream"
    assert stream_url("https://example.org/speech/") == "wss://example.org/speech/v1/stream"
