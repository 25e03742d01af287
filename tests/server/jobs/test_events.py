"""Events cross from the engine's thread to the event loop whole, in order, and none is slept through."""

import asyncio
import random
import threading
import time

import pytest

from server.engine.types.events import Delta, Done, Event, Failed, StageTimes, TokenLogprob, Usage
from server.errors import EngineFailed
from server.jobs.events import EventQueue, ResultFuture

DONE = Done("r", "", "stop", Usage(0, 0, 0), StageTimes())


async def all_of(inbox: EventQueue, dice: random.Random) -> tuple[list[str], list[TokenLogprob], Done | Failed]:
    """What was taken, by a reader that is sometimes slower and sometimes faster than the engine."""
    texts: list[str] = []
    logprobs: list[TokenLogprob] = []
    while True:
        async with asyncio.timeout(20):
            await inbox.wait()
        await asyncio.sleep(dice.choice([0, 0, 0.001]))
        text, more, terminal = inbox.take_all()
        texts.append(text)
        logprobs += more
        if terminal is not None:
            return texts, logprobs, terminal


@pytest.mark.parametrize("seed", range(20))
def test_nothing_is_lost_between_two_threads(seed: int) -> None:
    dice = random.Random(seed)
    pieces = [f"{number} " for number in range(300)]
    tokens = [TokenLogprob(piece.encode(), -1.0) for piece in pieces]

    def deliver_all(inbox: EventQueue) -> None:
        for piece, token in zip(pieces, tokens, strict=True):
            inbox.put(Delta("r", piece, (token,)))
            if dice.random() < 0.1:
                time.sleep(0.0005)
        inbox.put(DONE)

    async def read() -> None:
        inbox = EventQueue()
        engine = threading.Thread(target=deliver_all, args=(inbox,))
        engine.start()
        texts, logprobs, terminal = await all_of(inbox, random.Random(seed + 1))
        engine.join()
        assert "".join(texts) == "".join(pieces)
        assert logprobs == tokens
        assert terminal is DONE
        assert inbox.ended
        assert len(inbox.arrivals_s) == len(pieces)
        assert inbox.first_text_s == inbox.arrivals_s[0]

    asyncio.run(read())


def test_what_piles_up_is_taken_at_once() -> None:
    async def read() -> tuple[str, object, object]:
        inbox = EventQueue()
        for text in ("a", "", "b"):
            inbox.put(Delta("r", text))
        await inbox.wait()
        return inbox.take_all()

    assert asyncio.run(read()) == ("ab", [], None)


@pytest.mark.parametrize(("first", "fails"), [(Failed("r", EngineFailed("No.")), True), (Delta("r", "a"), False), (DONE, False)])
def test_only_a_failure_before_anything_else_is_raised(first: Event, fails: bool) -> None:
    async def open_and_take() -> object:
        inbox = EventQueue()
        inbox.put(first)
        inbox.put(Failed("r", EngineFailed("Later.")))
        inbox.raise_failure()
        return inbox.take_all()

    if fails:
        with pytest.raises(EngineFailed, match=r"No\."):
            asyncio.run(open_and_take())
    else:
        assert asyncio.run(open_and_take())


def test_a_waiter_gets_the_end_from_another_thread() -> None:
    async def wait(end: Event) -> tuple[Done, float | None]:
        waiter = ResultFuture()

        def deliver() -> None:
            waiter.put(Delta("r", "a"))
            waiter.put(end)

        threading.Thread(target=deliver).start()
        return await waiter.wait(), waiter.first_text_s

    done, first_text_s = asyncio.run(wait(DONE))
    assert done is DONE
    assert first_text_s is not None
    with pytest.raises(EngineFailed):
        asyncio.run(wait(Failed("r", EngineFailed("No."))))
