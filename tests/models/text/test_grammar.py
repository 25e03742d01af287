"""A constraint that no answer can match is refused with the reason and the place."""

import json
from typing import Any

import pytest
from llguidance import LLTokenizer

from models.text.grammar import GrammarError, GrammarKind, compile_grammar

TOKENIZER = LLTokenizer("byte")


def within(part: Any) -> str:
    """A schema with a part that is not at its top."""
    return json.dumps({"type": "object", "properties": {"a/b": {"items": {"anyOf": [{"type": "null"}, part]}}}})


PLACE = "at /properties/a~1b/items/anyOf/1."
SELF = {"type": "object", "properties": {"self": {"$ref": "#"}}, "required": ["self"], "additionalProperties": False}
MEANINGLESS: list[tuple[GrammarKind, str, str]] = [
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


@pytest.mark.parametrize(("kind", "text", "problem"), MEANINGLESS, ids=range(len(MEANINGLESS)))
def test_the_meaningless_is_refused_with_the_reason_and_the_place(kind: GrammarKind, text: str, problem: str) -> None:
    with pytest.raises(GrammarError) as refusal:
        compile_grammar(TOKENIZER, kind, text)
    message = f"{refusal.value}."
    assert problem in message
    assert len(message) < 400
