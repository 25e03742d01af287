"""Places are shared between clients: a client that holds none goes first, and none can hold all."""

import asyncio
import contextlib
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.errors import Overloaded
from server.fair_semaphore import FairSemaphore


async def let_tasks_run() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def acquire(semaphore: FairSemaphore, order: list[str], client: str) -> asyncio.Task[None]:
    """Start to wait for a place; the client is added to `order` when it has one."""

    async def wait() -> None:
        await semaphore.acquire(client)
        order.append(client)

    return asyncio.create_task(wait())


def test_clients_take_turns() -> None:
    async def run() -> None:
        semaphore, order = FairSemaphore(1, 20, "No."), list[str]()
        tasks = [acquire(semaphore, order, client) for client in "aaaabbc"]
        while any(not task.done() for task in tasks):
            await let_tasks_run()
            semaphore.release(order[-1])
        await asyncio.gather(*tasks)
        assert "".join(order) == "abcabaa"

    asyncio.run(run())


def test_the_last_place_is_for_a_client_that_holds_none() -> None:
    async def run() -> None:
        semaphore, order = FairSemaphore(3, 20, "No."), list[str]()
        tasks = [acquire(semaphore, order, "flood") for _ in range(5)]
        await let_tasks_run()
        assert order == ["flood"] * 2
        tasks.append(acquire(semaphore, order, "victim"))
        await let_tasks_run()
        assert order[2:] == ["victim"]
        for task in tasks:
            task.cancel()

    asyncio.run(run())


def test_where_too_many_wait_the_newest_of_the_most_demanding_client_is_refused() -> None:
    async def run() -> None:
        semaphore, order = FairSemaphore(1, 2, "No."), list[str]()
        flood = [acquire(semaphore, order, "flood") for _ in range(4)]
        await let_tasks_run()
        with pytest.raises(Overloaded, match="No"):
            await flood[3]
        victim = acquire(semaphore, order, "victim")
        await let_tasks_run()
        assert [task.done() for task in flood] == [True, False, True, True]
        semaphore.release("flood")
        await victim
        flood[1].cancel()
        await asyncio.gather(*flood, return_exceptions=True)

    asyncio.run(run())


def test_a_client_that_rests_gets_no_place() -> None:
    async def run() -> None:
        semaphore, order = FairSemaphore(2, 20, "No."), list[str]()
        semaphore.rest("heavy", 0.01)
        semaphore.rest("heavy", 0.05)
        started_s = asyncio.get_running_loop().time()
        heavy, light = (acquire(semaphore, order, client) for client in ("heavy", "light"))
        await light
        assert order == ["light"]
        await heavy
        assert asyncio.get_running_loop().time() - started_s >= 0.05, "rests add up"

    asyncio.run(run())


actions = st.lists(
    st.tuples(st.sampled_from(["acquire", "release", "cancel"]), st.sampled_from("abc"), st.booleans()), max_size=60
)


@given(places=st.integers(1, 4), max_waiting=st.integers(0, 5), actions=actions)
def test_no_place_is_lost_or_given_twice(places: int, max_waiting: int, actions: list[tuple[str, str, bool]]) -> None:
    async def run() -> None:
        semaphore, order = FairSemaphore(places, max_waiting, "No."), list[str]()
        tasks: list[asyncio.Task[None]] = []
        released = Counter[str]()
        for action, client, pause in actions:
            held = Counter(order) - released
            if action == "acquire":
                tasks.append(acquire(semaphore, order, client))
            elif action == "cancel" and tasks:
                tasks[len(tasks) // 2].cancel()
            elif action == "release" and held[client]:
                released[client] += 1
                semaphore.release(client)
            if pause:
                await let_tasks_run()
                assert (Counter(order) - released).total() <= places
                assert sum(not task.done() for task in tasks) <= max_waiting
        for task in tasks:
            task.cancel()
        for task in tasks:
            with contextlib.suppress(asyncio.CancelledError, Overloaded):
                await task
        for client in (Counter(order) - released).elements():
            semaphore.release(client)
        async with asyncio.timeout(5):
            for number in range(places):
                await semaphore.acquire(f"another {number}")

    asyncio.run(run())
