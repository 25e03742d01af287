"""A `tekken.json` gives tiktoken's ids behind those of the special tokens, which text never becomes."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from export.checkpoints.checkpoint import Checkpoint
from export.checkpoints.safetensors_file import CheckpointError
from export.importers.tekken import OLDER_SPECIALS, write_tekken
from models.text.tokeniser import Tokeniser
from tests.support.tiny.reference_tokenisers import encode_tiktoken
from tests.support.tiny.tiny_checkpoints import TEKKEN_WORDS, write_tekken_tokeniser

NAMES = ("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AUDIO]")
TEXTS = st.text("the empty Transcrib file\n\t[INST]/<s>Ж\u0301é\U0001f600\x00 9'", max_size=40)


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("tekken")
    write_tekken_tokeniser(folder, NAMES)
    read: dict[str, Any] = json.loads((folder / "tekken.json").read_text())
    return read


@pytest.fixture(scope="module")
def tokeniser(content: dict[str, Any]) -> Tokeniser:
    return Tokeniser.from_json(write_tekken(content))


@settings(max_examples=40, deadline=None)
@given(text=TEXTS)
def test_ids_are_the_references(content: dict[str, Any], tokeniser: Tokeniser, text: str) -> None:
    ranks = {base64.b64decode(entry["token_bytes"]): entry["rank"] + len(NAMES) for entry in content["vocab"]}
    ids = tokeniser.encode(text)
    assert ids == encode_tiktoken(text, ranks, TEKKEN_WORDS)
    assert tokeniser.decode(ids) == text
    assert min(ids, default=len(NAMES)) >= len(NAMES)


def test_templates_have_the_special_tokens(tokeniser: Tokeniser) -> None:
    assert tokeniser.encode_template("<s>[INST][AUDIO]") == [1, 3, 5]
    assert tokeniser.encode_template("[/INST]the")[1:] == tokeniser.encode("the")


def test_a_file_may_list_no_special_tokens_and_more_tokens_than_its_model_has(content: dict[str, Any]) -> None:
    size = {"default_num_special_tokens": 24, "default_vocab_size": 24 + 260}
    older = {"config": {**content["config"], **size}, "vocab": content["vocab"]}
    tokeniser = Tokeniser.from_json(write_tekken(older))
    assert tokeniser.special_tokens["[TOOL_CONTENT]"] == len(OLDER_SPECIALS) - 1
    assert tokeniser.special_tokens["<SPECIAL_23>"] == 23
    assert tokeniser.vocabulary_size == 24 + 260


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content["vocab"].pop(3),
        lambda content: content["vocab"][3].update(token_bytes="?"),
        lambda content: content["special_tokens"][1].update(token_str="<unk>"),
        lambda content: content.pop("config"),
        lambda content: content["config"].update(pattern="("),
    ],
    ids=["a missing token", "no base64", "one name twice", "no config", "a broken pattern"],
)
def test_a_broken_file_is_refused_in_one_sentence(content: dict[str, Any], tmp_path: Path, damage: Any) -> None:
    broken = json.loads(json.dumps(content))
    damage(broken)
    (tmp_path / "tekken.json").write_text(json.dumps(broken))
    with pytest.raises(CheckpointError, match=r"has a tekken\.json that cannot be used") as raised:
        Checkpoint(tmp_path, "it").open_tokeniser()
    assert "\n" not in str(raised.value)
