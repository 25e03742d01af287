"""Spoken drink orders as JSON: whether every answer is valid under its schema, and how often it says what was ordered.

    python -m loadtest.drink_orders --url http://127.0.0.1:8000 --manifest DATA/train.jsonl --out loadtest/results

The schema has what was said, and then the slots of all orders in the manifest, each with the values that occur, and all of them
optional. Ten orders are listed and a hundred are counted, chosen by a fixed seed, and those that the adapter was not
trained on. A slot counts as heard where its value's words stand in what the answer says was said. Beside the server's answers
stands a guesser that has heard no clip and always says of a slot what is commonest. An answer that is not valid makes the exit
status 1. Writes `drink_orders.json` and `drink_orders.md`.
"""

import json
import sys
import zlib
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

import httpx
import jsonschema
from tqdm import tqdm

from loadtest.support.asking import ask_about, open_client
from loadtest.support.markdown import table
from loadtest.support.options import add_url_flag, new_parser
from loadtest.support.recordings import read_rows
from loadtest.support.results import write_results
from loadtest.support.words import words_of

Slots = dict[str, str]

SET = "coffee_orders_unlabelled"
SAID = "said"
# In the order in which they are mostly said.
SLOTS = ("numberOfShots", "size", "roast", "coffeeDrink", "milkAmount", "sugarAmount")
INSTRUCTION = f"Write the order as JSON. Say of {', '.join(SLOTS[:-1])} and {SLOTS[-1]} only what the speaker ordered."
"""Chosen among seven on twelve other clips. With examples the default LLM takes one of them for the order."""
SEED = 4
TOLD = 10
# The adapter's training left out one clip of so many.
HELD_OUT_SHARE = 25


@dataclass(frozen=True)
class Order:
    """A clip and what is ordered in it."""

    path: Path
    slots: Slots

    @property
    def held_out(self) -> bool:
        """Whether the adapter's training left the clip out (`training/data.py` says which)."""
        return zlib.crc32(self.path.stem.encode()) % HELD_OUT_SHARE == 0


@dataclass(frozen=True)
class Result:
    """The server's answer to an order: the words `said` and the slots `answered`. `problem` says why it is not valid."""

    clip: str
    ordered: Slots
    text: str
    answered: Slots
    said: str
    held_out: bool
    output_tokens: int
    llm_passes: int
    total_ms: float
    problem: str | None = None


def read_orders(manifest: Path) -> list[Order]:
    """Return the orders of a JSON-lines manifest, whose files lie beside it."""
    return [
        Order(manifest.parent / row["file"], {name: value.strip() for name, value in row["intent"]["slots"].items()})
        for row in read_rows(manifest)
        if row["set"] == SET
    ]


def schema_of(orders: list[Order]) -> dict[str, Any]:
    """Return a JSON schema of every order that can be made of the values that occur."""
    properties: dict[str, Any] = {SAID: {"type": "string", "maxLength": 200}}
    for name in SLOTS:
        if values := {order.slots[name] for order in orders if name in order.slots}:
            properties[name] = {"enum": sorted(values)}
    return {"type": "object", "properties": properties, "required": [SAID], "additionalProperties": False}


def commonest(orders: list[Order]) -> Slots:
    """Return the commonest value of every slot; slots that are mostly left out are missing."""
    guesses = {name: Counter(order.slots.get(name) for order in orders).most_common(1)[0][0] for name in SLOTS}
    return {name: value for name, value in guesses.items() if value is not None}


def ask(client: httpx.Client, order: Order, schema: dict[str, Any]) -> Result:
    """Raises `httpx.HTTPError` where there is no answer."""
    reply = ask_about(client, order.path, INSTRUCTION, json_schema=json.dumps(schema), max_tokens="200")
    answered: dict[str, str] = {}
    problem = None
    try:
        answered = json.loads(reply["text"])
        jsonschema.validate(answered, schema)
    except (ValueError, jsonschema.ValidationError) as error:
        answered, problem = {}, str(error).splitlines()[0]
    return Result(
        clip=order.path.name,
        ordered=order.slots,
        text=reply["text"],
        answered={name: answered[name] for name in SLOTS if name in answered},
        said=answered.get(SAID, ""),
        held_out=order.held_out,
        output_tokens=reply["usage"]["output_tokens"],
        llm_passes=reply["speculation"]["llm_passes"],
        total_ms=reply["times_ms"]["total_ms"],
        problem=problem,
    )


