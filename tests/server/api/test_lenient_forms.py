"""Forms as different clients send them: names of the audio, file names, lists, and truth values."""

import base64
import gzip
import json
from http.client import HTTPConnection
from urllib.parse import urlsplit

import pytest

from tests.support.clients.live_server import LiveServer, audio_file, error_code, tone
from tests.support.fakes.fake_engine import FakeEngine
from tests.support.inputs.hostile_inputs import FORM_TYPE, form, part

CLIP = audio_file(tone(1.0, 16_000), 16_000, "WAV")
AUDIO = part("audio", CLIP, filename="a.wav")
INSTRUCTION = part("instruction", b"Transcribe.")


@pytest.mark.parametrize(
    "parts",
    [
        [part("audio", CLIP), INSTRUCTION],
        [part("file", CLIP, filename="a"), INSTRUCTION],
        [part("file", CLIP), INSTRUCTION],
        [AUDIO, part("instruction", b"Transcribe.", filename="instruction.txt")],
    ],
    ids=["audio without a file name", "file", "file without a file name", "text as a file"],
)
def test_the_parts_are_taken_by_their_names(server: LiveServer, engine: FakeEngine, parts: list[bytes]) -> None:
    response = server.client.post("/v1/instruct", content=form(*parts), headers={"content-type": FORM_TYPE})
    assert (response.status_code, response.json()["text"]) == (200, "hello world")
    assert (engine.submitted[-1].task.instruction, len(engine.submitted[-1].audio)) == ("Transcribe.", 16_000)


@pytest.mark.parametrize(
    ("names", "stop"),
    [
        (["stop[]"], ("a",)),
        (["stop[]", "stop[]"], ("a", "b")),
        (["stop", "stop"], ("a", "b")),
        (["stop", "stop[]"], ("a", "b")),
        (["stop[0]", "stop[1]"], ("a", "b")),
    ],
)
def test_a_list_may_come_as_several_parts(
    server: LiveServer, engine: FakeEngine, names: list[str], stop: tuple[str, ...]
) -> None:
    items = [part(name, item) for name, item in zip(names, (b"a", b"b"), strict=False)]
    body = form(AUDIO, INSTRUCTION, *items)
    response = server.client.post("/v1/instruct", content=body, headers={"content-type": FORM_TYPE})
    assert response.status_code == 200
    assert engine.submitted[-1].task.sampling.stop == stop


@pytest.mark.parametrize("text", ["True", "TRUE", "true"])
def test_truth_values_have_any_case(server: LiveServer, text: str) -> None:
    files, fields = {"audio": ("clip", CLIP)}, {"instruction": "Transcribe.", "stream": text}
    assert server.client.post("/v1/instruct", files=files, data=fields).text.startswith("data: ")


@pytest.mark.parametrize(
    "text",
    [
        "speech.wav",
        "./my speech.m4a",
        "C:\\sounds\\a.mp3",
        "@speech.wav",
        "https://example.org/a.wav",
        base64.b64encode(CLIP).decode(),
    ],
    ids=["name", "path", "Windows", "at", "address", "base64"],
)
def test_text_in_place_of_a_file_is_told(server: LiveServer, text: str) -> None:
    """`curl -F audio=speech.wav` lacks an @."""
    content = form(part("audio", text.encode()), INSTRUCTION)
    response = server.client.post("/v1/instruct", content=content, headers={"content-type": FORM_TYPE})
    assert error_code(response) == "undecodable_audio"
    assert "The audio is text" in response.json()["error"]["message"]


def test_options_in_the_address_are_refused(server: LiveServer, engine: FakeEngine) -> None:
    files, fields = {"audio": ("clip", CLIP)}, {"instruction": "Transcribe."}
    response = server.client.post("/v1/instruct?max_tokens=3", files=files, data=fields)
    assert (error_code(response), response.json()["error"]["param"]) == ("unknown_field", "max_tokens")
    assert engine.submitted == []


def test_an_unknown_field_is_still_refused(server: LiveServer) -> None:
    files, fields = {"audio": ("clip", CLIP)}, {"instruction": "Transcribe.", "modle": "x"}
    assert error_code(server.client.post("/v1/instruct", files=files, data=fields)) == "unknown_field"


def test_a_number_is_no_key_of_a_field_that_is_no_list(server: LiveServer) -> None:
    body = form(AUDIO, INSTRUCTION, part("seed[0]", b"1"))
    response = server.client.post("/v1/instruct", content=body, headers={"content-type": FORM_TYPE})
    assert (response.status_code, error_code(response)) == (400, "unknown_field")


def test_a_compressed_body_is_refused_by_its_cause(server: LiveServer, engine: FakeEngine) -> None:
    asked = len(engine.submitted)
    headers = {"content-type": FORM_TYPE, "content-encoding": "gzip"}
    response = server.client.post("/v1/instruct", content=gzip.compress(form(AUDIO, INSTRUCTION)), headers=headers)
    assert (response.status_code, error_code(response)) == (400, "invalid_request")
    assert "Content-Encoding" in response.json()["error"]["message"]
    assert len(engine.submitted) == asked
    response = server.client.post(
        "/v1/instruct", content=form(AUDIO, INSTRUCTION), headers={**headers, "content-encoding": "Identity"}
    )
    assert response.status_code == 200


def test_a_body_in_another_transfer_coding_is_refused_by_its_cause(server: LiveServer) -> None:
    headers = {"content-type": FORM_TYPE, "transfer-encoding": "gzip, chunked"}
    connection = HTTPConnection(urlsplit(server.url).netloc)
    connection.request("POST", "/v1/instruct", gzip.compress(form(AUDIO, INSTRUCTION)), headers, encode_chunked=True)
    response = connection.getresponse()
    assert response.status == 400
    assert "Transfer-Encoding" in json.load(response)["error"]["message"]
    connection.close()
