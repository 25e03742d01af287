"""Models are not loaded into memory that is not there."""

from pathlib import Path

import pytest

from models.bundle.io import read_manifest
from models.bundle.memory import loaded_bytes, slot_bytes
from models.protocols import BackendError
from server.registry import room
from server.settings import Settings
from tests.support.tiny.tiny_bundle import write_speaking_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle") / "tiny"
    write_speaking_bundle(folder)
    return folder


def test_models_are_reckoned_together(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = loaded_bytes(read_manifest(bundle), slots=4)
    monkeypatch.setattr(room, "available_memory_bytes", lambda: 2 * one)
    room.check_room([bundle, bundle], Settings())
    with pytest.raises(BackendError, match=r"too little memory: about \d+ MiB are needed for 3 models with 4 slots, and \d+ MiB"):
        room.check_room([bundle] * 3, Settings())
    with pytest.raises(BackendError, match="with 200 slots"):
        room.check_room([bundle, bundle], Settings(slots=200))


def test_more_slots_take_more(bundle: Path) -> None:
    manifest = read_manifest(bundle)
    assert loaded_bytes(manifest, slots=5) - loaded_bytes(manifest, slots=4) == slot_bytes(manifest) > 0


def test_a_gpu_is_left_to_the_engine(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "available_memory_bytes", lambda: 0)
    room.check_room([bundle], Settings(device="cuda"))
