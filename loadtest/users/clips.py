"""Clips that locust's users post, and how their answers are counted."""

from argparse import ArgumentParser
from pathlib import Path
from typing import Any

import gevent

from loadtest.support.paths import CLIPS

REQUEST_TIMEOUT_S = 90


def add_clip_options(parser: ArgumentParser) -> None:
    """Choose the clips, how far their transcripts may be from the known texts, and how many requests there are."""
    parser.add_argument("--clips", type=Path, default=CLIPS, help="JSON list of clips with their texts")
    parser.add_argument("--max-wer", type=float, default=0.75, help="word error rate above which a transcript is a failure")
    parser.add_argument("--requests", type=int, help="stop after this many requests (default: at --run-time)")


def count_refusal(response: Any) -> bool:
    """Return whether a response is a refusal (429), which is no failure, and then count it under a name of its own."""
    if response.status_code == 429:
        response.request_meta["name"] = "refused (429)"
        response.success()
    return bool(response.status_code == 429)


def wait_if_refused(response: Any) -> None:
    """Wait as long as a refusal says."""
    if response.status_code == 429:
        gevent.sleep(float(response.headers.get("Retry-After", "1")))
