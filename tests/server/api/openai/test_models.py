"""`/v1/models`: the model's own name, and those that clients may use for it."""

import openai
import pytest
from openai import OpenAI

from tests.support.clients.live_server import live_server
from tests.support.fakes.fake_engine import FakeEngine

ALIASES = ["whisper-1", "gpt-4o-transcribe", "gpt-4o-mini-transcribe", "gpt-transcribe"]


def test_the_model_is_listed_under_all_its_names(client: OpenAI) -> None:
    listed = client.models.list().data
    assert [model.id for model in listed] == ["fake-model", *ALIASES]
    assert all(client.models.retrieve(model.id) == model for model in listed)


def test_another_name_is_not_found(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as error:
        client.models.retrieve("org/other")
    assert (error.value.code, error.value.param, "`org/other`" in error.value.message) == ("model_not_found", "model", True)


def test_the_aliases_are_a_setting() -> None:
    with live_server(FakeEngine(), model_aliases="") as server:
        assert [each["id"] for each in server.client.get("/v1/models").json()["data"]] == ["fake-model"]
    with live_server(FakeEngine(), model_aliases="org/speech,b") as server:
        assert server.client.get("/v1/models/org/speech").json()["root"] == "fake-model"


def test_head_tells_whether_there_is_a_model(client: OpenAI) -> None:
    paths = ["/models", "/models/whisper-1", "/models/org/other"]
    answers = [client._client.head(f"{client.base_url}{path.removeprefix('/')}") for path in paths]
    assert [(answer.status_code, answer.content) for answer in answers] == [(200, b""), (200, b""), (404, b"")]
