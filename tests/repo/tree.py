"""Print the files and the lines of Python in each room, as a table.

python -m tests.repo.tree                     # the working tree
python -m tests.repo.tree fbce71a~1 HEAD      # before there were rooms, and now
"""

import argparse
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).parents[2]
TESTS = "tests"


@dataclass(frozen=True)
class Room:
    """The Python files that lie in a folder itself, empty ones not counted."""

    files: int = 0
    lines: int = 0

    def __add__(self, other: "Room") -> "Room":
        return Room(self.files + other.files, self.lines + other.lines)


def read_lines(revision: str | None, root: Path = ROOT) -> dict[PurePosixPath, int]:
    """Return the number of lines of each Python file that a revision, or the working tree where it is None, has."""
    if revision is None:
        listing = run_git(root, "ls-files", "-z", "--cached", "--others", "--exclude-standard", "*.py")
        paths = [name for name in listing.split("\0") if (root / name).is_file()]
        return {PurePosixPath(name): len((root / name).read_bytes().splitlines()) for name in paths}
    names = run_git(root, "ls-tree", "-r", "-z", "--name-only", revision).split("\0")
    counted = run_git(root, "grep", "--count", "--null", "--text", "-e", "", revision, "--", "*.py").splitlines()
    lines = dict(line.removeprefix(f"{revision}:").split("\0") for line in counted)
    return {PurePosixPath(name): int(lines[name]) for name in names if name in lines}


def rooms_of(lines: dict[PurePosixPath, int]) -> dict[str, Room]:
    """Return the rooms by the names of their folders."""
    rooms: dict[str, Room] = {}
    for path, count in lines.items():
        if count:
            rooms[str(path.parent)] = rooms.get(str(path.parent), Room()) + Room(1, count)
    return rooms


def format_table(trees: Sequence[tuple[str, dict[str, Room]]]) -> str:
    """Return a Markdown table: a row a room, and the sums of the source and of the tests."""
    names = sorted({name for _, rooms in trees for name in rooms})
    heading = ["Room", *(f"{what}, {title}" for title, _ in trees for what in ("files", "lines"))]
    rows = [heading, ["---"] * len(heading)]
    for name in names:
        rows.append([f"`{name}/`", *cells([rooms.get(name, Room()) for _, rooms in trees])])
    for title, is_test in (("source", False), ("tests", True)):
        sums = [
            sum((room for name, room in rooms.items() if (PurePosixPath(name).parts[:1] == (TESTS,)) is is_test), Room())
            for _, rooms in trees
        ]
        rows.append([f"all {title}", *cells(sums)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def cells(rooms: Sequence[Room]) -> list[str]:
    return [f"{number:,}" if number else "" for room in rooms for number in (room.files, room.lines)]


def run_git(root: Path, *arguments: str) -> str:
    return subprocess.run(["git", "-C", str(root), *arguments], check=True, capture_output=True, text=True).stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("revisions", nargs="*", metavar="REVISION", help="a commit or tag; without any, the working tree")
    revisions = parser.parse_args().revisions or [None]
    print(format_table([(revision or "now", rooms_of(read_lines(revision))) for revision in revisions]))


if __name__ == "__main__":
    main()
