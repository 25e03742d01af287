"""The table of the rooms counts what a revision and the working tree hold."""

from pathlib import Path

import pytest

from tests.repo.tree import Room, format_table, read_lines, rooms_of, run_git


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with one commit, and a working tree that has moved on."""
    for name, text in (
        ("server/app.py", "a\nb\n"),
        ("server/__init__.py", ""),
        ("tests/test_app.py", "c\n"),
        ("notes.md", "d\n"),
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    run_git(tmp_path, "init", "--quiet")
    run_git(tmp_path, "add", ".")
    author = ("-c", "user.name=name", "-c", "user.email=name@example.com")
    run_git(tmp_path, *author, "-c", "commit.gpgsign=false", "commit", "--quiet", "-m", "first")
    (tmp_path / "server" / "api").mkdir()
    (tmp_path / "server" / "app.py").rename(tmp_path / "server" / "api" / "app.py")
    return tmp_path


def test_rooms_of_a_revision_and_of_the_working_tree(repository: Path) -> None:
    before, now = (rooms_of(read_lines(revision, repository)) for revision in ("HEAD", None))
    assert before == {"server": Room(1, 2), "tests": Room(1, 1)}
    assert now == {"server/api": Room(1, 2), "tests": Room(1, 1)}
    lines = format_table([("before", before), ("now", now)]).splitlines()
    assert lines[2:] == [
        "| `server/` | 1 | 2 |  |  |",
        "| `server/api/` |  |  | 1 | 2 |",
        "| `tests/` | 1 | 1 | 1 | 1 |",
        "| all source | 1 | 2 | 1 | 2 |",
        "| all tests | 1 | 1 | 1 | 1 |",
    ]
