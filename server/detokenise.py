"""Token ids to text while they arrive."""

import codecs

from models.prompt import Tokeniser


class Detokeniser:
    """The text of one answer, in deltas that never split a character.

    The deltas joined equal `tokeniser.decode(tokens).strip()`: whitespace is held back until text follows it.
    """

    def __init__(self, tokeniser: Tokeniser) -> None:
        self.text = ""
        self._tokeniser = tokeniser
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._whitespace = ""

    def push(self, token: int) -> str:
        """The text that this token completes; often, and for special tokens always, the empty string."""
        return self._append(self._decoder.decode(self._tokeniser.token_bytes(token)))

    def finish(self) -> str:
        """The last delta: U+FFFD where the answer ended within a character."""
        return self._append(self._decoder.decode(b"", final=True))

    def _append(self, piece: str) -> str:
        pending = self._whitespace + piece if self.text else piece.lstrip()
        delta = pending.rstrip()
        self._whitespace = pending[len(delta) :]
        self.text += delta
        return delta
