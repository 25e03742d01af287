"""The recipe `slm` builds the paper's chain: the LLM hears the adapter's frames, and no speech decoder is there."""

import zipfile
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import TokenType
from tokenizers import pre_tokenizers

from export.conversion import GGUF_MEMBER, VOICE_MEMBER, convert_slm
from export.default_recipe import ADAPTER, LLM, RECIPES, SLM, VOICE, WHISPER_PARTS
from export.recipe import Ingredients
from models.assemble import load_models
from models.bundle.io import open_bundle, write_bundle
from models.chain import Models
from models.projectors.subsample import read_adapter
from server.engine.runner.runner import Runner
from server.engine.types.options import DraftPolicy, SamplingOptions
from server.engine.types.requests import InstructRequest, SpeechTask
from tests.export.importers.test_gguf import CONTROLS, LAYER_SHAPES, close
from tests.models.test_voice_onnx import write_graph
from tests.support.clients.runner_client import Answer, run
from tests.support.tiny.tiny_mt5 import INSTRUCTIONS, write_random_adapter
from tests.support.tiny.tiny_whisper import WIDTH, arrays_of, random_encoder, write_ctranslate2

EMBEDDING_SIZE, LAYERS, HEADS = 64, 2, 4
MERGES = ["h e", "l l"]
TOKENS = [*CONTROLS, *sorted(pre_tokenizers.ByteLevel.alphabet()), *(merge.replace(" ", "") for merge in MERGES)]


def write_gguf(path: Path) -> None:
    """Write a random llama with a byte-level tokeniser."""
    random = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(LAYERS)
    writer.add_embedding_length(EMBEDDING_SIZE)
    writer.add_feed_forward_length(96)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(2)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(TOKENS)
    writer.add_token_types([TokenType.CONTROL] * len(CONTROLS) + [TokenType.NORMAL] * (len(TOKENS) - len(CONTROLS)))
    writer.add_token_merges(MERGES)
    shapes = {f"blk.{layer}.{name}": shape for layer in range(LAYERS) for name, shape in LAYER_SHAPES.items()}
    shapes |= {"token_embd.weight": (len(TOKENS), EMBEDDING_SIZE), "output_norm.weight": (EMBEDDING_SIZE,)}
    for name, shape in shapes.items():
        writer.add_tensor(name, random.standard_normal(shape).astype(np.float32) * (0.3 if len(shape) > 1 else 1.0))
    close(writer, path)


def pack(wheel: Path, member: str, content: bytes) -> Path:
    with zipfile.ZipFile(wheel, "w") as opened:
        opened.writestr(member, content)
    return wheel


def write_ingredients(folder: Path, adapter: Path) -> Ingredients:
    """Pack the random models as the wheels that the recipe names."""
    write_ctranslate2(folder / "model.bin", arrays_of(random_encoder(1, positions=1500)))
    write_gguf(folder / "llm.gguf")
    write_graph(folder / "voice.onnx", 512)
    whole = (folder / "model.bin").read_bytes()
    parts = {name: whole[:1000] if name == WHISPER_PARTS[0] else whole[1000:] for name in WHISPER_PARTS}
    members = {name: f"{name.replace('-', '_')}/data/model.bin.part{number}" for number, name in enumerate(WHISPER_PARTS, 1)}
    wheels = {name: pack(folder / f"{name}.whl", members[name], part) for name, part in parts.items()}
    wheels[LLM] = pack(folder / "llm.whl", GGUF_MEMBER, (folder / "llm.gguf").read_bytes())
    wheels[VOICE] = pack(folder / "voice.whl", VOICE_MEMBER, (folder / "voice.onnx").read_bytes())
    scratch = folder / "scratch"
    scratch.mkdir()
    return Ingredients(wheels, adapter, scratch, "fp32")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    folder = tmp_path_factory.mktemp("slm")
    write_random_adapter(folder / "trained.safetensors", WIDTH, EMBEDDING_SIZE)
    ingredients = write_ingredients(folder, folder / "trained.safetensors")
    (folder / "bundle").mkdir()
    write_bundle(folder / "bundle", convert_slm(ingredients, folder / "bundle", SLM))
    return load_models(open_bundle(folder / "bundle"), slots=2, threads=1)


def ask(models: Models, seed: int, instruction: str, draft: DraftPolicy = "exact") -> Answer:
    random = np.random.default_rng(seed)
    tones = random.uniform(100, 6000, (20, 1)) * np.arange(1600) / 16_000
    audio = (np.sin(2 * np.pi * tones) * random.exponential(0.3, (20, 1))).ravel().astype(np.float32)
    return run(Runner(models), InstructRequest("1", audio, SpeechTask(instruction, SamplingOptions(max_tokens=12), draft=draft)))[
        1
    ]


def test_the_llm_hears_frames_and_writes_every_answer(models: Models) -> None:
    assert models.bridge == "frames"
    assert models.speech is None
    assert models.padding is None
    assert models.drafts
    answers = {ask(models, seed, instruction).tokens for seed in range(4) for instruction in ("Who speaks?", INSTRUCTIONS[0])}
    assert len(answers) > 4


def test_a_draft_changes_no_token(models: Models) -> None:
    for seed in range(4):
        assert ask(models, seed, INSTRUCTIONS[0]).tokens == ask(models, seed, INSTRUCTIONS[0], draft="off").tokens


def test_boundary_vectors_stand_around_the_speech_where_a_transcript_is_asked_for(models: Models) -> None:
    assert [len(vectors) for vectors in models.boundaries(INSTRUCTIONS[0])] == [2, 2]
    assert [len(vectors) for vectors in models.boundaries("Who speaks?")] == [0, 0]


def test_an_adapter_whose_draft_is_in_whispers_tokens_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"in Whisper's tokens, and no LLM can hear its frames"):
        convert_slm(write_ingredients(tmp_path, ADAPTER), tmp_path, SLM)


def test_the_committed_adapter_is_one_for_the_recipes_llm() -> None:
    recipe = RECIPES["slm"]
    config = read_adapter(recipe.adapter).config
    assert (config["encoder_width"], config["embedding_size"]) == (512, 576)
    assert config.get("targets", "llm") == "llm"
    assert recipe.name != RECIPES["small"].name
