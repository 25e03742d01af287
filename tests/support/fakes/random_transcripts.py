"""Transcripts of a random speech decoder, which make no sense, taken as if they did."""

import math

import pytest

from server.engine.runner import transcript


def take_any_transcript(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have no transcript be judged to be a loop, a guess, or longer or shorter than what was heard."""
    monkeypatch.setattr(transcript, "LEAST_MEAN_LOGPROB", -100.0)
    monkeypatch.setattr(transcript, "is_loop", lambda _text: False)
    monkeypatch.setattr(transcript.TranscriptStage, "_has_voice", lambda _stage, _audio: True)
    monkeypatch.setattr(transcript, "most_words", lambda _heard: math.inf)
    monkeypatch.setattr(transcript, "fewest_words", lambda _heard: 0.0)
    monkeypatch.setattr(transcript, "cut_to_draft", lambda tokens, _speech, _heard: list(tokens))
