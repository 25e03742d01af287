"""The demonstration counts orders, heard slots and right slots as it should."""

import json
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest

from loadtest.drink_orders import INSTRUCTION, SAID, SLOTS, Order, Result, commonest, is_heard, schema_of, summarise
from tests.support.clients.live_server import audio_file, live_server, tone, wait_until
from tests.support.fakes.fake_engine import FakeEngine

ROOT = Path(__file__).parents[2]
ORDERS = [
    Order(Path("a.ogg"), {"coffeeDrink": "latte", "size": "small"}),
    Order(Path("b.ogg"), {"coffeeDrink": "latte", "milkAmount": "some milk"}),
    Order(Path("c.ogg"), {"coffeeDrink": "mocha"}),
]


def result(order: Order, said: str, **answered: str) -> Result:
    return Result(order.path.name, order.slots, "", answered, said, False, 20, 10, 1.0)


def test_the_schema_takes_every_order_that_occurs_and_no_other_value() -> None:
    schema = schema_of(ORDERS)
    jsonschema.Draft202012Validator.check_schema(schema)
    for order in ORDERS:
        jsonschema.validate({SAID: "", **order.slots}, schema)
    for wrong in ({}, {SAID: "", "size": "huge"}, {SAID: "", "straw": "yes"}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, schema)


def test_the_instruction_names_every_slot() -> None:
    assert all(f" {name}" in INSTRUCTION for name in SLOTS)


def test_values_are_heard_as_whole_words_together() -> None:
    assert is_heard("iced coffee", "An Iced coffee, please!")
    assert not is_heard("iced coffee", "Iced, with coffee.")
    assert not is_heard("iced coffee", "A spiced coffee.")


def test_slots_are_counted_where_they_were_said_and_where_not() -> None:
    results = [
        result(ORDERS[0], "A small latte.", coffeeDrink="latte", size="small"),
        result(ORDERS[1], "Latte, milk.", coffeeDrink="mocha", size="small"),
        result(ORDERS[2], "Mocha."),
    ]
    guess = commonest(ORDERS)
    assert guess == {"coffeeDrink": "latte"}
    assert summarise(results, guess) == {
        "orders": 3,
        "valid": 3,
        "said": 5,
        "heard": 4,
        "said_right": 2,
        "said_right_by_guessing": 2,
        "unsaid": 13,
        "unsaid_left_out": 12,
        "unsaid_left_out_by_guessing": 13,
        "orders_right": 1,
        "tokens": 60,
        "llm_passes": 30,
    }


@pytest.mark.parametrize(("text", "status"), [('{"said":"a latte","coffeeDrink":"latte"}', 0), ("no JSON", 1)])
def test_an_answer_that_is_not_valid_is_told(tmp_path: Path, text: str, status: int) -> None:
    row = {"file": "a.flac", "set": "coffee_orders_unlabelled", "intent": {"slots": {"coffeeDrink": " latte"}}}
    (tmp_path / "a.flac").write_bytes(audio_file(tone(0.5, 16_000), 16_000, "FLAC", "PCM_16"))
    (tmp_path / "orders.jsonl").write_text(json.dumps(row) + "\n")
    engine = FakeEngine()
    engine.text = text
    command = [
        sys.executable,
        "-m",
        "loadtest.drink_orders",
        "--manifest",
        str(tmp_path / "orders.jsonl"),
        "--out",
        str(tmp_path),
    ]
    with live_server(engine) as server:
        wait_until(lambda: engine.stats().ready)
        run = subprocess.run([*command, "--url", server.url], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == status, run.stderr
    report = json.loads((tmp_path / "drink_orders.json").read_text())
    assert report["groups"]["100 at random"]["orders_right"] == 1 - status
    assert "| 100 at random |" in (tmp_path / "drink_orders.md").read_text()
