"""Grammars that an answer has to match, compiled by llguidance, and in plain words what is wrong with one that cannot be."""

import json
import re
from collections.abc import Iterator
from typing import Any, Literal

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

GrammarKind = Literal["json_schema", "regex", "choice"]

MAX_CHARACTERS = 65_536
# They bound the cost of one token: about 0.1 s at worst, in a grammar that was written for it, and 10 MB over all tokens.
# An object of 1,000 optional properties needs 4,000 items in a row.
LIMITS = LLParserLimits(
    step_lexer_fuel=50_000, step_max_items=20_000, max_items_in_row=20_000, max_lexer_states=30_000, verbose_errors=False
)
# A small LLM that may write blanks wherever JSON allows them sometimes writes nothing else.
JSON_OPTIONS = {"whitespace_flexible": False}
MAX_PROBLEM_CHARACTERS = 200

TOO_COMPLEX = re.compile(r"[Tt]oo (many|big|large)|limits\.|fuel exhausted|; max is|^panic|^Unable to determine")
IN_REGEX = re.compile(r"^at \d+\(\d+\): invalid regex \".*\" \(in regex\): ")
DEFINITIONS = ("$defs", "definitions")
SUBSCHEMAS_BY_NAME = (*DEFINITIONS, "properties", "patternProperties")
SUBSCHEMA_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
SUBSCHEMAS = ("items", "additionalProperties")


class GrammarError(ValueError):
    """No answer can match a constraint. The message is part of a sentence for clients: what is wrong, and where."""


def compile_grammar(tokenizer: LLTokenizer, kind: GrammarKind, text: str) -> LLMatcher:
    """Return a matcher at the beginning of an answer.

    The answer is compact JSON under a JSON schema, or a text that a regex matches as a whole, or one of a JSON array of strings.
    Raises `GrammarError`. A few thousand characters can keep the library busy for minutes, and nothing here stops it.
    """
    if len(text) > MAX_CHARACTERS:
        raise GrammarError(f"it is longer than {MAX_CHARACTERS} characters")
    match kind:
        case "json_schema":
            return _compile_schema(tokenizer, text)
        case "choice":
            regex = "|".join(map(_literal, _read_choice(text)))
        case "regex":
            regex = text
            _refuse_halves(regex)
            # The library would drop the backslash.
            if (len(regex) - len(regex.rstrip("\\"))) % 2:
                raise GrammarError("the backslash at its end escapes nothing")
    matcher, problem = _try(tokenizer, LLMatcher.grammar_from_regex(regex))
    if problem:
        raise GrammarError(describe(problem))
    return matcher


def describe(problem: str) -> str:
    """Return the library's complaint in plain words, with the place in a regex."""
    if TOO_COMPLEX.search(problem):
        return "it is too complex"
    if "NoExtension" in problem:
        return "nothing can match it"
    if "doesn't satisfy the grammar" in problem:
        return "it needs a character that the model cannot write"
    if problem.startswith("Resource '"):
        return "it refers to another document"
    if syntax := re.search(r"^error: (.+)$", problem, re.MULTILINE):
        caret = re.search(r"^ {4}( *)\^", problem, re.MULTILINE)
        return syntax[1] + (f", at character {len(caret[1]) + 1} of the regular expression" if caret else "")
    first, *_ = IN_REGEX.sub("", problem).splitlines()
    return first.partition(". ")[0].partition(" in regex /")[0][:MAX_PROBLEM_CHARACTERS]


def _compile_schema(tokenizer: LLTokenizer, text: str) -> LLMatcher:
    schema = _read_json(text)
    if not isinstance(schema, dict):
        raise GrammarError("it is no JSON object")
    matcher, problem = _try(tokenizer, _schema_grammar(schema))
    if problem:
        shared = {name: schema[name] for name in DEFINITIONS if name in schema}
        place = _find(tokenizer, schema, shared, problem)[:MAX_PROBLEM_CHARACTERS]
        raise GrammarError(describe(problem) + (f", at {place}" if place else ""))
    return matcher


def _try(tokenizer: LLTokenizer, grammar: str) -> tuple[LLMatcher, str]:
    """Return a matcher, and what is wrong with it or with the first token that it does not force; empty where nothing is."""
    matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=LIMITS)
    first = matcher.deep_copy()
    first.consume_tokens(first.compute_ff_tokens())
    first.compute_bitmask()
    return matcher, first.get_error()


def _read_json(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise GrammarError(f"it is no JSON: {error.msg}, at line {error.lineno}, column {error.colno}") from None
    except (ValueError, RecursionError):
        raise GrammarError("its JSON is nested too deeply, or has too long a number") from None


def _read_choice(text: str) -> list[str]:
    texts = _read_json(text)
    if not isinstance(texts, list) or not texts or not all(isinstance(each, str) and each for each in texts):
        raise GrammarError("it is no JSON array of strings of at least one character")
    _refuse_halves("".join(texts))
    return texts


def _refuse_halves(text: str) -> None:
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise GrammarError("it holds half a character")


def _literal(text: str) -> str:
    """Return a regular expression that matches this text alone."""
    return "".join(each if each.isascii() and each.isalnum() else f"\\x{{{ord(each):x}}}" for each in text)


def _schema_grammar(schema: dict[str, Any]) -> str:
    """Return the schema as a grammar, with our options in place of any that it holds for the library."""
    return LLMatcher.grammar_from_json_schema(json.dumps({**schema, "x-guidance": JSON_OPTIONS}))


def _find(tokenizer: LLTokenizer, schema: dict[str, Any], shared: dict[str, Any], problem: str) -> str:
    """Return the JSON pointer to the innermost part of a schema that has the problem by itself; empty for the whole.

    `shared` holds the definitions that references need.
    """
    for pointer, part in _parts(schema):
        if _try(tokenizer, _schema_grammar({**shared, **part}))[1] == problem:
            return pointer + _find(tokenizer, part, shared, problem)
    return ""


def _parts(schema: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the schemas within a schema, each with the pointer to it."""
    for keyword, value in schema.items():
        parts: list[tuple[str, Any]] = []
        if keyword in SUBSCHEMAS_BY_NAME and isinstance(value, dict):
            parts = [(f"/{keyword}/{name.replace('~', '~0').replace('/', '~1')}", part) for name, part in value.items()]
        elif keyword in SUBSCHEMA_LISTS and isinstance(value, list):
            parts = [(f"/{keyword}/{index}", part) for index, part in enumerate(value)]
        elif keyword in SUBSCHEMAS:
            parts = [(f"/{keyword}", value)]
        yield from ((pointer, part) for pointer, part in parts if isinstance(part, dict))
