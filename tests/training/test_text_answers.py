"""Answers to texts do not depend on which are asked together, and are those that the engine gives to the same prompt."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from models.bundle.io import open_bundle
from models.runtimes.onnx.decoder import OnnxLLM
from models.text.tokeniser import PromptTemplate, Tokeniser
from tests.support.tiny.tiny_bundle import write_transcribing_bundle
from training.spoken_requests.request import SpokenRequest, write_requests
from training.text_answers import TextAnswerer, main

SCHEMA = {"type": "object", "properties": {"a": {"enum": ["b", "c"]}}, "required": ["a"], "additionalProperties": False}


def request(number: int, schema: dict[str, object] | None = None) -> SpokenRequest:
    return SpokenRequest(
        id=f"r{number}",
        half="reported",
        kind="fact",
        text="hear " * (number + 1),
        language="en",
        instruction="Say it.",
        expected=[],
        options=[],
        slots={},
        is_choice=False,
        json_schema=schema,
        recording=None,
        voice=None,
        speed=1.0,
        seed=0,
        audio="",
    )


CHOICE = replace(request(5), options=["hear", "here"], is_choice=True)
REQUESTS = [*map(request, range(4)), request(4, SCHEMA), CHOICE]
TEXTS = {each.id: each.text for each in REQUESTS}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle")
    write_transcribing_bundle(folder, "int8")
    return folder


def answerer(folder: Path, slots: int) -> TextAnswerer:
    bundle = open_bundle(folder)
    section = bundle.manifest.require_llm()
    llm = OnnxLLM(bundle.path(section.graph), bundle.path(section.embedding), slots=slots, threads=1)
    template = PromptTemplate.from_json(bundle.manifest.require_prompt().model_dump())
    return TextAnswerer(llm, Tokeniser.from_file(bundle.path(section.tokeniser)), template)


def test_answers_asked_together_are_those_asked_alone(folder: Path) -> None:
    alone = answerer(folder, 1)
    one_by_one = {each.id: dict(alone.answer([each], TEXTS, 12))[each.id] for each in REQUESTS}
    assert dict(answerer(folder, 3).answer(REQUESTS, TEXTS, 12)) == one_by_one
    assert json.loads(one_by_one["r4"])["a"] in ("b", "c")
    assert one_by_one["r5"] in CHOICE.options


def test_the_command_writes_answers_by_id(folder: Path, tmp_path: Path) -> None:
    write_requests(tmp_path / "requests.jsonl", REQUESTS)
    (tmp_path / "texts.json").write_text(json.dumps({"r1": "hear", "r4": "hear"}))
    files = ["--requests", str(tmp_path / "requests.jsonl"), "--texts", str(tmp_path / "texts.json")]
    main(["--bundle", str(folder), *files, "--out", str(tmp_path / "out.json"), "--after-instruction", "\n"])
    assert set(json.loads((tmp_path / "out.json").read_text())) == {"r1", "r4"}
