"""Get a checkpoint: a local folder or file as it is, a repository of the Hugging Face hub downloaded and checked."""

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.checkpoints.checkpoint import Checkpoint
from export.checkpoints.nemo import SUFFIX, NemoCheckpoint, is_nemo
from export.checkpoints.safetensors_file import CheckpointError

DESCRIPTIONS = ("*.json", "*.jinja", "merges.txt", "tokenizer.model", "README.md")
WANTED = (*DESCRIPTIONS, "*.safetensors", "model.bin")
"""The files of a repository that an import reads; `pull ORG/NAME/FILE.gguf` takes that file alone, and so it does a `.nemo`."""
ALONE = (".gguf", SUFFIX)
UNWANTED = "consolidated*"
"""Mistral's repositories have the weights a second time, in a layout of their own."""
LOCAL = (".", "/", "~")
"""The beginnings that tell a folder or a file from a hub id."""
SPACE_FACTOR = 2.2
"""Free disk space that a pull needs, in sizes of its download: the download and the bundle."""


@dataclass(frozen=True)
class Source:
    """A checkpoint that was got: its folder, or the GGUF file of an LLM."""

    checkpoint: Checkpoint
    gguf: Path | None = None


def local_source(path: Path) -> Source:
    """Return the checkpoint in a folder or a `.nemo` file, or the LLM of a GGUF file."""
    if path.suffix == ".gguf":
        return Source(Checkpoint(path.parent, path.name), path)
    if is_nemo(path):
        return Source(NemoCheckpoint(path if path.is_dir() else path.parent, path.name))
    return Source(Checkpoint(path.resolve(), path.name))


@dataclass(frozen=True)
class Hub:
    """The hub, whose files are kept in `downloads` until they are converted; None of `endpoint` is the public one.

    Access to gated repositories is by the token that `hf auth login` or HF_TOKEN sets.
    """

    downloads: Path
    endpoint: str | None = None

    def get(self, name: str) -> Source:
        """Return a checkpoint by its path or its hub id. Raises `CheckpointError`."""
        path = Path(name).expanduser()
        if path.is_dir() or (path.suffix in ALONE and path.is_file()):
            return local_source(path)
        parts = name.split("/")
        if name.startswith(LOCAL) or not 2 <= len(parts) <= 3 or not all(parts):
            raise CheckpointError(
                f"{name!r} is neither a folder, nor a GGUF or .nemo file, nor a hub id such as openai/whisper-base"
            )
        if len(parts) == 3 and not parts[2].endswith(ALONE):
            raise CheckpointError(f"{name!r} names a file of a repository that is no GGUF and no .nemo, which are taken alone")
        folder = self._download("/".join(parts[:2]), parts[2:])
        if name.endswith(SUFFIX):
            return Source(NemoCheckpoint(folder, name))
        return Source(Checkpoint(folder, name), folder / parts[2] if len(parts) == 3 else None)

    def get_descriptions(self, name: str) -> Checkpoint:
        """Return a checkpoint by its path or its hub id with all but its weights. Raises `CheckpointError`."""
        if Path(name).expanduser().is_dir() or name.startswith(LOCAL) or name.count("/") != 1:
            return self.get(name).checkpoint
        return Checkpoint(self._download(name, [], DESCRIPTIONS), name)

    def forget(self, source: Source) -> None:
        """Delete what was downloaded of a source; a user's own folder stays."""
        self.forget_checkpoint(source.checkpoint)

    def forget_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Delete what was downloaded of a checkpoint."""
        if checkpoint.folder.parent == self.downloads:
            shutil.rmtree(checkpoint.folder, ignore_errors=True)

    def _download(self, repository: str, files: list[str], patterns: tuple[str, ...] = WANTED) -> Path:
        from huggingface_hub import HfApi, snapshot_download

        folder = self.downloads / repository.replace("/", "--")
        try:
            info = HfApi(endpoint=self.endpoint).model_info(repository, files_metadata=True)
            wanted = [each for each in info.siblings or [] if _is_wanted(each.rfilename, files, patterns)]
            if not wanted:
                raise CheckpointError(f"{repository} on the hub has none of the files that an import reads")
            _require_space(self.downloads, sum(each.size or 0 for each in wanted))
            names = [each.rfilename for each in wanted]
            _require_weights(repository, names, [each.rfilename for each in info.siblings or []])
            snapshot_download(
                repository, revision=info.sha, local_dir=folder, allow_patterns=names, endpoint=self.endpoint, max_workers=4
            )
        except CheckpointError:
            raise
        except Exception as error:  # the library's exceptions share no narrower base class
            raise CheckpointError(f"{repository} cannot be had from the hub ({_reason(error)})") from None
        for each in wanted:
            _require_hash(folder / each.rfilename, each.lfs)
        return folder


def _is_wanted(file: str, named: list[str], patterns: tuple[str, ...]) -> bool:
    """Return whether a repository's file is one that an import reads; files in its folders are not."""
    if named:
        return file in named or file == "README.md"
    return "/" not in file and not Path(file).match(UNWANTED) and any(Path(file).match(pattern) for pattern in patterns)


def _require_weights(repository: str, wanted: list[str], there: list[str]) -> None:
    """Raise `CheckpointError` where a repository has its weights in a `.nemo` file alone, and say how to pull that."""
    packed = [name for name in there if name.endswith(SUFFIX)]
    if packed and not any(name.endswith((".safetensors", *ALONE)) for name in wanted):
        raise CheckpointError(f"{repository} has its weights in {packed[0]}: pull {repository}/{packed[0]}")


def _require_space(folder: Path, size: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    free, needed = shutil.disk_usage(folder).free, SPACE_FACTOR * size
    if free < needed:
        raise CheckpointError(
            f"{folder} has {free / 1e9:.1f} GB free and the pull needs {needed / 1e9:.1f} GB: free some, or name another folder "
            "with THINBRIDGE_CACHE_DIR"
        )


def _require_hash(path: Path, lfs: Any) -> None:
    """Compare a large file with the sha256 that the hub says. A wrong one is deleted, so that the next pull gets it anew."""
    if lfs is None or not path.exists():
        return
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != lfs.sha256:
        path.unlink()
        raise CheckpointError(f"{path.name} came damaged: its sha256 is {found}, the hub says {lfs.sha256}; pull again")


def _reason(error: Exception) -> str:
    """Return an error of the hub's library in a few words."""
    kinds = {
        "GatedRepoError": "its owner has to grant access: accept the terms on its page and set HF_TOKEN",
        "RepositoryNotFoundError": "there is no such repository, or HF_TOKEN gives no access to it",
        "LocalEntryNotFoundError": "the hub cannot be reached",
        "ConnectError": "the hub cannot be reached",
        "OfflineModeIsEnabled": "HF_HUB_OFFLINE is set",
    }
    name = type(error).__name__
    first_line = (str(error).strip().splitlines() or [name])[0]
    return kinds.get(name, first_line if len(first_line) < 200 else name)
