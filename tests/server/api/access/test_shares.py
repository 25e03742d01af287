"""Shares of one client never shut another one out."""

from hypothesis import given
from hypothesis import strategies as st

from server.api.access.limits import Allowance
from server.api.access.shares import Shares

CLIENTS = st.sampled_from("abc")


@given(st.integers(1, 50), st.lists(st.tuples(CLIENTS, st.integers(1, 5), st.booleans())))
def test_no_more_is_given_than_there_is_and_all_comes_back(places: int, steps: list[tuple[str, int, bool]]) -> None:
    shares = Shares(places)
    held: list[tuple[str, int]] = []
    for client, count, gives_back in steps:
        if gives_back and held:
            shares.give_back(*held.pop())
        elif shares.take(client, count):
            held.append((client, count))
        assert sum(count for _, count in held) <= places
    for each in held:
        shares.give_back(*each)
    assert shares.take("d", places)


@given(st.integers(2, 1000), st.integers(1, 5))
def test_one_client_leaves_half_of_what_it_found(places: int, count: int) -> None:
    shares = Shares(places)
    while shares.take("a", count):
        pass
    assert shares.has_room("b", places // 2 - count) or places // 2 <= count


@given(st.lists(st.tuples(st.floats(0, 10), st.floats(0, 100))))
def test_an_allowance_gives_no_more_in_any_minute(steps: list[tuple[float, float]]) -> None:
    allowance, now_s, taken = Allowance(60, 0.0), 0.0, 0.0
    for amount, pause_s in steps:
        now_s += pause_s
        if allowance.wait_s(amount, now_s) == 0:
            allowance.take(amount, now_s)
            taken += amount
        assert taken <= 60 + now_s + 1e-6
    assert allowance.wait_s(60, now_s + 61) == 0
