"""A Parakeet with its CTC head as a model of its own: over HTTP, live, in OpenAI's dialect, and what it refuses."""

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export.store import Store
from models.bundle.io import open_bundle
from models.bundle.schema import BundleDescription
from models.chain import Models
from server.engine.engine import LocalEngine
from server.engine.runner.runner import Runner
from server.engine.runner.sequence_builder import new_sequence
from server.engine.types.options import Constraint, SamplingOptions
from server.engine.types.requests import InstructRequest, SpeechTask
from server.errors import InvalidRequest
from server.model_commands import describe_bundle
from tests.export.checkpoints.conftest import Pull
from tests.support.broken_checkpoints import check_refusal, edit_config
from tests.support.clients.live_server import LiveServer, audio_file, error_code, instruct, live_server, wait_until
from tests.support.clients.live_utterance import AnySoundIsVoice
from tests.support.clients.openai_client import openai_client
from tests.support.clients.runner_client import run
from tests.support.clients.stream_client import streaming
from tests.support.tiny.tiny_speech_llms import write_parakeet_ctc

RATE_HZ = 16_000
ASKED = "Transcribe the speech to text."
AUDIO = np.random.default_rng(5).normal(0, 0.1, 40_000).astype(np.float32)
CLIP = audio_file(AUDIO, RATE_HZ, "WAV", "FLOAT")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parakeet") / "twin"
    write_parakeet_ctc(folder)
    return folder


@pytest.fixture(scope="module")
def models(folder: Path, pull: Pull) -> Models:
    return pull(folder, "parakeet-twin")


@pytest.fixture(scope="module")
def server(models: Models) -> Iterator[LiveServer]:
    engine = LocalEngine(replace(models, voice=AnySoundIsVoice()), RATE_HZ, 30.0, queue_limit=4)
    with live_server(engine) as server:
        wait_until(lambda: server.client.get("/ready").status_code == 200)
        yield server


@pytest.fixture(scope="module")
def text(models: Models) -> str:
    """The whole text of the audio."""
    _, answer = run(Runner(models), InstructRequest("1", AUDIO, SpeechTask(ASKED)))
    assert len(answer.text.split()) > 1
    return answer.text


def test_it_answers_over_http_with_the_times_of_words(server: LiveServer, text: str) -> None:
    reply = instruct(server, CLIP, ASKED, timestamps="words", logprobs="2").json()
    assert (reply["text"], reply["finish_reason"]) == (text, "stop")
    assert " ".join(word["word"] for word in reply["words"]).split() == text.split()
    assert reply["speculation"]["llm_passes"] == 0
    assert len(reply["logprobs"]) > 1


def test_a_stream_of_events_ends_with_the_same_text(server: LiveServer, text: str) -> None:
    events = instruct(server, CLIP, ASKED, stream="true").text.strip().split("\n\n")
    *deltas, done = [json.loads(event.removeprefix("data: ")) for event in events]
    assert "".join(delta["delta"] for delta in deltas) == done["text"] == text


def test_openai_clients_get_the_same_text(server: LiveServer, text: str) -> None:
    given: dict[str, Any] = {"model": "whisper-1", "file": ("a.wav", CLIP), "language": "en"}
    with openai_client(server.url) as client:
        plain: Any = client.audio.transcriptions.create(**given, include=["logprobs"])
        verbose: Any = client.audio.transcriptions.create(
            **given, response_format="verbose_json", timestamp_granularities=["word", "segment"]
        )
    assert plain.text == verbose.text == text
    assert plain.logprobs
    assert [word.word for word in verbose.words]


def test_a_live_session_has_an_answer_with_words(server: LiveServer) -> None:
    spoken = np.concatenate([AUDIO, np.zeros(RATE_HZ, np.float32)])
    pcm = (spoken * 32767).astype("<i2").tobytes()
    with streaming(server) as client:
        client.start(ASKED, sample_rate_hz=RATE_HZ, words=True)
        for start in range(0, len(pcm), RATE_HZ):
            client.say(pcm[start : start + RATE_HZ])
        client.tell("end")
        events, close = client.events()
    assert close.code == 1000
    (answer,) = [event for event in events if event["type"] == "final"]
    assert answer["text"]
    assert " ".join(word["word"] for word in answer["words"]).split() == answer["text"].split()


@pytest.mark.parametrize(
    ("fields", "param", "expected"),
    [
        ({"instruction": "Who speaks?"}, "instruction", "has no LLM: it transcribes ('Transcribe the speech to text.')"),
        ({"temperature": "0.5"}, "temperature", "has no decoder, and draws no tokens: temperature has to be 0"),
        ({"presence_penalty": "1"}, "presence_penalty", "presence_penalty has to be 0"),
        ({"repetition_penalty": "1.5"}, "repetition_penalty", "repetition_penalty has to be 1"),
        ({"language": "de"}, "language", "does not know the language 'de'"),
        ({"prompt": "Kisumu"}, "prompt", "does not take a prompt"),
        ({"keywords": '["Kisumu"]'}, "keywords", "does not take keywords"),
    ],
)
def test_what_it_cannot_do_is_refused(server: LiveServer, fields: dict[str, str], param: str, expected: str) -> None:
    reply = instruct(server, CLIP, **{"instruction": ASKED, **fields})
    assert reply.status_code == 400
    error_code(reply)
    error = reply.json()["error"]
    assert error["param"] == param
    assert expected in error["message"]


