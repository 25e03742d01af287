"""Constraints that mean nothing are refused with the reason and the place, and hostile ones within a moment."""

import asyncio
import json
import sys
from asyncio.subprocess import Process
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from server.constraints.sandbox import GrammarSandbox
from server.engine.types.options import Constraint, ConstraintKind
from server.errors import InvalidConstraint, NotReady


def within(part: Any) -> str:
    """A schema with a part that is not at its top."""
    return json.dumps({"type": "object", "properties": {"a/b": {"items": {"anyOf": [{"type": "null"}, part]}}}})


PLACE = "at /properties/a~1b/items/anyOf/1."
SELF = {"type": "object", "properties": {"self": {"$ref": "#"}}, "required": ["self"], "additionalProperties": False}
MEANINGLESS: list[tuple[ConstraintKind, str, str]] = [
    ("json_schema", '{"a":\n 1,}', "no JSON: Expecting property name enclosed in double quotes, at line 2, column 4."),
    ("json_schema", '["type"]', "no JSON object."),
    ("json_schema", "true", "no JSON object."),
    ("json_schema", '{"items":' * 7000 + "{}" + "}" * 7000, "longer than 65536 characters."),
    ("json_schema", '{"items":' * 6000 + "{}" + "}" * 6000, "nested too deeply"),
    ("json_schema", '{"const":' + "9" * 5000 + "}", "too long a number."),
    ("json_schema", within({"type": "text"}), f"Invalid type: text, {PLACE}"),
    ("json_schema", within({"not": {}}), f'Unimplemented keys: ["not"], {PLACE}'),
    (
        "json_schema",
        within({"type": "string", "pattern": "a(b"}),
        "unclosed group, at character 2 of the regular expression, " + PLACE,
    ),
    ("json_schema", within({"$ref": "#/$defs/nothing"}), f"Pointer '/$defs/nothing' does not exist, {PLACE}"),
    (
        "json_schema",
        '{"type": "integer", "minimum": 3, "maximum": 2}',
        "Unsatisfiable schema: minimum (3) is greater than maximum (2).",
    ),
    ("json_schema", '{"$ref": "file:///etc/passwd"}', "it refers to another document."),
    ("json_schema", '{"$ref": "#"}', "nothing can match it."),
    ("regex", "a(b", "unclosed group, at character 2 of the regular expression."),
    ("regex", r"(?=a)b", "look-around, including look-ahead and look-behind, is not supported, at character 1"),
    ("regex", r"(a)\1", "backreferences are not supported, at character 4"),
    ("regex", r"\bword\b", "lookarounds not supported yet; WordUnicode."),
    ("regex", "a\\\\\\", "the backslash at its end escapes nothing."),
    ("regex", r"[^\s\S]", "nothing can match it."),
    ("regex", "\ud800", "it holds half a character."),
    ("choice", "yes", "no JSON: Expecting value, at line 1, column 1."),
    ("choice", "[]", "no JSON array of strings of at least one character."),
    ("choice", '["a", 1]', "no JSON array of strings"),
    ("choice", '["a", ""]', "no JSON array of strings"),
    ("choice", '{"a": 1}', "no JSON array of strings"),
    ("choice", r'["\udfff"]', "it holds half a character."),
]
HOSTILE: dict[str, tuple[ConstraintKind, str]] = {
    "optional characters": ("regex", "a?" * 20_000),
    "unicode classes": ("regex", r"\w?" * 4000),
    "anything, often": ("regex", ".*" * 4000),
    "repetition of repetitions": ("regex", "(a{1000}){1000}"),
    "groups in groups": ("regex", "(" * 20_000 + ")" * 20_000),
    "patterns that all have to match": (
        "json_schema",
        json.dumps({"type": "string", "allOf": [{"pattern": f"a.*{number}"} for number in range(186)]}),
    ),
    "optional properties": ("json_schema", json.dumps({"properties": {f"p{number}": {} for number in range(4000)}})),
    "alternatives of alternatives": (
        "json_schema",
        json.dumps({"allOf": [{"anyOf": [{"required": [f"{name}{number}"]} for name in "ab"]} for number in range(25)]}),
    ),
    "an object that has to hold itself": ("json_schema", json.dumps(SELF)),
    "references in circles": ("json_schema", '{"$defs": {"a": {"allOf": [{"$ref": "#/$defs/a"}, {}]}}, "$ref": "#/$defs/a"}'),
}
GIVE_UP_S = 60
LARGE: dict[str, tuple[ConstraintKind, str]] = {
    "a choice of 5,000": ("choice", json.dumps([f"word {number}" for number in range(4000)])),
    "an enum of 4,000": ("json_schema", json.dumps({"enum": [f"word {number}" for number in range(4000)]})),
    "100 properties": ("json_schema", json.dumps({"properties": {f"p{number}": {"type": "string"} for number in range(100)}})),
    "a tree": ("json_schema", json.dumps({"type": "object", "properties": {"left": {"$ref": "#"}, "right": {"$ref": "#"}}})),
    "a long text": ("regex", r"(?s).{1,50000}"),
}


