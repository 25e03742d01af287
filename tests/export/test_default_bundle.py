"""The default bundle is fetched, built and cached once: resumable, atomic, shared by processes, offline afterwards."""

import hashlib
import multiprocessing
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Any

import pytest

from export import default_bundle
from export.default_bundle import bundle_folder, default_cache_dir, ensure_default_bundle
from export.default_recipe import DEFAULT_RECIPE, RECIPES
from export.fetch import FetchError, WheelParts
from export.recipe import Ingredients, Recipe
from models.bundle.io import BundleError, open_bundle
from models.bundle.schema import BundleDescription
from tests.export.test_fetch import make_wheel
from tests.models.bundle.test_bundle import CONTENTS, DESCRIPTION

PROJECTS = ("thinbridge-test-first", "thinbridge-test-second")


def log(index: Path, line: str) -> None:
    with (index / "log").open("a") as file:
        file.write(line + "\n")


def logged(index: Path, line: str) -> int:
    return (index / "log").read_text().splitlines().count(line) if (index / "log").exists() else 0


class IndexDownload:
    """A download from a folder, which logs what it was asked for. A class at the top level so that processes can share it."""

    def __init__(self, index: Path) -> None:
        self.index = index

    def __call__(self, requirement: str, folder: Path) -> None:
        log(self.index, requirement)
        file = requirement.replace("-", "_").replace("==", "-") + "-py3-none-any.whl"
        shutil.copyfile(self.index / file, folder / file)


class Conversion:
    """Writes a small bundle; `on_second_file` is what happens half way."""

    def __init__(self, index: Path, on_second_file: Callable[[], object] = bool) -> None:
        self.index = index
        self.on_second_file = on_second_file

    def __call__(self, ingredients: Ingredients, folder: Path) -> BundleDescription:
        log(self.index, "convert")
        assert [path.exists() for path in ingredients.wheels.values()] == [True, True]
        assert ingredients.adapter.exists()
        assert list(ingredients.scratch.iterdir()) == []
        for number, (name, content) in enumerate(CONTENTS.items()):
            if number == 1:
                self.on_second_file()
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(content)
        return DESCRIPTION


def fail() -> None:
    raise RuntimeError("the conversion broke")


def die() -> None:
    os._exit(9)


def no_download(requirement: str, folder: Path) -> None:
    raise AssertionError(f"{requirement} was downloaded to {folder} though the cache was full")


@pytest.fixture
def index(tmp_path: Path) -> Path:
    (tmp_path / "index").mkdir()
    return tmp_path / "index"


@pytest.fixture
def recipe(index: Path) -> Recipe:
    (index / "adapter.safetensors").write_bytes(b"adapter")
    wheels = tuple(make_wheel(index, project) for project in PROJECTS)
    return Recipe("tiny", 1, wheels, index / "adapter.safetensors", Conversion(index))


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def build_in_process(cache: Path, recipe: Recipe, index: Path, results: "SimpleQueue[str]") -> None:
    results.put(str(ensure_default_bundle(cache, "int4", recipe, IndexDownload(index))))


def start_process(target: Callable[..., None], *arguments: Any) -> Any:
    process = multiprocessing.get_context("spawn").Process(target=target, args=arguments)
    process.start()
    return process


def test_built_once_then_offline(cache: Path, recipe: Recipe, index: Path) -> None:
    folder = ensure_default_bundle(cache, "int4", recipe, IndexDownload(index))
    assert open_bundle(folder).manifest.name == "tiny"
    assert ensure_default_bundle(cache, "int4", recipe, no_download) == folder
    assert logged(index, "convert") == 1
    assert {path.name for path in cache.iterdir()} == {folder.name, "wheels", "tiny.lock"}


def test_read_only_cache_serves_a_finished_bundle(cache: Path, recipe: Recipe, index: Path) -> None:
    folder = ensure_default_bundle(cache, "int4", recipe, IndexDownload(index))
    (cache / "tiny.lock").unlink()
    cache.chmod(0o555)
    try:
        assert ensure_default_bundle(cache, "int4", recipe, no_download) == folder
        assert not (cache / "tiny.lock").exists()
    finally:
        cache.chmod(0o755)


def test_folder_depends_on_what_goes_in(cache: Path, recipe: Recipe, index: Path) -> None:
    folders = {bundle_folder(cache, "int4", recipe), bundle_folder(cache, "int8", recipe)}
    folders.add(bundle_folder(cache, "int4", replace(recipe, version=2)))
    recipe.adapter.write_bytes(b"another adapter")
    folders.add(bundle_folder(cache, "int4", recipe))
    assert len(folders) == 4
    ensure_default_bundle(cache, "int4", recipe, IndexDownload(index))
    recipe.adapter.write_bytes(b"a newer adapter")
    ensure_default_bundle(cache, "int4", recipe, no_download)
    assert logged(index, "convert") == 2


def test_interrupted_download_goes_on_with_the_missing_wheel(cache: Path, recipe: Recipe, index: Path) -> None:
    def break_at_second(requirement: str, folder: Path) -> None:
        if PROJECTS[1] in requirement:
            (folder / recipe.wheels[1].file).write_bytes(b"half a wh")
            raise KeyboardInterrupt
        IndexDownload(index)(requirement, folder)

    with pytest.raises(KeyboardInterrupt):
        ensure_default_bundle(cache, "int4", recipe, break_at_second)
    assert [path.name for path in (cache / "wheels").iterdir()] == [recipe.wheels[0].file]
    ensure_default_bundle(cache, "int4", recipe, IndexDownload(index))
    assert [logged(index, f"{project}==1.0") for project in PROJECTS] == [1, 1]