def is_heard(value: str, said: str) -> bool:
    """Return whether the words of a value stand in what was said, in this order and together."""
    return f" {' '.join(words_of(value))} " in f" {' '.join(words_of(said))} "


def summarise(results: list[Result], guess: Slots) -> dict[str, int]:
    """Return counts of slots that were said, of slots that were not, and of whole orders."""
    said = [(result, name) for result in results for name in SLOTS if name in result.ordered]
    unsaid = [(result, name) for result in results for name in SLOTS if name not in result.ordered]
    return {
        "orders": len(results),
        "valid": sum(result.problem is None for result in results),
        "said": len(said),
        "heard": sum(is_heard(result.ordered[name], result.said) for result, name in said),
        "said_right": sum(result.answered.get(name) == result.ordered[name] for result, name in said),
        "said_right_by_guessing": sum(guess.get(name) == result.ordered[name] for result, name in said),
        "unsaid": len(unsaid),
        "unsaid_left_out": sum(name not in result.answered for result, name in unsaid),
        "unsaid_left_out_by_guessing": sum(name not in guess for _, name in unsaid),
        "orders_right": sum(result.answered == result.ordered for result in results),
        "tokens": sum(result.output_tokens for result in results),
        "llm_passes": sum(result.llm_passes for result in results),
    }


def summary_table(groups: dict[str, dict[str, int]]) -> str:
    """Return the summaries as a table."""
    heading = [
        "orders",
        "valid under the schema",
        "said slots right",
        "by guessing",
        "heard",
        "unsaid slots left out",
        "by guessing",
    ]
    heading += ["whole orders right", "tokens per LLM pass"]
    rows = []
    for name, counts in groups.items():
        said, unsaid = max(1, counts["said"]), max(1, counts["unsaid"])
        shares = [
            *(f"{100 * counts[key] / said:.0f} %" for key in ("said_right", "said_right_by_guessing", "heard")),
            *(f"{100 * counts[key] / unsaid:.0f} %" for key in ("unsaid_left_out", "unsaid_left_out_by_guessing")),
        ]
        passes = f"{counts['tokens'] / max(1, counts['llm_passes']):.1f}"
        valid, right = (f"{counts[key]} of {counts['orders']}" for key in ("valid", "orders_right"))
        rows.append([name, valid, *shares, right, passes])
    return "\n".join(table(heading, rows)) + "\n"


def listing(results: list[Result]) -> str:
    """Return orders and answers as a table."""
    return "\n".join(table(["ordered", "answered"], [[json.dumps(each.ordered), each.text] for each in results])) + "\n"


def main() -> int:
    parser = new_parser(__doc__)
    add_url_flag(parser)
    parser.add_argument("--manifest", type=Path, required=True, help="JSON lines with file, set and intent")
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--out", type=Path, help="where the results go; without it they are printed only")
    arguments = parser.parse_args()
    orders = read_orders(arguments.manifest)
    schema = schema_of(orders)
    shuffled = Random(SEED).sample(orders, len(orders))
    asked = [*shuffled[: arguments.count], *(order for order in shuffled[arguments.count :] if order.held_out)]
    with open_client(arguments.url) as client:
        results = [ask(client, order, schema) for order in tqdm(asked, unit="order")]
    chosen = {
        f"{TOLD} at random": results[:TOLD],
        f"{arguments.count} at random": results[: arguments.count],
        "not trained on": [result for result in results if result.held_out],
    }
    groups = {name: summarise(group, commonest(orders)) for name, group in chosen.items()}
    print(listing(results[:TOLD]))
    print(summary_table(groups))
    if arguments.out is not None:
        report = {"instruction": INSTRUCTION, "schema": schema, "groups": groups, "results": [asdict(r) for r in results]}
        text = f"{summary_table(groups)}\n{listing(results[:TOLD])}\nThe instruction:\n\n```\n{INSTRUCTION}\n```\n"
        write_results(arguments.out, "drink_orders", report, text)
    return 0 if all(result.problem is None for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
