"""The store of pulled models: one bundle a folder, by name."""

import contextlib
import errno
import fcntl
import itertools
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from models.bundle.io import MANIFEST_NAME

PARTIAL_PREFIX = ".partial-"
LOCK_NAME = "lock"
"""A file in each folder on its way, which its process holds; the kernel lets go of it however the process ends."""


class StoreError(RuntimeError):
    """The store cannot do that. The message is for the operator."""


@dataclass(frozen=True)
class Store:
    """The models under `root`."""

    root: Path

    def names(self) -> list[str]:
        """Return the names of the models."""
        return sorted(path.parent.name for path in self.root.glob(f"[!.]*/{MANIFEST_NAME}"))

    def find(self, name: str) -> Path | None:
        """Return the folder of a model, None if there is none of that name."""
        return self.root / name if name in self.names() else None

    def require(self, name: str) -> Path:
        """Return the folder of a model. Raises `StoreError`, which lists the names that there are."""
        folder = self.find(name)
        if folder is None:
            have = f"the models here are {', '.join(self.names())}" if self.names() else "no model has been pulled"
            raise StoreError(f"There is no model {name!r}: {have}.")
        return folder

    def remove(self, name: str) -> int:
        """Delete a model; return its bytes. A server that serves it keeps its files until it ends."""
        folder = self.require(name)
        size = folder_bytes(folder)
        # Renamed first, so that no half-deleted folder has the name of a model.
        with self._partial() as doomed:
            os.rename(folder, doomed / name)
        return size

    @contextmanager
    def new(self, name: str) -> Iterator[Path]:
        """Yield an empty folder, which becomes the model of that name, in place of an older one, unless an error is raised."""
        with self._partial() as folder:
            made = folder / "made"
            made.mkdir()
            yield made
            # Another pull of the same name can put its own there in between.
            for attempt in itertools.count():
                with contextlib.suppress(FileNotFoundError):
                    os.rename(self.root / name, folder / f"replaced-{attempt}")
                try:
                    os.rename(made, self.root / name)
                    break
                except OSError as error:
                    if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                        raise

    @contextmanager
    def _partial(self) -> Iterator[Path]:
        """Yield a folder that is deleted in the end; first delete what killed processes left behind."""
        self.root.mkdir(parents=True, exist_ok=True)
        for lock in self.root.glob(f"{PARTIAL_PREFIX}*/{LOCK_NAME}"):
            with contextlib.suppress(OSError), lock.open("r+") as held:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(lock.parent, ignore_errors=True)
        folder = Path(tempfile.mkdtemp(prefix=PARTIAL_PREFIX, dir=self.root))
        new = folder / "new-lock"
        try:
            with new.open("w") as held:
                fcntl.flock(held, fcntl.LOCK_EX)
                # By its name it is found, so it has that only now.
                new.rename(folder / LOCK_NAME)
                yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def model_name(name: str) -> str:
    """Return the name of a model in the store after its hub id or folder: lower case, letters, digits, dots and dashes."""
    last = name.rstrip("/").rpartition("/")[2].lower().removesuffix(".gguf").removesuffix(".nemo")
    return re.sub(r"[^a-z0-9._-]+", "-", last).strip("-._")[:80] or "model"


def folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
