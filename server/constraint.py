"""Which tokens an answer may go on with, so that in the end it matches a constraint."""

import threading
from collections.abc import Sequence

import numpy as np
from cachetools import LRUCache
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from models.backends import Float32
from models.prompt import Tokeniser
from server.errors import InvalidConstraint
from server.grammar import compile_grammar, describe
from server.request import Constraint

# Each may come to hold about 10 MB, however hostile.
CACHED_GRAMMARS = 16
# Of a long forced text only the beginning is turned into tokens, again and again as the answer goes on: more than is proposed
# at once, and more than any token's length.
FORCED_CHARACTERS = 256


class Follower:
    """Follows one answer token by token. This one is without a constraint: anything may come."""

    complete = False
    """Whether the answer is whole, and nothing may follow."""

    def mask(self, logits: Float32) -> Float32:
        """Logits [vocabulary_size], at minus infinity where the token may not come next. End tokens may where the answer is one
        that matches. Raises `InvalidConstraint` where nothing may come, or the constraint turns out to be too complex."""
        return logits

    def forced(self, room: int) -> tuple[int, ...]:
        """The tokens, at most `room`, that the answer has to go on with."""
        return ()

    def allowed(self, tokens: Sequence[int]) -> Sequence[int]:
        """As many of the tokens as the answer may go on with."""
        return tokens

    def advance(self, token: int) -> None:
        """The answer went on with this token, which the mask allowed."""


class Constraints:
    """Follows constraints with one tokeniser's tokens. Thread-safe; a `Follower` is for one thread at a time."""

    def __init__(self, tokeniser: Tokeniser, end_tokens: Sequence[int], vocabulary_size: int) -> None:
        vocabulary = TokenizerWrapper(_Vocabulary(tokeniser, end_tokens, vocabulary_size))
        self._tokenizer = LLTokenizer(vocabulary, eos_token=list(end_tokens))
        self._lock = threading.Lock()
        self._grammars: LRUCache[Constraint, LLMatcher] = LRUCache(CACHED_GRAMMARS)

    def follow(self, constraint: Constraint | None) -> Follower:
        """Raises `InvalidConstraint` for one that no answer can match. A constraint that was followed lately costs no time."""
        if constraint is None:
            return Follower()
        with self._lock:
            grammar = self._grammars.get(constraint)
        if grammar is None:
            grammar = self.compile(constraint)
        return _GrammarFollower(self, constraint, grammar.deep_copy())

    def compile(self, constraint: Constraint) -> LLMatcher:
        """A matcher that shares nothing with those before, and is what `follow` starts from from now on."""
        grammar = compile_grammar(self._tokenizer, constraint)
        with self._lock:
            self._grammars[constraint] = grammar
        return grammar


class _GrammarFollower(Follower):
    def __init__(self, constraints: Constraints, constraint: Constraint, matcher: LLMatcher) -> None:
        self._constraints = constraints
        self._constraint = constraint
        self._matcher = matcher
        self._tokens: list[int] = []

    @property
    def complete(self) -> bool:  # type: ignore[override]
        return self._matcher.is_stopped() and not self._matcher.is_error()

    def mask(self, logits: Float32) -> Float32:
        bits = self._matcher.compute_bitmask()
        if self._matcher.is_error():
            # The lexer grows with every request that shares it, up to the limit that each of them may reach alone.
            self._matcher = self._constraints.compile(self._constraint).deep_copy()
            self._matcher.consume_tokens(self._tokens)
            bits = self._matcher.compute_bitmask()
        if problem := self._matcher.get_error():
            message = f"The answer cannot go on under its {self._constraint.kind}: {describe(problem)}."
            raise InvalidConstraint(message, param=self._constraint.kind)
        allowed = np.unpackbits(np.frombuffer(bits, np.uint8), count=len(logits), bitorder="little")
        return np.where(allowed, logits, np.float32(-np.inf))

    def forced(self, room: int) -> tuple[int, ...]:
        return tuple(self._matcher.compute_ff_tokens()[: max(0, room)])

    def allowed(self, tokens: Sequence[int]) -> Sequence[int]:
        return tokens[: self._matcher.validate_tokens(list(tokens))]

    def advance(self, token: int) -> None:
        self._tokens.append(token)
        self._matcher.consume_token(token)


class _Vocabulary:
    """A tokeniser as the library wants it. Special tokens have no bytes, so that no text has them."""

    bos_token_id = None

    def __init__(self, tokeniser: Tokeniser, end_tokens: Sequence[int], vocabulary_size: int) -> None:
        self.eos_token_id = end_tokens[0]
        self.tokens = [tokeniser.token_bytes(id) for id in range(vocabulary_size)]
        self.special_token_ids = list(tokeniser.special_tokens.values())
        self._encode = tokeniser.encode

    def __call__(self, text: bytes) -> list[int]:
        """Tokens of the beginning of a text in UTF-8."""
        return self._encode(text.decode()[:FORCED_CHARACTERS])
