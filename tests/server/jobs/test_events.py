"""Events cross from the engine's thread to the event loop whole and in order, and each wakes the reader."""

import asyncio
import random
import threading
import time

import pytest

from server.engine.types.events import Delta, Done, Event, Failed, StageTimes, TokenLogprob, Usage
from server.errors import EngineFailed
from server.jobs.events import EventQueue, ResultFuture

DONE = Done("r", "", "stop", Usage(0, 0, 0), StageTimes())


async def all_of(queue: EventQueue, dice: random.Random) -> tuple[list[str], list[TokenLogprob], Done | Failed]:
    """Return everything that a reader takes who is sometimes slower and sometimes faster than the engine."""
    texts: list[str] = []
    logprobs: list[TokenLogprob] = []
    while True:
        async with asyncio.timeout(20):
            await queue.wait()
        await asyncio.sleep(dice.choice([0, 0, 0.001]))
        text, more, terminal = queue.take_all()
        texts.append(text)
        logprobs += more
        if terminal is not None:
            return texts, logprobs, terminal


@pytest.mark.parametrize("seed", range(20))
def test_nothing_is_lost_between_two_threads(seed: int) -> None:
    dice = random.Random(seed)
    pieces = [f"{number} " for number in range(300)]
    tokens = [TokenLogprob(piece.encode(), -1.0) for piece in pieces]

    def deliver_all(queue: EventQueue) -> None:
        for piece, token in zip(pieces, tokens, strict=True):
            queue.put(Delta("r", piece, (token,)))
            if dice.random() < 0.1:
                time.sleep(0.0005)
        queue.put(DONE)

    async def read() -> None:
        queue = EventQueue()
        engine = threading.Thread(target=deliver_all, args=(queue,))
        engine.start()
        texts, logprobs, terminal = await all_of(queue, random.Random(seed + 1))
        engine.join()
        assert "".join(texts) == "".join(pieces)
        assert logprobs == tokens
        assert terminal is DONE
        assert queue.ended
        assert len(queue.arrivals_s) == len(pieces)
        assert queue.first_text_s == queue.arrivals_s[0]

    asyncio.run(read())


def test_what_piles_up_is_taken_at_once() -> None:
    async def read() -> tuple[str, object, object]:
        queue = EventQueue()
        for text in ("a", "", "b"):
            queue.put(Delta("r", text))
        await queue.wait()
        return queue.take_all()

    assert asyncio.run(read()) == ("ab", [], None)


@pytest.mark.parametrize(("first", "fails"), [(Failed("r", EngineFailed("No.")), True), (Delta("r", "a"), False), (DONE, False)])
def test_only_a_failure_before_anything_else_is_raised(first: Event, fails: bool) -> None:
    async def open_and_take() -> object:
        queue = EventQueue()
        queue.put(first)
        queue.put(Failed("r", EngineFailed("Later.")))
        queue.raise_failure()
        return queue.take_all()

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
