"""Places in this checkout."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
CLIPS = ROOT / "tests" / "clips" / "clips.json"
"""The index of the recordings that come with the tests."""
SELF_CHECK_CLIP = ROOT / "server" / "assets" / "selfcheck.flac"
RESULTS = ROOT / "loadtest" / "results"
