"""Docstrings, comments and pages are plain sentences, as far as a program can tell."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("server", "kernels", "models", "export", "training", "loadtest", "deploy", "tests")
SOURCES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
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


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_docstrings_and_comments_are_plain(path: Path) -> None:
    source = path.read_text()
    faults = [fault for text in docstrings(ast.parse(source)) for fault in faults_of(text, is_docstring=True)]
    faults += [fault for text in comments(source) for fault in faults_of(text, is_docstring=False)]
    assert faults == []


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_pages_are_plain(path: Path) -> None:
    prose = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    blocks = [block for paragraph in prose.split("\n\n") for block in re.split(r"\n(?=[|#*-])|\|", paragraph)]
    assert [fault for block in blocks for fault in faults_of(block, is_docstring=False)] == []


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
