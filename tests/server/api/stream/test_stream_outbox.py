"""The events that wait for a slow client: only outdated partials are lost, and the order stays."""

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from server.api.live.outbox import CloseReason, Outbox, OutboxItem
from server.engine.types.events import Delta, Flushed, Partial, SpeechStarted, UtteranceDone
from tests.support.fakes.fake_live import fake_done


def partial(utterance: int, text: str = "") -> Partial:
    return Partial("s", utterance, text, "", 0.0, 0.0, 1.0)


def done(utterance: int) -> UtteranceDone:
    return UtteranceDone("s", utterance, 0.0, 1.0, fake_done("s", "text", None))


def taken(items: list[OutboxItem]) -> list[OutboxItem]:
    """Return the items that come out if none was taken before all were in."""

    async def take() -> list[OutboxItem]:
        outbox = Outbox()
        for item in items:
            outbox.put(item)
        return [await outbox.take() for _ in range(len(outbox))]

    return asyncio.run(take())


def test_a_newer_partial_replaces_the_one_that_waits() -> None:
    begun = SpeechStarted("s", 0, 0.0)
    assert taken([begun, partial(0, "a"), partial(0, "a b")]) == [begun, partial(0, "a b")]


def test_an_answer_replaces_the_partial_that_waits() -> None:
    assert taken([partial(0), done(0), partial(1)]) == [done(0), partial(1)]


def test_texts_that_wait_together_become_one() -> None:
    flushed = Flushed("s", "a")
    assert taken([Delta("s", "one "), Delta("s", "two "), flushed, Delta("s", "three")]) == [
        Delta("s", "one two "),
        flushed,
        Delta("s", "three"),
    ]


EVENTS = st.one_of(
    st.builds(partial, st.integers(0, 3), st.text(max_size=2)),
    st.builds(done, st.integers(0, 3)),
    st.builds(lambda utterance: SpeechStarted("s", utterance, 0.0), st.integers(0, 3)),
    st.builds(lambda marker: Flushed("s", marker), st.text(max_size=2)),
    st.just(CloseReason("client_left")),
)


@given(st.lists(EVENTS, max_size=30))
def test_all_but_partials_come_out_in_order(events: list[OutboxItem]) -> None:
    out = taken(events)
    assert [event for event in out if not isinstance(event, Partial)] == [e for e in events if not isinstance(e, Partial)]
    waiting = [event.utterance for event in out if isinstance(event, Partial)]
    assert len(waiting) == len(set(waiting))


def test_taking_waits_for_the_next_item() -> None:
    async def run() -> OutboxItem:
        outbox = Outbox()
        taking = asyncio.create_task(outbox.take())
        await asyncio.sleep(0)
        assert not taking.done()
        outbox.put(done(0))
        return await taking

    assert asyncio.run(run()) == done(0)
