"""Token ids to text while they arrive, up to a stop string."""

import codecs

from models.text.tokeniser import Tokeniser


class Detokeniser:
    """The text of one answer, in deltas that never split a character.

    The deltas joined equal `tokeniser.decode(tokens).strip(padding)`, cut before the first stop string: the one that is complete
    first, and of several that end together the longest. Stop strings are looked for before anything is stripped. Padding
    is held back until text follows it, and what may be the beginning of a stop string until it is decided.
    """

    def __init__(self, tokeniser: Tokeniser, stop: tuple[str, ...] = (), padding: str | None = None) -> None:
        """`stop` holds no empty string. `padding` are characters, as for `str.strip`, which takes None for whitespace."""
        self.text = ""
        self.stopped = False
        self._tokeniser = tokeniser
        self._stop = stop
        self._padding = padding
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._undecided = ""
        self._held_back = ""

    def push(self, token: int) -> str:
        """The text that this token completes; often, for special tokens always, and once `stopped` is set, the empty string."""
        return self._search(self._decoder.decode(self._tokeniser.token_bytes(token)))

    def finish(self) -> str:
        """The last delta: what was held back, and U+FFFD where the answer ended within a character."""
        delta = self._search(self._decoder.decode(b"", final=True))
        undecided, self._undecided = self._undecided, ""
        return delta + self._append(undecided)

    def _search(self, piece: str) -> str:
        if self.stopped or not piece:
            return ""
        if not self._stop:
            return self._append(piece)
        text = self._undecided + piece
        found = [(start + len(stop), start) for stop in self._stop if (start := text.find(stop)) >= 0]
        if found:
            self.stopped, self._undecided = True, ""
            return self._append(text[: min(found)[1]])
        decided = len(text) - max(overlap(text, stop) for stop in self._stop)
        self._undecided = text[decided:]
        return self._append(text[:decided])

    def _append(self, piece: str) -> str:
        pending = self._held_back + piece if self.text else piece.lstrip(self._padding)
        delta = pending.rstrip(self._padding)
        self._held_back = pending[len(delta) :]
        self.text += delta
        return delta


def overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` that is a beginning of `stop`, but not all of it."""
    return next(length for length in range(min(len(text), len(stop) - 1), -1, -1) if text.endswith(stop[:length]))
