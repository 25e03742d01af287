"""The label before the transcripts of an LLM that only transcribes, such as `language English<asr_text>` (Qwen3-ASR)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from models.text.tokeniser import Tokeniser

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


def lay_out_context(prompt: str, keywords: Sequence[str]) -> str:
    """Return the context that such an LLM is given: text that comes before, and names and terms that may be spoken."""
    return "\n".join(part for part in (prompt.strip(), ", ".join(keywords)) if part)
