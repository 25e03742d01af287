"""A bundle that is not whole, unchanged and self-contained is refused, and the message names the file and the way out."""

import json
import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.bundle.io import HOW_TO_FIX, BundleError, open_bundle, write_bundle
from models.bundle.schema import BundleDescription
from models.bundle.sections import FileEntry, PromptSection, VoiceSection
from models.encoders.whisper import WhisperSection
from models.llms.llama import LlamaSection
from models.projectors.subsample_ctc import SubsampleCtcSection

CONTENTS = {
    "encoder.onnx": b"encoder graph",
    "adapter.onnx": b"adapter graph",
    "adapter.safetensors": b"adapter weights",
    "llm.onnx": b"llm graph",
    "llm.onnx.data": b"llm weights",
    "embedding.npy": b"embedding table",
    "tokenizer.json": b"{}",
    "voice.onnx": b"voice detector",
    "plans/sm90.plan": b"a file in a sub-folder",
}
DESCRIPTION = BundleDescription(
    name="tiny",
    created=datetime(2026, 1, 2, tzinfo=UTC),
    sample_rate_hz=16_000,
    max_audio_s=30.0,
    encoder=WhisperSection(
        architecture="whisper", precision="fp32", graph="encoder.onnx", mel_bins=80, width=512, states_per_s=50.0
    ),
    projector=SubsampleCtcSection(
        architecture="subsample_ctc",
        precision="fp32",
        graph="adapter.onnx",
        weights="adapter.safetensors",
        encoder_width=512,
        subsampling=4,
        embedding_size=576,
    ),
    llm=LlamaSection(
        architecture="llama",
        precision="fp32",
        graph="llm.onnx",
        embedding="embedding.npy",
        tokeniser="tokenizer.json",
        layers=30,
        key_value_heads=3,
        head_size=64,
        embedding_size=576,
        vocabulary_size=49152,
        max_positions=2048,
    ),
    prompt=PromptSection(prefix=(1, 2), after_instruction=(3,), suffix=(4,), end_tokens=(2, 0)),
    voice=VoiceSection(architecture="silero", graph="voice.onnx", sample_rate_hz=16_000, window_samples=512),
    licences={"encoder": "MIT"},
)


def write_tiny_bundle(folder: Path, description: BundleDescription = DESCRIPTION) -> None:
    """A bundle that is whole, with graphs that are none."""
    for name, content in CONTENTS.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    write_bundle(folder, description)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "tiny"
    write_tiny_bundle(folder)
    return folder


