"""Transcripts of a random speech decoder, which make no sense, taken as if they did."""

import math

import pytest

from server.engine.runner import transcript_stage


def take_any_transcript(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have no transcript be judged to be a loop, a guess, or longer or shorter than what was heard."""
    monkeypatch.setattr(transcript_stage, "LEAST_MEAN_LOGPROB", -100.0)
    monkeypatch.setattr(transcript_stage, "is_loop", lambda _text: False)
    monkeypatch.setattr(transcript_stage.TranscriptStage, "_has_voice", lambda _stage, _audio: True)
    monkeypatch.setattr(transcript_stage, "most_words", lambda _heard: math.inf)
    monkeypatch.setattr(transcript_stage, "fewest_words", lambda _heard: 0.0)
    monkeypatch.setattr(transcript_stage, "cut_to_heard", lambda tokens, _speech, _heard: list(tokens))
