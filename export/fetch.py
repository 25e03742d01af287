"""Fetch pinned wheels with pip, as the user has configured it, and check their sha256."""

import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

Download = Callable[[str, Path], None]
"""Puts the wheel of a requirement `name==version` into a folder, or raises `FetchError`."""

PARTIAL_PREFIX = "partial-"
"""Begins the names of folders that hold a download on its way; what a killed process left behind may be deleted."""


class FetchError(RuntimeError):
    """A wheel cannot be had. The message, for the operator, says which and what to do."""


@dataclass(frozen=True)
class Wheel:
    """One file of a package index, down to its bytes."""

    project: str
    version: str
    file: str
    sha256: str
    bytes: int

    @property
    def requirement(self) -> str:
        return f"{self.project}=={self.version}"


def pip_download(requirement: str, folder: Path) -> None:
    """`pip download` of one wheel without its dependencies. pip's own progress goes to standard error."""
    command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:"]
    status = subprocess.run([*command, "--dest", str(folder), requirement], stdout=2, check=False).returncode
    if status != 0:
        raise FetchError(f"pip could not download {requirement} (exit status {status}); its own message is above")


def fetch_wheel(wheel: Wheel, folder: Path, download: Download = pip_download) -> Path:
    """The wheel's path in `folder`. Downloads it unless a file with the right hash is there; raises `FetchError`."""
    path = folder / wheel.file
    if is_intact(path, wheel):
        return path
    path.unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    by_hand = f"Try again, or put {wheel.file} with sha256 {wheel.sha256} into {folder} yourself."
    # pip writes to the final name as it goes: download aside, so that a file under that name is whole.
    with tempfile.TemporaryDirectory(dir=folder, prefix=PARTIAL_PREFIX) as aside:
        try:
            download(wheel.requirement, Path(aside))
        except FetchError as error:
            raise FetchError(f"{error}. {by_hand}") from None
        fetched = Path(aside) / wheel.file
        if not fetched.exists():
            raise FetchError(f"The download of {wheel.requirement} did not give {wheel.file}. {by_hand}")
        if not is_intact(fetched, wheel):
            raise FetchError(
                f"{wheel.file} was downloaded, but it is not the file that this release was made with: "
                f"its sha256 is {_sha256(fetched)}. {by_hand}"
            )
        os.replace(fetched, path)
    return path


def is_intact(path: Path, wheel: Wheel) -> bool:
    """Whether the file is there with the right size and hash."""
    return path.is_file() and path.stat().st_size == wheel.bytes and _sha256(path) == wheel.sha256


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
