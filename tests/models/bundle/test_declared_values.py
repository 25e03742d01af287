"""Each value that `bundle.json` declares is compared with the files at load: a wrong one is an error that names it."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.assemble import load_models
from models.bundle.io import BundleError, open_bundle, write_bundle
from models.bundle.schema import BundleDescription
from models.features.log_mel import log_mel
from models.graph.writer import GraphBuilder
from tests.support.tiny.tiny_bundle import write_speaking_bundle, write_transcribing_bundle
from tests.support.tiny.tiny_whisper import WIDTH


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "bundle"
    write_speaking_bundle(folder)
    return folder


def edited(whole: Path, folder: Path, edit: Callable[[dict[str, Any]], object]) -> Path:
    shutil.copytree(whole, folder)
    manifest = json.loads((folder / "bundle.json").read_text())
    edit(manifest)
    (folder / "bundle.json").write_text(json.dumps(manifest))
    return folder


def test_the_bundle_loads_as_it_is(whole: Path) -> None:
    models = load_models(open_bundle(whole), slots=1, threads=1)
    audio = np.random.default_rng(0).normal(0, 0.1, 16_000).astype(np.float32)
    assert np.array_equal(models.features(audio), log_mel(audio))


@pytest.fixture(scope="module")
def transcribing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("transcribing") / "bundle"
    write_transcribing_bundle(folder)
    return folder


@pytest.mark.parametrize(
    ("values", "file"),
    [
        ({"encoder.mel_bins": 128}, "encoder.onnx"),
        ({"encoder.width": 64, "projector.encoder_width": 64}, "encoder.onnx"),
        ({"encoder.states_per_s": 25.0}, "encoder.onnx"),
        ({"projector.subsampling": 2}, "adapter.safetensors"),
        ({"projector.embedding_size": 32, "llm.embedding_size": 32}, "llm.onnx"),
        ({"llm.layers": 5}, "llm.onnx"),
        ({"llm.key_value_heads": 7}, "llm.onnx"),
        ({"llm.vocabulary_size": 999}, "llm.onnx"),
        ({"llm.max_positions": 128}, "llm.onnx"),
        ({"voice.window_samples": 256}, "voice.onnx"),
        ({"sample_rate_hz": 8000, "voice.sample_rate_hz": 8000}, "the front end log_mel"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_a_wrong_value_is_refused_by_its_name(whole: Path, tmp_path: Path, values: dict[str, Any], file: str) -> None:
    require_refused(whole, tmp_path / "wrong", values, file)


@pytest.mark.parametrize(
    ("values", "file"),
    [
        ({"speech_decoder.layers": 5}, "speech_decoder.onnx"),
        ({"speech_decoder.embedding_size": 48}, "speech_decoder.onnx"),
        ({"speech_decoder.vocabulary_size": 4000}, "speech_decoder.onnx"),
        ({"speech_decoder.max_positions": 128}, "speech_decoder.onnx"),
    ],
)
def test_a_wrong_value_of_the_speech_decoder_is_too(
    transcribing: Path, tmp_path: Path, values: dict[str, Any], file: str
) -> None:
    require_refused(transcribing, tmp_path / "wrong", values, file)


def test_the_memory_graph_must_be_the_decoders(transcribing: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(transcribing, tmp_path / "wrong")
    for layers, width, place in ((1, WIDTH, "speech_decoder.layers is 2"), (2, 16, "speech_decoder.embedding_size is 32")):
        graph = GraphBuilder("memory")
        states = graph.input("states", np.float32, ["states", WIDTH])
        for name in (f"cross_{kind}_{layer}" for layer in range(layers) for kind in ("key", "value")):
            weight = graph.weight(name + ".weight", np.zeros((WIDTH, width), np.float32))
            graph.output(graph.node("MatMul", states, weight), name, np.float32, ["states", width])
        graph.save(folder / "speech_memory.onnx")
        (folder / "bundle.json").unlink()
        described = {name: value for name, value in open_bundle(transcribing).manifest if name != "files"}
        bundle = write_bundle(folder, BundleDescription(**described))
        with pytest.raises(BundleError, match=rf"{place}, but in speech_memory\.onnx it is"):
            load_models(bundle, slots=1, threads=1)


@pytest.mark.parametrize(
    ("place", "value", "problem"),
    [
        ("tokens.end", 99_999, "speech_decoder.tokens holds a token id outside the vocabulary"),
        ("tokens.suppressed", [99_999], "speech_decoder.tokens holds a token id outside the vocabulary"),
        ("tokens.languages", {"en": 99_999}, "speech_decoder.tokens holds a token id outside the vocabulary"),
        ("max_states", 1499, "speech_decoder.max_states is less than what max_audio_s of audio has"),
    ],
)
def test_a_speech_decoder_that_cannot_serve_is_refused(
    transcribing: Path, tmp_path: Path, place: str, value: Any, problem: str
) -> None:
    def change(manifest: dict[str, Any]) -> None:
        *inner, name = place.split(".")
        section = manifest["speech_decoder"]
        (section[inner[0]] if inner else section)[name] = value

    with pytest.raises(BundleError, match=problem):
        open_bundle(edited(transcribing, tmp_path / "wrong", change))


def require_refused(whole: Path, folder: Path, values: dict[str, Any], file: str) -> None:
    """Load a copy of a bundle that says other `values`; require an error that names one of them and the file."""

    def change(manifest: dict[str, Any]) -> None:
        for place, value in values.items():
            *sections, name = place.split(".")
            (manifest[sections[0]] if sections else manifest)[name] = value

    with pytest.raises(BundleError) as caught:
        load_models(open_bundle(edited(whole, folder, change)), slots=1, threads=1)
    places = [f"bundle.json says that {place} is {value}, but in {file} it is" for place, value in values.items()]
    assert any(place in str(caught.value) for place in places), str(caught.value)


def test_the_slots_of_either_attention_are_read(whole: Path) -> None:
    llm = open_bundle(whole).manifest.require_llm()
    heads, size, positions = llm.key_value_heads, llm.head_size, llm.max_positions
    for shape in (["rows", positions, heads * size], ["rows", heads, positions, size]):
        values = llm.graph_values({"key_0": shape})
        assert [values[name] for name in ("key_value_heads", "head_size", "max_positions")] == [heads, size, positions]


def test_a_tokeniser_beyond_the_vocabulary_is_refused(whole: Path, tmp_path: Path) -> None:
    def shorten(manifest: dict[str, Any]) -> None:
        manifest["llm"]["tokeniser"] = "longer.json"
        manifest["files"]["longer.json"] = manifest["files"].pop("tokenizer.json")

    folder = edited(whole, tmp_path / "wrong", shorten)
    (folder / "tokenizer.json").rename(folder / "longer.json")
    tokeniser = json.loads((folder / "longer.json").read_text())
    tokeniser["model"]["vocab"]["abc"] = 5000
    (folder / "longer.json").write_text(json.dumps(tokeniser))
    bundle = open_bundle(whole)
    renamed = bundle.manifest.model_copy(
        update={
            "llm": bundle.manifest.require_llm().model_copy(update={"tokeniser": "longer.json"}),
            "files": {**bundle.manifest.files, "longer.json": bundle.manifest.files["tokenizer.json"]},
        }
    )
    with pytest.raises(BundleError, match=r"llm\.vocabulary_size is \d+, but in longer\.json it is 5001"):
        load_models(type(bundle)(folder, renamed), slots=1, threads=1)


def test_a_bundle_opens_without_any_library_that_runs_or_writes_graphs(whole: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from models.bundle.io import open_bundle;"
        f"open_bundle(Path({str(whole)!r})); print([each for each in ('onnx', 'onnxruntime', 'torch') if each in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip() == "[]"
