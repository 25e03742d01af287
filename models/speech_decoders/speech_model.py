"""The speech decoder with its tokeniser and its control tokens."""

import zlib
from dataclasses import dataclass

from models.bundle.sections import SpeechTokens
from models.protocols import SpeechDecoder
from models.text.tokeniser import Tokeniser

DEFAULT_LANGUAGE_ODDS = 8.0
"""Speech in an accent is easily taken for another language, which has to be this many times as likely as the default one.

Of 209 training recordings in English with a Mandarin accent, 1, 3, 8 and 20 leave 77, 30, 8 and 4 taken for another language.
"""
LONGEST_TRANSCRIPT = 224
"""Tokens of text, as many as Whisper was trained to write at once."""
MOST_COMPRESSED = 2.4
LEAST_MEAN_LOGPROB = -1.0
NO_SPEECH_PROBABILITY = 0.6
"""Whisper's own limits: text that compresses better is a loop, and text less likely where there may be no speech is a guess."""


@dataclass(frozen=True)
class SpeechModel:
    """The parts with which an engine has transcripts written by the speech foundation model itself."""

    decoder: SpeechDecoder
    tokeniser: Tokeniser
    tokens: SpeechTokens

    @property
    def control_tokens(self) -> int:
        """How many tokens behind the start are no text: language, task and no timestamps, or the last of these alone."""
        return 3 if self.tokens.multilingual else 1

    def language_of(self, token: int) -> str | None:
        """Return the code of a language's token, None for any other token."""
        return next((code for code, id in self.tokens.languages.items() if id == token), None)


def is_loop(text: str) -> bool:
    """Return whether a text repeats itself more than speech does."""
    encoded = text.encode()
    return bool(encoded) and len(encoded) / len(zlib.compress(encoded)) > MOST_COMPRESSED
