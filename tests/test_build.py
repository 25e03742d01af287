"""Which engine a bundle gets, and who reads and checks the bundle."""

import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest

from models.bundle import BundleError
from server.build import build_engine
from server.process_engine import ProcessEngine, StartError
from server.settings import Settings
from tests.test_bundle import DESCRIPTION, write_tiny_bundle

# What the first part to be read says of nonsense.
NOT_A_MODEL = "deserializing header"


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
    adapter = DESCRIPTION.adapter.model_copy(update={"boundary_instructions": ("Transcribe the speech to text.",)})
    write_tiny_bundle(tmp_path / "tiny", DESCRIPTION.model_copy(update={"adapter": adapter}))
    engine = build_engine(tmp_path / "tiny", Settings())
    assert engine.transcribes("transcribe the SPEECH to text")
    assert not engine.transcribes("Summarise the speech.")


def test_a_bundle_that_names_none_takes_all_for_such(bundle: Path) -> None:
    assert build_engine(bundle, Settings()).transcribes("Anything?")


def test_as_a_thread_they_are_loaded_here(bundle: Path) -> None:
    with pytest.raises(Exception, match=NOT_A_MODEL):
        build_engine(bundle, Settings(engine="thread"))


def test_the_server_itself_loads_no_runtime() -> None:
    program = "import sys, server.build, server.launch, server.cli; sys.exit('onnxruntime' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parent.parent, check=True)
