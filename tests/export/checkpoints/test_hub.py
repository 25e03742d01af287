"""A checkpoint comes from a hub: a real server on this machine, through the hub's own library."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from export.checkpoints.conversion import PullOptions
from export.checkpoints.hub import Hub
from export.checkpoints.safetensors_file import CheckpointError
from export.pull import pull_model
from export.store import Store
from tests.support.hub.local_hub import LocalHub, local_hub
from tests.support.tiny.tiny_checkpoints import write_whisper
from tests.support.tiny.tiny_speech_llms import write_parakeet_nemo

REPOSITORY = "someone/Whisper-Tiny"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("hub")
    write_whisper(root / REPOSITORY)
    (root / REPOSITORY / "README.md").write_text("---\nlanguage: en\nlicense: apache-2.0\n---\nA model.\n")
    (root / REPOSITORY / "pytorch_model.bin").write_bytes(b"a pickle")
    (root / REPOSITORY / "onnx").mkdir()
    (root / REPOSITORY / "onnx" / "config.json").write_text("{}")
    (root / "someone" / "empty").mkdir()
    write_parakeet_nemo(root / "someone" / "parakeet" / "Twin.nemo")
    (root / "someone" / "parakeet" / "README.md").write_text("---\nlanguage:\n- en\nlicense: cc-by-4.0\n---\nA twin.\n")
    return root


@pytest.fixture
def served(files: Path) -> Iterator[LocalHub]:
    with local_hub(files) as hub:
        yield hub


def pull(served: LocalHub, folder: Path, repository: str = REPOSITORY) -> Store:
    store, hub = Store(folder / "models"), Hub(folder / "checkpoints", served.url)
    bundle = pull_model(repository, PullOptions("fp32"), hub, store, lambda path: path.touch())
    assert bundle.folder == store.require("whisper-tiny-fp32")
    assert bundle.manifest.licences[REPOSITORY] == "apache-2.0"
    return store


def test_a_repository_is_downloaded_converted_and_let_go(served: LocalHub, tmp_path: Path) -> None:
    store = pull(served, tmp_path)
    assert store.names() == ["whisper-tiny-fp32"]
    assert {name for name, _ in served.requests}.isdisjoint({"pytorch_model.bin"})
    assert not any((tmp_path / "checkpoints").iterdir())


def test_a_nemo_file_is_downloaded_with_its_card(served: LocalHub, tmp_path: Path) -> None:
    store, hub = Store(tmp_path / "models"), Hub(tmp_path / "checkpoints", served.url)
    bundle = pull_model("someone/parakeet/Twin.nemo", PullOptions("fp32"), hub, store, lambda path: path.touch())
    assert store.names() == ["twin-fp32"]
    assert bundle.manifest.licences["someone/parakeet/Twin.nemo"] == "cc-by-4.0"
    assert not any((tmp_path / "checkpoints").iterdir())


def test_a_download_that_breaks_off_is_resumed(
    served: LocalHub, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The library keeps whole pieces of 10 MB.
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1024)
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda _s: None)
    size = (files / REPOSITORY / "model.safetensors").stat().st_size
    served.cut_after["model.safetensors"] = size // 2
    pull(served, tmp_path)
    ranges = [wanted for name, wanted in served.requests if name == "model.safetensors"]
    assert ranges[0] == ""
    assert int(ranges[1].removeprefix("bytes=").partition("-")[0]) > 0


def test_a_damaged_download_is_refused_and_deleted(served: LocalHub, tmp_path: Path) -> None:
    served.damaged.add("model.safetensors")
    with pytest.raises(CheckpointError, match=r"model\.safetensors came damaged: its sha256 is"):
        pull(served, tmp_path)
    assert not list((tmp_path / "checkpoints").rglob("model.safetensors"))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("someone/other", "cannot be had from the hub"),
        ("someone/empty", "has none of the files that an import reads"),
        ("someone/parakeet", "has its weights in Twin.nemo: pull someone/parakeet/Twin.nemo"),
        ("whisper", "is neither a folder, nor a GGUF or .nemo file, nor a hub id"),
        ("./nowhere/else", "is neither a folder"),
        ("someone/Whisper-Tiny/model.safetensors", "is no GGUF"),
    ],
)
def test_other_names_get_one_sentence(name: str, expected: str, served: LocalHub, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=expected):
        pull(served, tmp_path, name)


def test_a_hub_that_cannot_be_reached_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be had from the hub"):
        pull(LocalHub(tmp_path, "http://127.0.0.1:1"), tmp_path)


def test_a_full_disk_is_said_before_the_download(served: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: shutil._ntuple_diskusage(10, 5, 5))
    with pytest.raises(CheckpointError, match=r"GB free and the pull needs"):
        pull(served, tmp_path)
    assert served.requests == []


@pytest.mark.parametrize("file", ["encoder.onnx.data", "speech_embedding.npy"])
def test_a_disk_that_fills_up_leaves_nothing(file: str, files: Path, tmp_path: Path) -> None:
    def fill_disk(voice: Path) -> None:
        voice.touch()
        voice.with_name(file).symlink_to("/dev/full")

    store = Store(tmp_path / "models")
    with pytest.raises(CheckpointError, match="no space left on the disk"):
        pull_model(str(files / REPOSITORY), PullOptions("fp32"), Hub(tmp_path), store, fill_disk)
    assert list(store.root.iterdir()) == []
