"""How a peer talks to the benchmark: one JSON object per line in, one out."""

import argparse
import json
import os
import sys
from collections.abc import Callable
from typing import Any


def answer_lines(load: Callable[[], Callable[[dict[str, Any]], dict[str, Any]]]) -> None:
    """Load, say `{"ready": true}`, then answer each line of standard input until its end.

    Libraries that print to standard output are sent to standard error, so that replies stay alone.
    """
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    answer = load()
    print(json.dumps({"ready": True}), file=replies, flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), file=replies, flush=True)


def answer_for_model(description: str | None, load: Callable[[str, int], Callable[[dict[str, Any]], dict[str, Any]]]) -> None:
    """The main function of a peer whose command line names a model and a number of threads."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--threads", type=int, required=True)
    arguments = parser.parse_args()
    answer_lines(lambda: load(arguments.model, arguments.threads))