def edit_manifest(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "bundle.json"
    manifest = json.loads(path.read_text())
    edit(manifest)
    path.write_text(json.dumps(manifest))


def refusal(folder: Path) -> str:
    with pytest.raises(BundleError) as caught:
        open_bundle(folder)
    message = str(caught.value)
    assert message.endswith(HOW_TO_FIX)
    assert "export.default_bundle --rebuild" in message
    return message


def test_round_trip(folder: Path) -> None:
    bundle = open_bundle(folder)
    assert BundleDescription(**{name: getattr(bundle.manifest, name) for name in BundleDescription.model_fields}) == DESCRIPTION
    assert {name: bundle.path(name).read_bytes() for name in bundle.manifest.files} == CONTENTS
    with pytest.raises(KeyError):
        bundle.path("bundle.json")


def test_folder_reached_by_a_link_is_fine(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "current").symlink_to(folder)
    assert open_bundle(tmp_path / "current").folder == folder.resolve()


@given(name=st.sampled_from(sorted(CONTENTS)), position=st.integers(min_value=0), change=st.integers(1, 255))
def test_any_changed_byte_is_refused(tmp_path_factory: pytest.TempPathFactory, name: str, position: int, change: int) -> None:
    folder = tmp_path_factory.mktemp("bundle")
    for each, content in CONTENTS.items():
        (folder / each).parent.mkdir(exist_ok=True)
        (folder / each).write_bytes(content)
    write_bundle(folder, DESCRIPTION)
    damaged = bytearray(CONTENTS[name])
    damaged[position % len(damaged)] ^= change
    (folder / name).write_bytes(damaged)
    assert f"{name} is damaged" in refusal(folder)


def test_truncated(folder: Path) -> None:
    (folder / "llm.onnx.data").write_bytes(b"llm")
    assert "llm.onnx.data is 3 bytes long where bundle.json says 11" in refusal(folder)


@pytest.mark.parametrize("name", sorted(CONTENTS))
def test_missing(folder: Path, name: str) -> None:
    (folder / name).unlink()
    assert f"{name} is missing" in refusal(folder)


def test_missing_folder(tmp_path: Path) -> None:
    assert "the folder does not exist" in refusal(tmp_path / "nowhere")


def test_folder_without_manifest(folder: Path) -> None:
    (folder / "bundle.json").unlink()
    assert "bundle.json is missing" in refusal(folder)


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", "{", '{"schema_version"', "\udcff", "[" * 100_000])
def test_manifest_that_is_no_manifest(folder: Path, text: str) -> None:
    (folder / "bundle.json").write_bytes(text.encode(errors="surrogateescape"))
    assert "bundle.json is not a JSON object with a schema_version" in refusal(folder)


def test_giant_manifest(folder: Path) -> None:
    (folder / "bundle.json").write_bytes(b" " * (2**20 + 1))
    assert "bundle.json is larger than 1048576 bytes" in refusal(folder)


@pytest.mark.parametrize("version", [0, 1, 4, "3", None, 2.5])
def test_other_schema_version(folder: Path, version: object) -> None:
    edit_manifest(folder, lambda manifest: manifest.update(schema_version=version))
    assert f"bundle.json has schema version {version!r}, this release reads 2 and 3" in refusal(folder)


@pytest.mark.parametrize(("version", "way_out"), [(1, "build or pull the model again"), (4, "a newer release of Thinbridge")])
def test_an_integer_version_comes_with_a_way_out(folder: Path, version: int, way_out: str) -> None:
    edit_manifest(folder, lambda manifest: manifest.update(schema_version=version))
    assert way_out in refusal(folder)


@pytest.mark.parametrize("section", ["", "encoder", "projector", "llm", "prompt", "voice"])
def test_unknown_key(folder: Path, section: str) -> None:
    edit_manifest(folder, lambda manifest: (manifest[section] if section else manifest).update(surprise=1))
    assert f"bundle.json is not valid: {section and section + '.'}surprise" in refusal(folder)


REQUIRED = {name for name, field in BundleDescription.model_fields.items() if field.is_required()} | {"files"}


@pytest.mark.parametrize("key", sorted(REQUIRED))
def test_missing_key(folder: Path, key: str) -> None:
    edit_manifest(folder, lambda manifest: manifest.pop(key))
    assert f"bundle.json is not valid: {key}: Field required" in refusal(folder)


def test_sizes_that_do_not_fit(folder: Path) -> None:
    edit_manifest(folder, lambda manifest: manifest["projector"].update(embedding_size=512))
    assert "bundle.json is not valid: Value error, projector.embedding_size differs from llm.embedding_size" in refusal(folder)


def test_voice_detector_at_another_rate(folder: Path) -> None:
    edit_manifest(folder, lambda manifest: manifest["voice"].update(sample_rate_hz=8000))
    assert "bundle.json is not valid: Value error, voice.sample_rate_hz differs from sample_rate_hz" in refusal(folder)


def test_prompt_outside_the_vocabulary(folder: Path) -> None:
    edit_manifest(folder, lambda manifest: manifest["prompt"].update(suffix=[49152]))
    assert "prompt holds a token id outside the vocabulary" in refusal(folder)


SEARCH = {"hypotheses": 4, "ctc_weight": 0.6, "token_bonus": 1.0, "margin": 3.0, "context": [0], "end_token": 2}


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"projector": {"vocabulary": "speech_decoder", "table": "embedding.npy"}}, "there is no speech_decoder"),
        ({"projector": {"search": {**SEARCH, "context": [49152]}}}, "projector.search holds a token id outside the vocabulary"),
        ({"projector": {"search": {**SEARCH, "end_token": 49152}}}, "projector.search holds a token id outside the vocabulary"),
        ({"projector": {"search": {**SEARCH, "ctc_weight": 1.5}}}, "less than or equal to 1"),
        ({"projector": {"search": {**SEARCH, "hypotheses": 0}}}, "greater than 0"),
        ({"llm": {"max_positions": 1}}, "projector.search.context is longer than a slot"),
    ],
)
def test_search_that_does_not_fit_the_models(folder: Path, changes: dict[str, dict[str, Any]], complaint: str) -> None:
    edit_manifest(folder, lambda manifest: manifest["projector"].update(search=SEARCH))
    open_bundle(folder)
    ((section, update),) = changes.items()
    edit_manifest(folder, lambda manifest: manifest[section].update(update))
    assert complaint in refusal(folder)


