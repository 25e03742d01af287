"""The factory: which engine a bundle gets, and that the bundle is checked before."""

import subprocess
import sys
import types
from pathlib import Path
from typing import Literal

import pytest

from models.bundle.io import Bundle, BundleError
from models.chain import Models
from models.protocols import BackendError
from server.engine.factory import build_engine, one_gpu
from server.engine.ipc.client import ProcessEngine, StartError
from server.engine.router import EngineRouter
from server.settings import Settings
from tests.models.bundle.test_bundle import DESCRIPTION, write_tiny_bundle

# Part of the message of the first model file that is read, for nonsense.
NOT_A_MODEL = r"encoder\.onnx could not be loaded"


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    folder = tmp_path / "tiny"
    write_tiny_bundle(folder)
    return folder


@pytest.mark.parametrize("kind", ["process", "thread"])
def test_a_damaged_bundle_is_refused_before_anything_is_started(bundle: Path, kind: Literal["process", "thread"]) -> None:
    (bundle / "llm.onnx").write_bytes(b"LLM graph")
    with pytest.raises(BundleError, match=r"llm\.onnx"):
        build_engine(bundle, Settings(engine=kind))


def test_by_default_the_models_are_loaded_in_a_child(bundle: Path) -> None:
    engine = build_engine(bundle, Settings())
    assert isinstance(engine, ProcessEngine)
    assert (engine.sample_rate_hz, engine.max_audio_s) == (DESCRIPTION.sample_rate_hz, DESCRIPTION.max_audio_s)
    with pytest.raises(StartError, match=NOT_A_MODEL):
        engine.start()
    engine.drain(0)


def test_the_server_knows_which_instructions_transcribe(tmp_path: Path) -> None:
    adapter = DESCRIPTION.require_projector().model_copy(update={"boundary_instructions": ("Transcribe the speech to text.",)})
    write_tiny_bundle(tmp_path / "tiny", DESCRIPTION.model_copy(update={"projector": adapter}))
    engine = build_engine(tmp_path / "tiny", Settings())
    assert engine.transcribes("transcribe the SPEECH to text")
    assert not engine.transcribes("Summarise the speech.")


def test_a_bundle_that_names_none_takes_all_for_such(bundle: Path) -> None:
    assert build_engine(bundle, Settings()).transcribes("Anything?")


def test_as_a_thread_they_are_loaded_here(bundle: Path) -> None:
    with pytest.raises(Exception, match=NOT_A_MODEL):
        build_engine(bundle, Settings(engine="thread"))


class GpuChain(types.ModuleType):
    """Stands in for `models.runtimes.cuda.chain`: remembers what is asked of it, and then has no plan."""

    def __init__(self) -> None:
        super().__init__("models.runtimes.cuda.chain")
        self.asked: dict[str, object] = {}

    def load_gpu_models(self, bundle: Bundle, **options: object) -> Models:
        self.asked = {"name": bundle.manifest.name, **options}
        raise BackendError("The bundle has no plan.")


def test_a_gpu_has_a_loader_of_its_own(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chain = GpuChain()
    monkeypatch.setitem(sys.modules, "models.runtimes.cuda.chain", chain)
    settings = Settings(
        engine="thread", device="cuda", gpus="3", slots=7, threads=2, adapter_runtime="tensorrt", slot_positions=4096
    )
    with pytest.raises(BackendError, match="no plan"):
        build_engine(bundle, settings)
    assert chain.asked == {
        "name": DESCRIPTION.name,
        "gpu": 3,
        "slots": 7,
        "threads": 2,
        "encoder_runtime": "onnxruntime",
        "adapter_runtime": "tensorrt",
        "tensorrt_library": "tensorrt",
        "positions": 4096,
    }


def test_a_library_that_is_missing_is_said(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # As an import of it would be answered.
    monkeypatch.setitem(sys.modules, "models.runtimes.cuda.chain", None)
    with pytest.raises(BackendError, match=r"^The device cuda needs models\.runtimes\.cuda\.chain: pip install"):
        build_engine(bundle, Settings(engine="thread", device="cuda"))


def test_several_gpus_have_an_engine_process_each(bundle: Path) -> None:
    assert isinstance(build_engine(bundle, Settings(device="cuda", gpus="1")), ProcessEngine)
    fleet = build_engine(bundle, Settings(device="cuda", gpus="0,2"))
    assert isinstance(fleet, EngineRouter)
    assert (fleet.sample_rate_hz, fleet.max_audio_s) == (DESCRIPTION.sample_rate_hz, DESCRIPTION.max_audio_s)
    assert fleet.transcribes("Anything?")
    with pytest.raises(StartError, match=r"^GPU [02]: The engine's process could not be started"):
        fleet.start()


def test_engines_share_the_cores_unless_they_are_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _process: set(range(16)))
    three = Settings(device="cuda", gpus="0,1,5")
    assert [(one.gpus, one.threads) for one in (one_gpu(three, number) for number in three.gpu_numbers)] == [
        ("0", 5),
        ("1", 5),
        ("5", 5),
    ]
    assert one_gpu(Settings(device="cuda", gpus="4"), 4).threads == 16
    assert one_gpu(Settings(device="cuda", gpus="0,1", threads=3), 1).threads == 3
    many = ",".join(map(str, range(40)))
    assert one_gpu(Settings(device="cuda", gpus=many), 9).threads == 1
    assert one_gpu(Settings(), 0) == Settings()


def test_the_server_itself_loads_no_runtime() -> None:
    program = "import sys, server.engine.factory, server.api.lifecycle, server.cli; sys.exit('onnxruntime' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parents[3], check=True)
