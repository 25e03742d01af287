"""Read, verify and write a model bundle: a folder of graphs, tables and a tokeniser that `bundle.json` lists with their hashes.

`open_bundle` is the only way to a bundle. It returns one that is complete and unchanged, or raises `BundleError`.
"""

import hashlib
import json
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from models.bundle.schema import SCHEMA_VERSION, BundleDescription, Manifest, first_problem, migrate
from models.bundle.sections import FileEntry, GraphValues, Section
from models.protocols import BackendError

MIGRATED_VERSION = 2
MANIFEST_NAME = "bundle.json"
MAX_MANIFEST_BYTES = 2**20
HOW_TO_FIX = "Rebuild the default bundle with `python -m export.default_bundle --rebuild`; get others from where they came from."


class BundleError(BackendError):
    """The bundle cannot be used. The message, for the operator, names the file that is wrong and what to do."""

    def __init__(self, folder: Path, file: str, problem: str) -> None:
        super().__init__(f"Bundle {folder}: {file} {problem}. {HOW_TO_FIX}")
        self.file = file
        self.problem = problem


@dataclass(frozen=True)
class Bundle:
    """A verified bundle: `folder` is absolute, and every file that `manifest` names is in it, unchanged."""

    folder: Path
    manifest: Manifest

    def path(self, name: str) -> Path:
        """Return the path of a listed file. Raises `KeyError` for any other name."""
        if name not in self.manifest.files:
            raise KeyError(name)
        return self.folder / name

    def require_values(self, section: Section, place: str, file: str, found: GraphValues) -> None:
        """Compare a section's values with those `found` in a file; `place` is the section's name in `bundle.json`.

        Raises `BundleError` for the first that differs.
        """
        for name, value in found.items():
            if getattr(section, name) != value:
                said = f"says that {f'{place}.{name}'.lstrip('.')} is {getattr(section, name)}"
                raise BundleError(self.folder, MANIFEST_NAME, f"{said}, but in {file} it is {value}")


def open_bundle(folder: Path) -> Bundle:
    """Read and verify a bundle, hash of every file included. Raises `BundleError`."""
    folder = folder.resolve()
    manifest = read_manifest(folder)
    for name in sorted(set(_names_in(folder)) - {MANIFEST_NAME, *manifest.files}):
        raise BundleError(folder, name, f"is not listed in {MANIFEST_NAME}")
    for name in sorted(manifest.named_files() - manifest.files.keys()):
        raise BundleError(folder, name, f"is used by a section of {MANIFEST_NAME} but not listed under its files")
    for name, entry in manifest.files.items():
        _verify_file(folder, name, entry)
    return Bundle(folder, manifest)


def write_bundle(folder: Path, description: BundleDescription) -> Bundle:
    """Write `bundle.json` for a folder whose files are all in place. It appears last and whole: a crash leaves no valid bundle.

    Raises `BundleError` if a section names a file that is missing.
    """
    folder = folder.resolve()
    names = sorted(set(_names_in(folder)) - {MANIFEST_NAME})
    files = {name: FileEntry(sha256=_sha256(folder / name), bytes=(folder / name).stat().st_size) for name in names}
    for name in sorted(description.named_files() - files.keys()):
        raise BundleError(folder, name, "is missing")
    manifest = Manifest(**dict(description), files=files)
    temporary = folder / f"{MANIFEST_NAME}.partial"
    temporary.write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, folder / MANIFEST_NAME)
    return Bundle(folder, manifest)


def read_manifest(folder: Path) -> Manifest:
    """Return what a bundle says of itself; its other files are not looked at. Raises `BundleError`."""
    path = folder / MANIFEST_NAME
    if not folder.is_dir():
        raise BundleError(folder, "the folder", "does not exist")
    _require_own_file(folder, MANIFEST_NAME)
    if path.stat().st_size > MAX_MANIFEST_BYTES:
        raise BundleError(folder, MANIFEST_NAME, f"is larger than {MAX_MANIFEST_BYTES} bytes")
    try:
        text = path.read_bytes()
    except OSError as error:
        raise BundleError(folder, MANIFEST_NAME, f"cannot be read ({error.strerror})") from None
    try:
        content = json.loads(text)
        version = content["schema_version"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise BundleError(folder, MANIFEST_NAME, "is not a JSON object with a schema_version") from None
    if version not in (MIGRATED_VERSION, SCHEMA_VERSION):
        raise BundleError(folder, MANIFEST_NAME, _version_problem(version))
    try:
        return Manifest.model_validate_json(json.dumps(migrate(content)) if version == MIGRATED_VERSION else text)
    except ValidationError as error:
        problem = ": ".join(part for part in first_problem(error) if part)
        raise BundleError(folder, MANIFEST_NAME, f"is not valid: {problem}") from None


def _version_problem(version: object) -> str:
    """Return which schema versions can be read, and the way out."""
    problem = f"has schema version {version!r}, this release reads {MIGRATED_VERSION} and {SCHEMA_VERSION}"
    if not isinstance(version, int):
        return problem
    way_out = "build or pull the model again" if version < MIGRATED_VERSION else "a newer release of Thinbridge reads it"
    return f"{problem}: {way_out}"


def _names_in(folder: Path) -> list[str]:
    return [(Path(root) / file).relative_to(folder).as_posix() for root, _, files in os.walk(folder) for file in files]


def _require_own_file(folder: Path, name: str) -> os.stat_result:
    """Require a regular file that lies in the folder itself and has no second name elsewhere."""
    path = folder / name
    try:
        status = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        raise BundleError(folder, name, "is missing") from None
    if stat.S_ISLNK(status.st_mode) or path.resolve() != path:
        raise BundleError(folder, name, "is reached by a symbolic link, which a bundle may not hold")
    if not stat.S_ISREG(status.st_mode):
        raise BundleError(folder, name, "is not a regular file")
    if status.st_nlink != 1:
        raise BundleError(folder, name, "is a hard link to a file that has another name too")
    return status


def _verify_file(folder: Path, name: str, entry: FileEntry) -> None:
    size = _require_own_file(folder, name).st_size
    if size != entry.bytes:
        raise BundleError(folder, name, f"is {size} bytes long where {MANIFEST_NAME} says {entry.bytes}")
    try:
        digest = _sha256(folder / name)
    except OSError as error:
        raise BundleError(folder, name, f"cannot be read ({error.strerror})") from None
    if digest != entry.sha256:
        raise BundleError(folder, name, f"is damaged: its sha256 is not the one in {MANIFEST_NAME}")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
