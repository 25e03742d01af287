"""Which tokens an answer may continue with, so that in the end it matches a grammar."""

import contextlib
import threading
import time
from collections.abc import Iterator, Sequence

import numpy as np
from cachetools import LRUCache
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from models.protocols import Float32
from models.text.grammar import GrammarError, GrammarKind, compile_grammar, describe
from models.text.tokeniser import Tokeniser

# Each may come to hold about 10 MB, however hostile.
KEPT_GRAMMARS = 16
# The CPU time that following one answer may take on the thread that decodes for all: in all, and for each token.
# Measured 0.2 to 0.8 ms a token for honest grammars, and up to 100 ms for grammars that were written for it.
START_CPU_S = 0.25
CPU_S_PER_TOKEN = 0.003
# Of a long forced text only the beginning is made into tokens, again at each step: more than is proposed at once, and more than
# the length of any token.
FORCED_CHARACTERS = 256


class TokenConstraint:
    """Follows one answer, token by token. This class allows any answer. For one thread at a time."""

    @property
    def complete(self) -> bool:
        """Whether the answer matches and nothing can be added to it."""
        return False

    def mask(self, logits: Float32) -> Float32:
        """Return logits [vocabulary_size] with minus infinity for tokens that may not come next.

        End tokens may come where the answer matches. Raises `GrammarError` where no token may come, or the grammar turns out to
        be too complex or takes too long.
        """
        return logits

    def forced(self) -> tuple[int, ...]:
        """Return the next tokens as far as there is only one way to continue; of very many, the first."""
        return ()

    def allowed(self, tokens: tuple[int, ...]) -> tuple[int, ...]:
        """Return the first of these tokens, as many as the answer may continue with."""
        return tokens

    def advance(self, token: int) -> None:
        """Continue the answer with a token that the mask allowed."""


class Grammars:
    """Compiles grammars for the tokens of one LLM and keeps the ones that were used last. Thread-safe."""

    def __init__(self, tokeniser: Tokeniser, end_tokens: Sequence[int], vocabulary_size: int) -> None:
        vocabulary = TokenizerWrapper(_Vocabulary(tokeniser, end_tokens, vocabulary_size))
        self._tokenizer = LLTokenizer(vocabulary, eos_token=list(end_tokens))
        self._lock = threading.Lock()
        self._matchers: LRUCache[tuple[GrammarKind, str], LLMatcher] = LRUCache(KEPT_GRAMMARS)
        # Held by the thread that compiles, while others may take what is compiled.
        self._compiling = threading.Lock()

    def follow(self, kind: GrammarKind, text: str) -> TokenConstraint:
        """Return the constraint at the beginning of an answer.

        Raises `GrammarError` where `compile_grammar` does. Threads that want the same grammar compile it once.
        """
        matcher = self._find(kind, text)
        if matcher is None:
            with self._compiling:
                matcher = self._find(kind, text)
                if matcher is None:
                    matcher = compile_grammar(self._tokenizer, kind, text)
                    with self._lock:
                        self._matchers[kind, text] = matcher
        return _GrammarConstraint(self, kind, text, matcher.deep_copy())

    def compile_alone(self, kind: GrammarKind, text: str) -> LLMatcher:
        """Return a matcher that shares nothing with others. Later calls of `follow` begin with a fresh one too."""
        with self._lock:
            self._matchers.pop((kind, text), None)
        return compile_grammar(self._tokenizer, kind, text)

    def _find(self, kind: GrammarKind, text: str) -> LLMatcher | None:
        with self._lock:
            return self._matchers.get((kind, text))


class _GrammarConstraint(TokenConstraint):
    def __init__(self, grammars: Grammars, kind: GrammarKind, text: str, matcher: LLMatcher) -> None:
        self._grammars = grammars
        self._kind = kind
        self._text = text
        self._matcher = matcher
        self._shares = True
        self._tokens: list[int] = []
        self._cpu_s = 0.0

    @property
    def complete(self) -> bool:
        return self._matcher.is_stopped() and not self._matcher.is_error()

    def mask(self, logits: Float32) -> Float32:
        with self._timed():
            bits = self._matcher.compute_bitmask()
        if self._shares and self._matcher.is_error():
            # Copies of a matcher share what they learnt, which is limited: together they reach the limit sooner than one alone.
            self._matcher = self._grammars.compile_alone(self._kind, self._text)
            self._shares = False
            with self._timed():
                self._matcher.consume_tokens(self._tokens)
                bits = self._matcher.compute_bitmask()
        if problem := self._matcher.get_error():
            raise GrammarError(describe(problem))
        if self._cpu_s > START_CPU_S + CPU_S_PER_TOKEN * len(self._tokens):
            raise GrammarError("it takes too long")
        allowed = np.unpackbits(np.frombuffer(bits, np.uint8), count=len(logits), bitorder="little")
        return np.where(allowed, logits, np.float32(-np.inf))

    def forced(self) -> tuple[int, ...]:
        with self._timed():
            return tuple(self._matcher.compute_ff_tokens())

    def allowed(self, tokens: tuple[int, ...]) -> tuple[int, ...]:
        with self._timed():
            return tokens[: self._matcher.validate_tokens(list(tokens))]

    def advance(self, token: int) -> None:
        self._tokens.append(token)
        with self._timed():
            self._matcher.consume_token(token)

    @contextlib.contextmanager
    def _timed(self) -> Iterator[None]:
        started_s = time.thread_time()
        yield
        self._cpu_s += time.thread_time() - started_s


class _Vocabulary:
    """A tokeniser with the interface that the library expects. Special tokens have no bytes, so no text can hold them."""

    bos_token_id = None

    def __init__(self, tokeniser: Tokeniser, end_tokens: Sequence[int], vocabulary_size: int) -> None:
        self.eos_token_id = end_tokens[0]
        self.tokens = [tokeniser.token_bytes(id) for id in range(vocabulary_size)]
        self.special_token_ids = list(tokeniser.special_tokens.values())
        self._encode = tokeniser.encode

    def __call__(self, text: bytes) -> list[int]:
        """Return the tokens at the beginning of a text in UTF-8."""
        return self._encode(text.decode()[:FORCED_CHARACTERS])
