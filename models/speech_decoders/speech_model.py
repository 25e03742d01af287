"""The speech decoder with its tokeniser and its control tokens."""

from dataclasses import dataclass

from models.bundle.schema import SpeechTokens
from models.protocols import SpeechDecoder
from models.text.tokeniser import Tokeniser


@dataclass(frozen=True)
class SpeechModel:
    """The parts with which an engine has transcripts written by the speech foundation model itself."""

    decoder: SpeechDecoder
    tokeniser: Tokeniser
    tokens: SpeechTokens

    def language_of(self, token: int) -> str | None:
        """Return the code of a language's token, None for any other token."""
        return next((code for code, id in self.tokens.languages.items() if id == token), None)
