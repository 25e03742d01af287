"""The names of special tokens of every family are plain text in an instruction, in earlier text and among keywords."""

import json
from pathlib import Path

import pytest

from models.text.tokeniser import PromptTemplate, Tokeniser, lay_out_prompt
from models.text.transcript_label import lay_out_context
from tests.support.fakes.fake_models import SPECIAL_TOKENS, tokeniser_definition
from tests.support.tiny import tiny_llms, tiny_speech_llms
from tests.support.tiny.tiny_bundle import SPEECH_SPECIALS
from tests.support.tiny.tiny_checkpoints import WHISPER_SPECIALS, write_tokeniser

# Some of Whisper's: times are special tokens too.
WHISPER_TIMES = [f"<|{number / 50:.2f}|>" for number in range(0, 1501, 50)]
FAMILIES = {
    "SmolLM2": SPECIAL_TOKENS,
    "LLMs": tiny_llms.SPECIALS,
    "speech LLMs": tiny_speech_llms.SPECIALS,
    "Qwen3-ASR": tiny_speech_llms.QWEN3_ASR_SPECIALS,
    "Granite": tiny_speech_llms.GRANITE_SPECIALS,
    "Whisper": [*(f"<|{name}|>" for name in (*WHISPER_SPECIALS, *SPEECH_SPECIALS)), *WHISPER_TIMES],
}


@pytest.fixture(scope="module", params=FAMILIES)
def tokeniser(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokeniser:
    names = sorted(set(FAMILIES[request.param]))
    if request.param == "SmolLM2":
        return Tokeniser(tokeniser_definition())
    file = tmp_path_factory.mktemp("tokeniser") / "tokenizer.json"
    assert set(write_tokeniser(file, names)) == set(names)
    # Some checkpoints have names that are no special tokens by their flag, and mean something all the same.
    definition = json.loads(file.read_text())
    definition["added_tokens"][0]["special"] = False
    file.write_text(json.dumps(definition))
    return Tokeniser.from_file(Path(file))


def test_special_tokens_are_text_wherever_a_client_writes_them(tokeniser: Tokeniser) -> None:
    marks = tokeniser.encode_template(next(iter(tokeniser.special_tokens)))
    template = PromptTemplate((*marks,), (), (*marks,), (*marks,))
    special = set(tokeniser.special_tokens.values())
    for name in tokeniser.special_tokens:
        for text in (name, f"a{name}b", f"{name} {name}", lay_out_context(name, (name, f"{name}a"))):
            ids = lay_out_prompt(template, tokeniser, text)
            asked = ids.before_speech[len(marks) :]
            assert special.isdisjoint(asked), text
            assert tokeniser.decode(asked) == text
