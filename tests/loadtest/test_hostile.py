"""The hostile client: the victim's figures under an attack on the server with a scripted engine, and what may be attacked."""

import os
from collections import Counter
from collections.abc import Iterator

import pytest

from loadtest.hostile.attacks import ATTACKS, chosen_attacks
from loadtest.hostile.target import Target, check_loopback, read_target
from loadtest.hostile.trial import Outcome, carry_out, kill_decode_workers, report
from loadtest.hostile.victim import Measurement
from tests.support.clients.live_server import live_server, wait_until
from tests.support.fakes.fake_engine import FakeEngine


@pytest.fixture
def target() -> Iterator[Target]:
    engine = FakeEngine()
    with live_server(engine) as server:
        wait_until(lambda: engine.stats().ready)
        yield read_target(server.url)


@pytest.mark.parametrize("name", ["C1", "H4", "M4"])
def test_the_victim_is_measured_alone_and_under_attack(target: Target, name: str) -> None:
    outcome = carry_out(name, target, None, 0.5, 0.7)
    assert outcome.alone.outcomes["200"] == outcome.alone.requests > 0
    assert outcome.attacked.requests > 0
    assert outcome.attacked.health_s
    assert outcome.recovered_s is not None
    assert name in report([outcome])


def test_an_attack_meets_the_targets_only_if_answers_come_and_come_in_time() -> None:
    alone = Measurement([0.1, 0.1], outcomes=_outcomes(ok=2))
    assert Outcome("H4", alone, Measurement([0.4] * 19, outcomes=_outcomes(ok=19, refused=1)), 0.1).meets_targets
    assert not Outcome("H4", alone, Measurement([0.4] * 18, outcomes=_outcomes(ok=18, refused=2)), 0.1).meets_targets
    assert not Outcome("H4", alone, Measurement([0.6] * 20, outcomes=_outcomes(ok=20)), 0.1).meets_targets
    nothing = Outcome("H4", alone, Measurement(outcomes=_outcomes(refused=3)), None)
    assert not nothing.meets_targets
    assert "| 3x 429 |" in report([nothing])


def _outcomes(ok: int = 0, refused: int = 0) -> Counter[str]:
    return Counter({"200": ok, "429": refused})


def test_only_loopback_addresses_may_be_attacked() -> None:
    check_loopback("http://127.0.0.1:8000")
    for url in ("http://192.168.0.1:8000", "http://localhost:8000", "http://example.org", "http://[::1]:8000"):
        with pytest.raises(ValueError, match="loopback"):
            check_loopback(url)


def test_a_kind_of_attack_is_chosen_with_its_variants() -> None:
    assert chosen_attacks(None) == list(ATTACKS)
    assert chosen_attacks(["H4", "C1"]) == ["C1", "H4", "H4-batch"]
    assert chosen_attacks(["H5-18"]) == ["H5-18"]
    with pytest.raises(ValueError, match="X9 is not an attack"):
        chosen_attacks(["X9"])


def test_the_decode_workers_of_a_server_are_found_and_killed(target: Target) -> None:
    assert target.url
    wait_until(lambda: kill_decode_workers(os.getpid()) == 1)
