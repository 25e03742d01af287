"""Which tokens an answer may go on with, so that in the end it matches a grammar."""

import threading
from collections.abc import Sequence

import numpy as np
from cachetools import LRUCache
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from models.protocols import Float32
from models.text.grammar import GrammarError, GrammarKind, compile_grammar, describe
from models.text.tokeniser import Tokeniser

# Each may come to hold about 10 MB, however hostile.
KEPT_GRAMMARS = 16
# Of a long forced text only the beginning is made into tokens, time and again while the answer goes on: more than is proposed at
# once, and more than any token's length.
FORCED_CHARACTERS = 256


class TokenConstraint:
    """Follows one answer, token by token. This one follows no grammar: anything may come. For one thread at a time."""

    @property
    def complete(self) -> bool:
        """Whether the answer matches and nothing can be added to it."""
        return False

    def mask(self, logits: Float32) -> Float32:
        """Logits [vocabulary_size], at minus infinity where the token may not come next. End tokens may where the answer matches.

        Raises `GrammarError` where nothing may come, or the grammar turns out to be too complex.
        """
        return logits

    def forced(self) -> tuple[int, ...]:
        """The next tokens, as far as there is no other way to go on; of very many, the first."""
        return ()

    def allowed(self, tokens: tuple[int, ...]) -> tuple[int, ...]:
        """The first of these tokens, as far as the answer may go on with them."""
        return tokens

    def advance(self, token: int) -> None:
        """The answer went on with this token, which the mask let through."""


class Grammars:
    """Compiles grammars for the tokens of one LLM, and keeps those that were used last. Thread-safe."""

    def __init__(self, tokeniser: Tokeniser, end_tokens: Sequence[int], vocabulary_size: int) -> None:
        vocabulary = TokenizerWrapper(_Vocabulary(tokeniser, end_tokens, vocabulary_size))
        self._tokenizer = LLTokenizer(vocabulary, eos_token=list(end_tokens))
        self._lock = threading.Lock()
        self._matchers: LRUCache[tuple[GrammarKind, str], LLMatcher] = LRUCache(KEPT_GRAMMARS)

    def follow(self, kind: GrammarKind, text: str) -> TokenConstraint:
        """Return the constraint at the beginning of its answer. Raises `GrammarError` where `compile_grammar` refuses."""
        with self._lock:
            matcher = self._matchers.get((kind, text))
        if matcher is None:
            matcher = compile_grammar(self._tokenizer, kind, text)
            with self._lock:
                self._matchers[kind, text] = matcher
        return _GrammarFollower(self, kind, text, matcher.deep_copy())

    def renew(self, kind: GrammarKind, text: str) -> LLMatcher:
        """A matcher of its own; `follow` begins with another one from now on."""
        with self._lock:
            self._matchers.pop((kind, text), None)
        return compile_grammar(self._tokenizer, kind, text)


class _GrammarFollower(TokenConstraint):
    def __init__(self, grammars: Grammars, kind: GrammarKind, text: str, matcher: LLMatcher) -> None:
        self._grammars = grammars
        self._kind = kind
        self._text = text
        self._matcher = matcher
        self._shares = True
        self._tokens: list[int] = []

    @property
    def complete(self) -> bool:
        return self._matcher.is_stopped() and not self._matcher.is_error()

    def mask(self, logits: Float32) -> Float32:
        bits = self._matcher.compute_bitmask()
        if self._shares and self._matcher.is_error():
            # All copies of a matcher share what it learnt, which has a limit: together they get to it sooner than one alone.
            self._matcher = self._grammars.renew(self._kind, self._text)
            self._shares = False
            self._matcher.consume_tokens(self._tokens)
            bits = self._matcher.compute_bitmask()
        if problem := self._matcher.get_error():
            raise GrammarError(describe(problem))
        allowed = np.unpackbits(np.frombuffer(bits, np.uint8), count=len(logits), bitorder="little")
        return np.where(allowed, logits, np.float32(-np.inf))

    def forced(self) -> tuple[int, ...]:
        return tuple(self._matcher.compute_ff_tokens())

    def allowed(self, tokens: tuple[int, ...]) -> tuple[int, ...]:
        return tokens[: self._matcher.validate_tokens(list(tokens))]

    def advance(self, token: int) -> None:
        self._tokens.append(token)
        self._matcher.consume_token(token)


class _Vocabulary:
    """A tokeniser as the library wants it. Special tokens have no bytes, so no text can hold them."""

    bos_token_id = None

    def __init__(self, tokeniser: Tokeniser, end_tokens: Sequence[int], vocabulary_size: int) -> None:
        self.eos_token_id = end_tokens[0]
        self.tokens = [tokeniser.token_bytes(id) for id in range(vocabulary_size)]
        self.special_token_ids = list(tokeniser.special_tokens.values())
        self._encode = tokeniser.encode

    def __call__(self, text: bytes) -> list[int]:
        """The tokens with which a text in UTF-8 begins."""
        return self._encode(text.decode()[:FORCED_CHARACTERS])