@pytest.mark.parametrize(
    "name",
    ["/etc/hostname", "../outside", "plans/../../outside", "./llm.onnx", "plans//x", "", ".", "..", "a\\b", "C:/x", ".x", "a\n"],
)
def test_name_outside_the_folder(folder: Path, name: str) -> None:
    (folder.parent / "outside").write_bytes(b"")
    entry = FileEntry(sha256="0" * 64, bytes=0).model_dump()
    edit_manifest(folder, lambda manifest: manifest["files"].update({name: entry}))
    assert f"{name!r} is not the plain name of a file inside the bundle" in refusal(folder)
    edit_manifest(folder, lambda manifest: manifest["files"].pop(name))
    edit_manifest(folder, lambda manifest: manifest["llm"].update(graph=name))
    assert f"{name!r} is not the plain name of a file inside the bundle" in refusal(folder)


def test_symbolic_link(folder: Path) -> None:
    (folder.parent / "elsewhere").write_bytes(CONTENTS["llm.onnx"])
    (folder / "llm.onnx").unlink()
    (folder / "llm.onnx").symlink_to(folder.parent / "elsewhere")
    assert "llm.onnx is reached by a symbolic link" in refusal(folder)


def test_symbolic_link_to_a_folder(folder: Path) -> None:
    (folder / "plans").rename(folder.parent / "plans")
    (folder / "plans").symlink_to(folder.parent / "plans")
    assert "plans/sm90.plan is reached by a symbolic link" in refusal(folder)


def test_hard_link(folder: Path) -> None:
    os.link(folder / "llm.onnx", folder.parent / "second-name")
    assert "llm.onnx is a hard link" in refusal(folder)


def test_neither_file_nor_link(folder: Path) -> None:
    (folder / "llm.onnx").unlink()
    os.mkfifo(folder / "llm.onnx")
    assert "llm.onnx is not a regular file" in refusal(folder)


def test_manifest_behind_a_link(folder: Path) -> None:
    (folder / "bundle.json").rename(folder.parent / "bundle.json")
    (folder / "bundle.json").symlink_to(folder.parent / "bundle.json")
    assert "bundle.json is reached by a symbolic link" in refusal(folder)


def test_file_that_the_manifest_does_not_vouch_for(folder: Path) -> None:
    (folder / "encoder.onnx.data").write_bytes(b"weights that nobody hashed")
    assert "encoder.onnx.data is not listed in bundle.json" in refusal(folder)


def test_section_names_an_unlisted_file(folder: Path) -> None:
    edit_manifest(folder, lambda manifest: manifest["encoder"].update(graph="other.onnx"))
    assert "other.onnx is used by a section of bundle.json but not listed" in refusal(folder)


def test_writing_an_incomplete_folder_is_refused(folder: Path) -> None:
    (folder / "bundle.json").unlink()
    (folder / "embedding.npy").unlink()
    with pytest.raises(BundleError, match=r"embedding\.npy is missing"):
        write_bundle(folder, DESCRIPTION)
    assert not (folder / "bundle.json").exists()


def test_a_bundle_of_version_2_still_opens(folder: Path) -> None:
    (folder / "bundle.json").write_bytes((Path(__file__).parent / "version_2.json").read_bytes())
    manifest = open_bundle(folder).manifest
    assert manifest.encoder == DESCRIPTION.encoder
    assert manifest.projector == DESCRIPTION.require_projector().model_copy(update={"boundary_instructions": ("Transcribe.",)})
    assert manifest.llm == DESCRIPTION.llm


def test_a_wrong_bundle_of_version_2_is_refused_by_the_names_of_version_3(folder: Path) -> None:
    (folder / "bundle.json").write_bytes((Path(__file__).parent / "version_2.json").read_bytes())
    edit_manifest(folder, lambda manifest: manifest["adapter"].update(subsampling=0))
    assert "bundle.json is not valid: projector.subsampling: Input should be greater than 0" in refusal(folder)
    edit_manifest(folder, lambda manifest: manifest.update(adapter=None))
    assert "projector is missing, which bridge needs" in refusal(folder)


@pytest.mark.parametrize(
    ("section", "known"),
    [
        ("encoder", "fast_conformer, granite, qwen3_asr, w2v_bert, whisper"),
        ("projector", "ctc_head, linear, qformer, qformer_ctc, subsample, subsample_ctc"),
        ("llm", "llama"),
        ("voice", "silero"),
    ],
)
def test_an_unknown_architecture_is_refused_with_the_known_ones(folder: Path, section: str, known: str) -> None:
    edit_manifest(folder, lambda manifest: manifest[section].update(architecture="warbler"))
    message = refusal(folder)
    assert f"{section}.architecture" in message
    assert f"unknown 'warbler', this release knows {known}" in message