def test_damaged_wheel_is_fetched_again(cache: Path, recipe: Recipe, index: Path) -> None:
    (cache / "wheels").mkdir(parents=True)
    for wheel in recipe.wheels:
        shutil.copyfile(index / wheel.file, cache / "wheels" / wheel.file)
    damaged = bytearray((index / recipe.wheels[0].file).read_bytes())
    damaged[40] ^= 1
    (cache / "wheels" / recipe.wheels[0].file).write_bytes(damaged)
    ensure_default_bundle(cache, "int4", recipe, IndexDownload(index))
    assert [logged(index, f"{project}==1.0") for project in PROJECTS] == [1, 0]


def test_wheel_with_another_hash_is_refused(cache: Path, recipe: Recipe, index: Path) -> None:
    file = recipe.wheels[0].file
    other = hashlib.sha256(b"another build of it").hexdigest()
    (index / file).write_bytes(b"another build of it")
    with pytest.raises(FetchError, match=f"{file} was downloaded, but .* its sha256 is {other}") as caught:
        ensure_default_bundle(cache, "int4", recipe, IndexDownload(index))
    assert f"put {file} with sha256 {recipe.wheels[0].sha256} into {cache / 'wheels'}" in str(caught.value)
    assert list((cache / "wheels").iterdir()) == []
    assert logged(index, "convert") == 0


def test_failed_conversion_leaves_nothing_that_looks_finished(cache: Path, recipe: Recipe, index: Path) -> None:
    with pytest.raises(RuntimeError, match="the conversion broke"):
        ensure_default_bundle(cache, "int4", replace(recipe, convert=Conversion(index, fail)), IndexDownload(index))
    assert not bundle_folder(cache, "int4", recipe).exists()
    ensure_default_bundle(cache, "int4", recipe, no_download)


def test_killed_conversion_leaves_nothing_that_looks_finished(cache: Path, recipe: Recipe, index: Path) -> None:
    results = multiprocessing.get_context("spawn").SimpleQueue()
    dying = start_process(build_in_process, cache, replace(recipe, convert=Conversion(index, die)), index, results)
    dying.join(timeout=60)
    assert dying.exitcode == 9
    folder = bundle_folder(cache, "int4", recipe)
    workspace = folder.with_name(folder.name + ".partial")
    assert (workspace.exists(), folder.exists()) == (True, False)
    with pytest.raises(BundleError):
        open_bundle(workspace / "bundle")

    (cache / "wheels" / "partial-of-a-killed-download").mkdir()
    assert ensure_default_bundle(cache, "int4", recipe, no_download) == folder
    assert {path.name for path in cache.iterdir()} == {folder.name, "wheels", "tiny.lock"}
    assert {path.name for path in (cache / "wheels").iterdir()} == {wheel.file for wheel in recipe.wheels}


def test_damaged_bundle_is_built_again(cache: Path, recipe: Recipe, index: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = ensure_default_bundle(cache, "int4", recipe, IndexDownload(index))
    (folder / "llm.onnx").write_bytes(b"LLM graph")
    assert ensure_default_bundle(cache, "int4", recipe, no_download) == folder
    open_bundle(folder)
    assert "built again: llm.onnx is damaged" in capsys.readouterr().err


def test_two_processes_build_once(cache: Path, recipe: Recipe, index: Path, tmp_path: Path) -> None:
    """The first is held in its conversion until the second is seen waiting for the lock."""
    results = multiprocessing.get_context("spawn").SimpleQueue()
    gate = WaitForFile(tmp_path / "second-is-waiting")
    processes = [
        start_process(build_in_process, cache, replace(recipe, convert=Conversion(index, gate)), index, results),
        start_process(build_after, index, gate.path, cache, recipe, results),
    ]
    for process in processes:
        process.join(timeout=60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert [results.get(), results.get()] == [str(bundle_folder(cache, "int4", recipe))] * 2
    assert logged(index, "convert") == 1
    assert [logged(index, f"{project}==1.0") for project in PROJECTS] == [1, 1]


class WaitForFile:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self) -> None:
        for _ in range(3000):
            if self.path.exists():
                return
            time.sleep(0.01)
        raise TimeoutError(self.path)


def build_after(index: Path, gate: Path, cache: Path, recipe: Recipe, results: "SimpleQueue[str]") -> None:
    """Start when the other process converts, and let it go on from the moment that this one waits."""
    WaitForFile(index / "log")()
    while not logged(index, "convert"):
        time.sleep(0.01)

    def open_gate(message: str) -> None:
        gate.write_text(message)

    default_bundle._say = open_gate
    results.put(str(ensure_default_bundle(cache, "int4", recipe, no_download)))


def test_full_disk_is_said_before_anything_is_fetched(
    cache: Path, recipe: Recipe, index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(FetchError, match=r"GB free and the default bundle needs .* THINBRIDGE_CACHE_DIR"):
        ensure_default_bundle(cache, "int4", recipe, IndexDownload(index))
    assert not (index / "log").exists()


def test_default_cache_dir(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / "thinbridge"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / ".cache" / "thinbridge"


def test_recipes_pin_every_wheel() -> None:
    assert [len(recipe.wheels) for recipe in RECIPES.values()] == [4, 3, 3, 4]
    assert len({recipe.name for recipe in RECIPES.values()}) == len(RECIPES)
    files = [file for recipe in RECIPES.values() for file in recipe.files]
    parts = [wheel for file in files for source in file.sources if isinstance(source, WheelParts) for wheel in source.wheels]
    assert len(parts) == 6 + 22
    for wheel in (*DEFAULT_RECIPE.wheels, *parts):
        assert wheel.file == f"{wheel.project.replace('-', '_')}-{wheel.version}-py3-none-any.whl"
        assert len(bytes.fromhex(wheel.sha256)) == 32