def with_trial(use: Callable[[GrammarSandbox], Awaitable[None]]) -> None:
    async def run() -> None:
        trial = GrammarSandbox()
        try:
            await use(trial)
        finally:
            await trial.close()

    asyncio.run(run())


def test_the_meaningless_is_refused_with_the_reason_and_the_place() -> None:
    async def use(trial: GrammarSandbox) -> None:
        for kind, text, problem in MEANINGLESS:
            with pytest.raises(InvalidConstraint) as refusal:
                await trial.check(Constraint(kind, text))
            assert refusal.value.message.startswith(f"No answer can match this {kind}: ")
            assert problem in refusal.value.message
            assert refusal.value.param == kind
            assert len(refusal.value.message) < 500

    with_trial(use)


@pytest.mark.parametrize(("kind", "text"), HOSTILE.values(), ids=HOSTILE)
def test_the_hostile_is_refused_and_holds_up_nobody(kind: ConstraintKind, text: str) -> None:
    async def use(trial: GrammarSandbox) -> None:
        async with asyncio.timeout(GIVE_UP_S):
            with pytest.raises(InvalidConstraint):
                await trial.check(Constraint(kind, text))
            await trial.check(Constraint("regex", "a+"))

    with_trial(use)


def test_the_large_is_taken() -> None:
    async def use(trial: GrammarSandbox) -> None:
        for kind, text in LARGE.values():
            await trial.check(Constraint(kind, text))

    with_trial(use)


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> list[Process]:
    """Those that trials start."""
    started: list[Process] = []
    start = asyncio.create_subprocess_exec

    async def start_and_note(*arguments: Any, **options: Any) -> Process:
        started.append(await start(*arguments, **options))
        return started[-1]

    monkeypatch.setattr(asyncio, "create_subprocess_exec", start_and_note)
    return started


def test_a_verdict_is_reached_once(children: list[Process]) -> None:
    async def use(trial: GrammarSandbox) -> None:
        for _ in range(3):
            with pytest.raises(InvalidConstraint, match="too complex"):
                await trial.check(Constraint(*HOSTILE["optional characters"]))
        assert len(children) == 1
        for text in ("a", "b", "a"):
            await trial.check(Constraint("regex", text))
        assert len(children) == 2, "the first one died of it"

    with_trial(use)


def test_a_child_that_dies_of_nothing_is_no_verdict(children: list[Process]) -> None:
    async def use(trial: GrammarSandbox) -> None:
        await trial.check(Constraint("regex", "a"))
        children[0].kill()
        await children[0].wait()
        await trial.check(Constraint("regex", "b"))

    with_trial(use)
    assert [child.returncode is not None for child in children] == [True, True], "none is left behind"


def test_a_client_that_leaves_takes_no_verdict_along() -> None:
    async def use(trial: GrammarSandbox) -> None:
        await trial.check(Constraint("regex", "a"))
        leaving = asyncio.create_task(trial.check(Constraint(*HOSTILE["optional characters"])))
        staying = asyncio.create_task(trial.check(Constraint("regex", "b")))
        await asyncio.sleep(0.02)
        leaving.cancel()
        await staying
        with pytest.raises(InvalidConstraint, match="unclosed"):
            await trial.check(Constraint("regex", "a("))

    with_trial(use)


def test_no_child_means_not_ready_and_not_that_the_constraint_is_bad(monkeypatch: pytest.MonkeyPatch) -> None:
    async def use(trial: GrammarSandbox) -> None:
        monkeypatch.setattr(sys, "executable", "/bin/false")
        with pytest.raises(NotReady):
            await trial.check(Constraint("regex", "a"))
        monkeypatch.undo()
        await trial.check(Constraint("regex", "a"))

    with_trial(use)
