"""Command-line options that several tools have."""

import argparse
from pathlib import Path

from loadtest.support.paths import RESULTS, ROOT


def new_parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser whose help shows a module's docstring as it is written."""
    return argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)


def add_url_flag(parser: argparse.ArgumentParser) -> None:
    """Add the address of the server that a tool asks."""
    parser.add_argument("--url", default="http://127.0.0.1:8000")


def add_data_flag(parser: argparse.ArgumentParser) -> None:
    """Add a folder of recordings, which a tool does not need: without one it takes those of the tests."""
    parser.add_argument("--data", type=Path, help="folder with eval.jsonl and its recordings, instead of tests/clips")


def add_eval_flag(parser: argparse.ArgumentParser) -> None:
    """Add the folder of recordings that a tool needs."""
    parser.add_argument("--data", type=Path, required=True, metavar="FOLDER", help="with eval.jsonl and its recordings")


def add_results_flag(parser: argparse.ArgumentParser) -> None:
    """Add the folder that results go to."""
    text = f"folder for the results (default: {RESULTS.relative_to(ROOT)})"
    parser.add_argument("--out", type=Path, default=RESULTS, help=text)
