"""Every hostile request gets a 4xx in the one shape, without internals of the server, and the server lives on."""

import random
import re
import time
from collections.abc import Iterator

import pytest

from tests.support.clients.live_server import LiveServer, audio_file, error_code, instruct, live_server, tone, wait_until
from tests.support.fakes.fake_engine import FakeEngine
from tests.support.inputs.hostile_audio import odd_wavs
from tests.support.inputs.hostile_inputs import AUDIO, INSTRUCTION, Case, form, hostile_cases, part

CASES = hostile_cases()
# A path, an address, or a trace of Python.
LEAK = re.compile(r"(?<!\w)/\w|\\|0x[0-9a-f]|Traceback|\.py\b|object at|Error\(|site-packages", re.IGNORECASE)
SLOW_S = 1.0
GOOD_CLIP = audio_file(tone(0.5, 16_000), 16_000, "FLAC", "PCM_16")


@pytest.fixture(scope="module")
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture(scope="module")
def server(engine: FakeEngine) -> Iterator[LiveServer]:
    with live_server(engine, max_audio_s=30.0) as live:
        wait_until(lambda: engine.stats().ready)
        yield live


def post(server: LiveServer, body: bytes, content_type: str) -> tuple[int, str]:
    """Return status and code of the answer, after checking its shape and that it leaks nothing."""
    headers = {"content-type": content_type} if content_type else {}
    started_s = time.perf_counter()
    response = server.client.post("/v1/instruct", content=body, headers=headers)
    if (took_s := time.perf_counter() - started_s) > SLOW_S:
        print(f"slow: {took_s:.2f} s")
    if response.status_code == 200:
        return 200, ""
    code = error_code(response)
    message = response.json()["error"]["message"]
    assert not LEAK.search(message), message
    assert message.endswith(".")
    return response.status_code, code


def test_there_are_enough_cases_and_each_has_its_own_name() -> None:
    assert len(CASES) >= 200
    assert len({name for name, _, _ in CASES}) == len(CASES)


@pytest.mark.parametrize("case", CASES, ids=[name for name, _, _ in CASES])
def test_hostile_input_is_refused(server: LiveServer, engine: FakeEngine, case: Case) -> None:
    _, body, content_type = case
    submitted = len(engine.submitted)
    status, _ = post(server, body, content_type)
    assert status in {400, 413, 415}
    assert len(engine.submitted) == submitted


@pytest.mark.parametrize(("name", "data"), list(odd_wavs()), ids=[name for name, _ in odd_wavs()])
def test_an_odd_header_is_no_reason_to_refuse_samples(server: LiveServer, name: str, data: bytes) -> None:
    status, _ = post(server, form(part("audio", data, filename=name), INSTRUCTION), "multipart/form-data; boundary=b")
    assert status == 200


@pytest.mark.parametrize(
    ("container", "subtype"), [("WAV", "PCM_16"), ("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", None)]
)
def test_mutated_files_are_answered_or_refused(server: LiveServer, container: str, subtype: str | None) -> None:
    dice = random.Random(container)
    original = audio_file(tone(0.5, 16_000), 16_000, container, subtype)
    for _ in range(40):
        mutant = bytearray(original)
        for _ in range(dice.randint(1, 30)):
            mutant[dice.randrange(min(len(mutant), dice.choice([64, 10**6])))] = dice.randrange(256)
        data = bytes(mutant[: dice.choice([len(mutant), dice.randrange(len(mutant))])])
        status, _ = post(server, form(part("audio", data, filename="x"), INSTRUCTION), "multipart/form-data; boundary=b")
        assert status in {200, 400, 413, 415}


@pytest.mark.parametrize(
    "filename", ["../../etc/passwd", "a\0b", "\u202egpj.wav", "", "x" * 1000, "C:\\windows\\system32", "a.exe"]
)
def test_the_file_name_means_nothing(server: LiveServer, filename: str) -> None:
    status, _ = post(server, form(part("audio", GOOD_CLIP, filename=filename), INSTRUCTION), "multipart/form-data; boundary=b")
    assert status == 200


@pytest.mark.parametrize(
    "path",
    [
        "/..%2f..%2fetc%2fpasswd",
        "/%00",
        "/v1/instruct/..",
        "/v1//instruct",
        "/V1/INSTRUCT",
        "/" + "a" * 5000,
        "/.git/config",
        "/page.html",
    ],
)
def test_other_addresses_hold_nothing(server: LiveServer, path: str) -> None:
    response = server.client.get(path)
    assert (response.status_code, error_code(response)) in {(404, "not_found"), (405, "method_not_allowed")}


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
def test_other_methods_are_refused(server: LiveServer, method: str) -> None:
    response = server.client.request(method, "/v1/instruct")
    assert (response.status_code, error_code(response)) == (405, "method_not_allowed")


def test_the_server_is_alive_afterwards_with_the_same_decoder(server: LiveServer) -> None:
    assert instruct(server, GOOD_CLIP).status_code == 200
    metrics = server.client.get("/metrics").text
    assert "thinbridge_decode_worker_restarts_total 0.0" in metrics
    assert "thinbridge_instruct_in_flight 0.0" in metrics


def test_a_good_request_in_the_same_clothes_is_answered(server: LiveServer) -> None:
    assert post(server, form(AUDIO, INSTRUCTION), "multipart/form-data; boundary=b") == (200, "")
