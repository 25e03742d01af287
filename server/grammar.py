"""What a constraint means to the library that follows it, llguidance; and what clients are told of one that means nothing."""

import json
import re
from collections.abc import Iterator
from typing import Any

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from server.errors import InvalidConstraint
from server.request import Constraint

MAX_CHARACTERS = 65_536
# What one token may cost: about 0.1 s at the very worst, in a grammar that was written for it, and about 10 MB over all tokens.
LIMITS = LLParserLimits(step_lexer_fuel=50_000, step_max_items=20_000, max_lexer_states=30_000, verbose_errors=False)
# A small LLM that may write blanks wherever JSON allows them sometimes goes on with nothing else.
JSON_OPTIONS = {"whitespace_flexible": False}
TOO_COMPLEX = re.compile(r"[Tt]oo (many|big|large)|limits\.|fuel exhausted|; max is|^panic|^Unable to determine")
MAX_MESSAGE_CHARACTERS = 200

SUBSCHEMAS_BY_NAME = ("properties", "patternProperties", "$defs", "definitions")
SUBSCHEMA_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
SUBSCHEMAS = ("items", "additionalProperties")


def compile_grammar(tokenizer: LLTokenizer, constraint: Constraint) -> LLMatcher:
    """A matcher at the beginning of its answer.

    Raises `InvalidConstraint`. What takes the library very long is not stopped here: `GrammarTrial` knows it beforehand.
    """
    if len(constraint.grammar) > MAX_CHARACTERS:
        raise _invalid(constraint, f"it is longer than {MAX_CHARACTERS} characters")
    match constraint.kind:
        case "json_schema":
            return _compile_schema(tokenizer, constraint)
        case "choice":
            regex = "|".join(map(_literal, _read_choice(constraint)))
        case "regex":
            regex = constraint.grammar
    matcher, problem = _try(tokenizer, _regex_grammar(constraint, regex))
    if problem:
        raise _invalid(constraint, describe(problem))
    return matcher


def _compile_schema(tokenizer: LLTokenizer, constraint: Constraint) -> LLMatcher:
    schema = _read_json(constraint)
    if not isinstance(schema, dict):
        raise _invalid(constraint, "it is no JSON object")
    matcher, problem = _try(tokenizer, _schema_grammar(schema))
    if problem:
        shared = {name: schema[name] for name in ("$defs", "definitions") if name in schema}
        place = _find(tokenizer, schema, shared, problem)
        raise _invalid(constraint, describe(problem) + (f", at {place[:MAX_MESSAGE_CHARACTERS]}" if place else ""))
    return matcher


def _try(tokenizer: LLTokenizer, grammar: str) -> tuple[LLMatcher, str]:
    """A matcher, and what is wrong with it, or with the first token after what it forces."""
    matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=LIMITS)
    first = matcher.deep_copy()
    first.consume_tokens(first.compute_ff_tokens())
    first.compute_bitmask()
    return matcher, first.get_error()


def _read_json(constraint: Constraint) -> Any:
    try:
        return json.loads(constraint.grammar)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise _invalid(constraint, f"it is no JSON: {error.msg}, at {place}") from None
    except (ValueError, RecursionError):
        raise _invalid(constraint, "its JSON is nested too deeply, or has too long a number") from None


def _read_choice(constraint: Constraint) -> list[str]:
    texts = _read_json(constraint)
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) and text for text in texts):
        raise _invalid(constraint, "it is no JSON array of strings of at least one character")
    return texts


def _schema_grammar(schema: dict[str, Any]) -> str:
    """With our options in place of those that a schema may hold for the library."""
    return LLMatcher.grammar_from_json_schema(json.dumps({**schema, "x-guidance": JSON_OPTIONS}))


def _regex_grammar(constraint: Constraint, regex: str) -> str:
    try:
        return LLMatcher.grammar_from_regex(regex)
    except UnicodeEncodeError:
        raise _invalid(constraint, "it holds half a character") from None


def _literal(text: str) -> str:
    """A regular expression that only this text matches."""
    return "".join(each if each.isascii() and each.isalnum() else f"\\x{{{ord(each):x}}}" for each in text)


def _find(tokenizer: LLTokenizer, schema: dict[str, Any], shared: dict[str, Any], problem: str) -> str:
    """The JSON pointer of the innermost part of a schema that has the problem all by itself; empty for the whole.

    `shared` is what its references need.
    """
    for pointer, part in _parts(schema):
        if _try(tokenizer, _schema_grammar({**shared, **part}))[1] == problem:
            return pointer + _find(tokenizer, part, shared, problem)
    return ""


def _parts(schema: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The schemas within a schema, with the pointers to them."""
    for keyword, value in schema.items():
        if keyword in SUBSCHEMAS_BY_NAME and isinstance(value, dict):
            within: Any = value.items()
        elif keyword in SUBSCHEMA_LISTS and isinstance(value, list):
            within = enumerate(value)
        elif keyword in SUBSCHEMAS and isinstance(value, dict):
            yield f"/{keyword}", value
            continue
        else:
            continue
        for name, part in within:
            if isinstance(part, dict):
                escaped = str(name).replace("~", "~0").replace("/", "~1")
                yield f"/{keyword}/{escaped}", part


def describe(problem: str) -> str:
    """A problem as the library puts it, for clients: without the library's insides, and with the place in a regex."""
    if TOO_COMPLEX.search(problem):
        return "it is too complex"
    if "NoExtension" in problem:
        return "no text matches it"
    if "doesn't satisfy the grammar" in problem:
        return "it needs a character that the model cannot write"
    if syntax := re.search(r"^error: (.+)$", problem, re.MULTILINE):
        caret = re.search(r"^ {4}( *)\^", problem, re.MULTILINE)
        return syntax[1] + (f", at character {len(caret[1]) + 1} of the regular expression" if caret else "")
    first, *_ = re.sub(r"^at \d+\(\d+\): invalid regex \".*\" \(in regex\): ", "", problem).splitlines()
    return first.partition(". ")[0][:MAX_MESSAGE_CHARACTERS]


def _invalid(constraint: Constraint, problem: str) -> InvalidConstraint:
    return InvalidConstraint(f"No answer can follow this {constraint.kind}: {problem}.", param=constraint.kind)
