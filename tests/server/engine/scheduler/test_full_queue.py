"""A full queue: places for clients that have little, and refusals of what has not waited."""

import random

from server.engine.scheduler.scheduler import Scheduler
from server.engine.types.options import Priority
from tests.support.schedules.scheduler_play import Player

CLIENTS = 8
STEPS_OF_AN_ANSWER = 12


def player(slots: int, queue_limit: int) -> Player:
    return Player(Scheduler(slots, queue_limit, 30.0, 128), 128, 30.0)


def test_clients_with_equal_loads_seldom_lose_a_place_that_they_had() -> None:
    """At three times what is served, nearly all that is refused is refused when it comes."""
    play, chances = player(slots=4, queue_limit=16), random.Random(0)
    refused = displaced = 0
    for _ in range(3000):
        if chances.random() < 3 * 4 / STEPS_OF_AN_ANSWER:
            client = f"client {chances.randrange(CLIENTS)}"
            if not play.scheduler.has_place(client, Priority.INTERACTIVE):
                loser = play.scheduler.find_displaced(client, Priority.INTERACTIVE)
                refused += 1
                if loser is None:
                    continue
                displaced += 1
                play.end(loser)
            play.add(client=client)
        play.step(lambda _played, stage: stage == "decode" and chances.random() < 1 / STEPS_OF_AN_ANSWER)
    assert refused > 1000
    assert displaced < refused / 100


def test_a_client_with_little_gets_a_place_beyond_a_full_queue() -> None:
    play = player(slots=2, queue_limit=3)
    flood = [play.add(client="flood").id for _ in range(5)]
    assert play.scheduler.full
    assert not play.scheduler.has_place("flood", Priority.INTERACTIVE)
    assert play.scheduler.find_displaced("flood", Priority.INTERACTIVE) is None
    play.add(client="one")
    play.add(client="other")
    assert not play.scheduler.has_place("third", Priority.INTERACTIVE)
    assert play.scheduler.find_displaced("third", Priority.INTERACTIVE) == flood[-1]
    play.end(flood[-1])
    assert not play.scheduler.has_place("third", Priority.BATCH)
    play.add(client="third")
    assert play.scheduler.find_displaced("third", Priority.INTERACTIVE) is None


def test_batch_work_gives_way_rather_than_take_a_place_beyond_the_queue() -> None:
    play = player(slots=1, queue_limit=2)
    ids = [play.add(client="flood", priority=Priority.BATCH).id for _ in range(3)]
    assert not play.scheduler.has_place("one", Priority.INTERACTIVE)
    assert play.scheduler.find_displaced("one", Priority.INTERACTIVE) == ids[-1]