def test_a_pattern_is_refused(models: Models) -> None:
    asked = InstructRequest("1", AUDIO, SpeechTask(ASKED, SamplingOptions(constraint=Constraint("regex", "a+"))))
    with pytest.raises(InvalidRequest, match="has no LLM, which regex needs"):
        new_sequence(models, asked, lambda _event: None)


def test_a_translation_is_refused_by_the_field_that_asked_for_it(server: LiveServer) -> None:
    sent = {"model": "whisper-1", "to_language": "fr"}
    reply = server.client.post("/v1/audio/translations", files={"file": ("a.wav", CLIP)}, data=sent)
    assert reply.status_code == 400
    assert reply.json()["error"]["param"] == "to_language"


def test_an_answer_ends_at_its_longest_and_at_a_stop_string(models: Models, text: str) -> None:
    runner = Runner(models)
    _, answer = run(runner, InstructRequest("1", AUDIO, SpeechTask(ASKED, SamplingOptions(max_tokens=3))))
    assert (len(answer.tokens), answer.finish_reason) == (3, "length")
    assert text.startswith(answer.text)
    stop = text.split()[1]
    _, stopped = run(runner, InstructRequest("2", AUDIO, SpeechTask(ASKED, SamplingOptions(stop=(stop,)))))
    assert (stopped.text, stopped.finish_reason) == (text[: text.index(stop)].rstrip(), "stop")


def test_likelihoods_are_those_of_the_head(models: Models) -> None:
    sequence, _ = run(Runner(models), InstructRequest("1", AUDIO, SpeechTask(ASKED, SamplingOptions(logprobs=20))))
    for token, known in zip(sequence.tokens, sequence.logprobs, strict=True):
        assert known.bytes == models.tokeniser.token_bytes(token)
        assert known.top[0][1] == pytest.approx(known.logprob, abs=1e-5)
        assert sum(math.exp(logprob) for _, logprob in known.top) <= 1 + 1e-5


def test_silence_is_answered_with_no_speech(models: Models) -> None:
    blank = replace(models, projector=_AllBlank(models))
    _, answer = run(Runner(blank), InstructRequest("1", AUDIO, SpeechTask(ASKED)))
    assert (answer.text, answer.finish_reason) == ("", "no_speech")


class _AllBlank:
    """A head for which every frame is blank."""

    def __init__(self, models: Models) -> None:
        self._head = models.projector
        self.boundary_before, self.boundary_after = self._head.boundary_before, self._head.boundary_after

    def project(self, states: Any) -> Any:
        outputs = self._head.project(states)
        for output in outputs:
            output.require_draft().best_token[:] = -1
        return outputs


@pytest.mark.usefixtures("models")
def test_the_bundle_is_described_and_needs_its_head(store: Store) -> None:
    bundle = open_bundle(store.require("parakeet-twin").resolve())
    shown = "\n".join(describe_bundle(bundle))
    for part in ("ctc head  fp32, ", "tokens, writes the transcript", "none: it transcribes", "0.0 MB a slot", "cc-by-4.0"):
        assert part in shown
    described = json.loads(bundle.manifest.model_dump_json(exclude={"files"}))
    with pytest.raises(ValueError, match="nor a projector that writes transcripts"):
        BundleDescription.model_validate_json(json.dumps({**described, "projector": None}))
    described["projector"] |= {"architecture": "linear", "embedding_size": 1, "vocabulary": "own"}
    for name in ("tokeniser", "vocabulary_size", "languages"):
        del described["projector"][name]
    with pytest.raises(ValueError, match="nor a projector that writes transcripts"):
        BundleDescription.model_validate_json(json.dumps(described))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"pad_token_id": 0}, "has the blank 0 of "),
        ({"pad_token_id": None}, "has no pad_token_id in its config.json"),
        ({"encoder_config": None}, "has no encoder_config in its config.json"),
    ],
)
def test_a_head_of_another_kind_is_refused(
    change: dict[str, Any], expected: str, folder: Path, tmp_path: Path, pull: Pull
) -> None:
    def damage(copy: Path) -> None:
        edit_config(copy, lambda config: config.update(change))

    check_refusal(folder, tmp_path / "parakeet", damage, expected, lambda broken: pull(broken, "broken"))


@pytest.mark.parametrize("kind", ["parakeet_rnnt", "parakeet_tdt"])
def test_transducers_are_refused(kind: str, folder: Path, tmp_path: Path, pull: Pull) -> None:
    def damage(copy: Path) -> None:
        edit_config(copy, lambda config: config.update(model_type=kind))

    expected = f"is an encoder ({kind}), and the text that its own head writes is not served"
    check_refusal(folder, tmp_path / "parakeet", damage, expected, lambda broken: pull(broken, "broken"))
