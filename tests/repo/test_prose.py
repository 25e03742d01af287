"""Docstrings, comments and pages are plain sentences, as far as a program can tell."""

import ast
import io
import re
import tokenize
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("server", "kernels", "models", "export", "training", "loadtest", "deploy", "tests")
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])

# A sentence that begins with a relative clause has to be read twice. Questions may.
RIDDLE = re.compile(r"(?:Who|Whom|Whose|Whoever|Whichever|What|Whatever|Where|Wherever|Those that|Those who)\s[^.?!:]*[.!:;]")
UNNAMED = re.compile(r"\b(?:somebody|nobody|his)\b", re.IGNORECASE)
BARE_IT = re.compile(r"(?:It|Its)\s")


def sentences(text: str) -> Iterator[str]:
    flat = re.sub(r"`[^`]*`", "`", re.sub(r"\s+", " ", text)).strip()
    yield from re.split(r"(?<=[.!?:]) (?=[A-Z])", flat)


def docstrings(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        kinds = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
        if isinstance(node, kinds) and (text := ast.get_docstring(node)):
            yield text


def comments(source: str) -> Iterator[str]:
    """Yield comments, lines that follow one another joined."""
    block: list[str] = []
    last = -1
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            line = token.start[0]
            if block and line != last + 1:
                yield " ".join(block)
                block = []
            block.append(token.string.lstrip("#!: "))
            last = line
    if block:
        yield " ".join(block)


def faults_of(text: str, *, is_docstring: bool) -> list[str]:
    found = [each for each in sentences(text) if RIDDLE.match(each) or UNNAMED.search(each)]
    if is_docstring and BARE_IT.match(text):
        found.append(text.split("\n")[0])
    return found


def faults_of_source(source: str) -> list[str]:
    faults = [fault for text in docstrings(ast.parse(source)) for fault in faults_of(text, is_docstring=True)]
    return faults + [fault for text in comments(source) for fault in faults_of(text, is_docstring=False)]


def faults_of_page(page: str) -> list[str]:
    prose = re.sub(r"^```.*?^```", "", page, flags=re.MULTILINE | re.DOTALL)
    blocks = [block for paragraph in prose.split("\n\n") for block in re.split(r"\n(?=[|#*-])|\|", paragraph)]
    return [fault for block in blocks for fault in faults_of(block, is_docstring=False)]


def by_path(paths: Iterable[Path], faults_of_text: Callable[[str], list[str]]) -> dict[str, list[str]]:
    """Return the faults of those files that have some."""
    found = {path.relative_to(ROOT).as_posix(): faults_of_text(path.read_text()) for path in paths}
    return {path: faults for path, faults in found.items() if faults}


@pytest.mark.parametrize("folder", FOLDERS)
def test_docstrings_and_comments_are_plain(folder: str) -> None:
    sources = sorted((ROOT / folder).rglob("*.py"))
    assert sources
    assert by_path(sources, faults_of_source) == {}


def test_pages_are_plain() -> None:
    assert by_path(PAGES, faults_of_page) == {}


@pytest.mark.parametrize(
    ("text", "is_plain"),
    [
        ("Who leaves ends the work.", False),
        ("What a session costs is bounded: see below.", False),
        ("Whatever it is, it stays.", False),
        ("Return the text. Nobody reads it.", False),
        ("It touches nothing.", False),
        ("Return the text. Raises `ValueError` where it is empty.", True),
        ("What is this?", True),
        ("Run the models; a request that fails, fails alone.", True),
    ],
)
def test_the_check_finds_riddles(text: str, is_plain: bool) -> None:
    assert (faults_of(text, is_docstring=True) == []) is is_plain
