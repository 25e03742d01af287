"""Random constraints that any answer can satisfy in a few dozen tokens, and whether a text satisfies one."""

import json
import re
from collections.abc import Iterator
from typing import Any

import jsonschema
from hypothesis import strategies as st

from server.engine.types.options import Constraint

Schema = dict[str, Any]

texts = st.text(st.sampled_from('ab Zé日🎧"\\/\n\t{}[],:0-'), min_size=1, max_size=5)
scalars: st.SearchStrategy[Schema] = st.one_of(
    st.builds(lambda values: {"enum": values}, st.lists(texts, min_size=1, max_size=4)),
    st.builds(lambda value: {"const": value}, st.one_of(st.booleans(), st.none(), st.integers(-999, 999), texts)),
    st.builds(
        lambda low, more: {"type": "integer", "minimum": low, "maximum": low + more}, st.integers(-9, 9), st.integers(0, 99)
    ),
    st.builds(lambda longest: {"type": "string", "maxLength": longest}, st.integers(0, 5)),
    st.just({"type": "string", "pattern": "^[a-c]{1,3}(-[0-9]{2})?$"}),
    st.just({"type": ["boolean", "null"]}),
)


def _array(items: Schema, least: int, more: int) -> Schema:
    return {"type": "array", "items": items, "minItems": least, "maxItems": least + more}


def _object(properties: dict[str, Schema], optional: set[str]) -> Schema:
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


schemas = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.builds(_array, inner, st.integers(0, 2), st.integers(0, 1)),
        st.builds(_object, st.dictionaries(texts, inner, max_size=3), st.sets(texts, max_size=2)),
        st.builds(lambda each: {"anyOf": each}, st.lists(inner, min_size=1, max_size=2)),
    ),
    max_leaves=3,
)

pieces = st.sampled_from(["a", "b", " ", "é", "日", "1", '"', r"\.", r"\n", "/", "[a-f]", "[0-9]", "[^a]", "."])
regexes = st.recursive(
    pieces,
    lambda inner: st.one_of(
        st.builds(lambda each: "".join(each), st.lists(inner, min_size=1, max_size=4)),
        st.builds(lambda each: f"(?:{'|'.join(each)})", st.lists(inner, min_size=1, max_size=3)),
        st.builds(lambda each, least, more: f"(?:{each}){{{least},{least + more}}}", inner, st.integers(0, 2), st.integers(0, 2)),
    ),
    max_leaves=6,
)

constraints = st.one_of(
    st.builds(lambda schema: Constraint("json_schema", json.dumps(schema)), schemas),
    st.builds(lambda regex: Constraint("regex", regex), regexes),
    st.builds(lambda choice: Constraint("choice", json.dumps(choice)), st.lists(texts, min_size=1, max_size=4)),
)


def satisfies(text: str, constraint: Constraint) -> bool:
    """Return whether the text satisfies the constraint; JSON has to be compact, too."""
    match constraint.kind:
        case "regex":
            return re.fullmatch(constraint.grammar, text) is not None
        case "choice":
            return text in json.loads(constraint.grammar)
        case "json_schema":
            value = json.loads(text)
            jsonschema.validate(value, json.loads(constraint.grammar), jsonschema.Draft202012Validator)
            return not any(character.isspace() for character in _outside_strings(text))


def _outside_strings(text: str) -> Iterator[str]:
    return iter(re.sub(r'"(?:[^"\\]|\\.)*"', "", text))
