"""The label before the transcripts of an LLM that only transcribes, such as `language English<asr_text>` (Qwen3-ASR)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from models.text.tokeniser import Detokeniser, Tokeniser

LONGEST_NAME = 40
"""Characters of a label behind its beginning; longer text is none."""
NO_LANGUAGE = "none"


@dataclass(frozen=True)
class TranscriptLabel:
    """A label is `beginning`, the English name of a language or `None` where nothing is said, and the token `marker`.

    `languages` are the names by their codes.
    """

    beginning: str
    marker: int
    languages: Mapping[str, str]

    def force(self, tokeniser: Tokeniser, language: str) -> tuple[int, ...]:
        """Return the tokens that make the LLM write in the language of a code. Raises `KeyError` for a code that is unknown."""
        return (*tokeniser.encode(f"{self.beginning}{self.languages[language]}"), self.marker)

    def may_begin(self, text: str) -> bool:
        """Return whether a text may be the beginning of a label, regardless of case."""
        known, begun = self.beginning.casefold(), text.casefold().lstrip()
        return known.startswith(begun) or (begun.startswith(known) and len(begun) <= len(known) + LONGEST_NAME)

    def is_cut_short(self, text: str) -> bool:
        """Return whether a text without the marker is a label all the same, whose end is missing."""
        begins = self.beginning.casefold().startswith(text.casefold().strip())
        return begins or self.names_none(text) or self.read_language(text) is not None

    def names_none(self, text: str) -> bool:
        """Return whether a label's text says that nothing was said."""
        return self._read_name(text) == NO_LANGUAGE

    def read_language(self, text: str) -> str | None:
        """Return the code of the language that a label's text names; None where it names none that is known."""
        name = self._read_name(text)
        return next((code for code, known in self.languages.items() if known.casefold() == name), None)

    def _read_name(self, text: str) -> str:
        return text.strip().casefold().removeprefix(self.beginning.casefold()).strip()


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


def lay_out_context(prompt: str, keywords: Sequence[str]) -> str:
    """Return the context that such an LLM is given: text that comes before, and names and terms that may be spoken."""
    return "\n".join(part for part in (prompt.strip(), ", ".join(keywords)) if part)
