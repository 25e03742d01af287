"""Token ids to text while they arrive, up to a stop string."""

import codecs

from models.text.tokeniser import Tokeniser
from models.text.transcript_label import TranscriptLabel


class Detokeniser:
    """The text of one answer, in deltas that never split a character.

    The deltas joined equal `tokeniser.decode(tokens).strip(padding)`, cut before the stop string that is complete first, or the
    longest of several that end together. Stop strings are found before stripping. Padding is held back until text follows it,
    and a possible beginning of a stop string until it is decided.

    A label before the text may name its `language`, or say that nothing was said (`is_silent`); `marker` is the token that ends
    the label that is being written. Here is none.
    """

    language: str | None = None
    is_silent: bool = False
    marker: int | None = None

    def __init__(self, tokeniser: Tokeniser, stop: tuple[str, ...] = (), padding: str | None = None) -> None:
        """`stop` holds no empty string. `padding` is as for `str.strip`: characters, or None for whitespace."""
        self.text = ""
        self.stopped = False
        self._tokeniser = tokeniser
        self._stop = stop
        self._padding = padding
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._undecided = ""
        self._held_back = ""

    def push(self, token: int) -> str:
        """Return the text that this token completes: often none, and none for special tokens or once `stopped` is set."""
        return self._search(self._decoder.decode(self._tokeniser.token_bytes(token)))

    def finish(self) -> str:
        """Return the last delta: the text that was held back, and U+FFFD if the answer ended within a character."""
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


class LabelledDetokeniser(Detokeniser):
    """The text behind a label, which is no part of it. Tokens that begin no label, or come without its marker, are text."""

    def __init__(self, tokeniser: Tokeniser, stop: tuple[str, ...], label: TranscriptLabel) -> None:
        super().__init__(tokeniser, stop)
        self.marker = label.marker
        self._label = label
        self._labelled: list[int] = []
        self._names_none = False

    def push(self, token: int) -> str:
        if self.marker is None:
            return super().push(token)
        if token == self.marker:
            self._read_label()
            return ""
        self._labelled.append(token)
        return "" if self._label.may_begin(self._tokeniser.decode(self._labelled)) else self._take_for_text()

    def finish(self) -> str:
        """Return the last delta. A label that was cut short is dropped, any other text of the kind is text."""
        is_cut_short = self.marker is not None and self._label.is_cut_short(self._tokeniser.decode(self._labelled))
        taken = "" if is_cut_short else self._take_for_text()
        delta = taken + super().finish()
        self.is_silent = self._names_none and not self.text
        return delta

    def _read_label(self) -> None:
        text = self._tokeniser.decode(self._labelled)
        self.language, self._names_none = self._label.read_language(text), self._label.names_none(text)
        self.marker, self._labelled = None, []

    def _take_for_text(self) -> str:
        tokens, self.marker, self._labelled = self._labelled, None, []
        return "".join(super(LabelledDetokeniser, self).push(token) for token in tokens)


def overlap(text: str, stop: str) -> int:
    """Return the length of the longest end of `text` that is a proper beginning of `stop`."""
    return next(length for length in range(min(len(text), len(stop) - 1), -1, -1) if text.endswith(stop[:length]))
