"""Two models in one server: each API reaches each of them by name, and none other."""

import base64
from collections.abc import Callable, Iterator

import pytest

from server.errors import ServeError
from tests.support.clients.listen_client import LINEAR16, listening
from tests.support.clients.live_server import LiveServer, audio_file, error_code, instruct, live_server, tone, wait_until
from tests.support.clients.realtime_client import AUDIO, TRANSCRIPTION, realtime
from tests.support.clients.stream_client import pcm, streaming
from tests.support.fakes.named_engines import NamedModel

CLIP = audio_file(tone(0.5, 16_000), 16_000, "WAV")
FIRST, SECOND = NamedModel("first"), NamedModel("org/second")


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    with live_server([FIRST.source(), SECOND.source()]) as live:
        wait_until(lambda: live.client.get("/ready").status_code == 200)
        yield live


def native(server: LiveServer, name: str | None) -> None:
    fields = {} if name is None else {"model": name}
    assert instruct(server, CLIP, **fields).status_code == 200


def native_live(server: LiveServer, name: str | None) -> None:
    with streaming(server) as client:
        fields = {} if name is None else {"model": name}
        assert client.start(**fields)["type"] == "ready"
        client.socket.send(pcm(0.5))
        client.tell("end")
        client.events()


def openai_file(server: LiveServer, name: str | None) -> None:
    for task in ("transcriptions", "translations"):
        data = {} if name is None else {"model": name}
        assert server.client.post(f"/v1/audio/{task}", files={"file": ("a.wav", CLIP)}, data=data).status_code == 200


def openai_chat(server: LiveServer, name: str | None) -> None:
    audio = {"data": base64.b64encode(CLIP).decode(), "format": "wav"}
    content = [{"type": "text", "text": "Say it."}, {"type": "input_audio", "input_audio": audio}]
    body = {"messages": [{"role": "user", "content": content}]} | ({} if name is None else {"model": name})
    reply = server.client.post("/v1/chat/completions", json=body)
    assert reply.json()["model"] == (name or "first")


def openai_realtime_by_address(server: LiveServer, name: str | None) -> None:
    query = "?intent=transcription" + ("" if name is None else f"&model={name}")
    with realtime(server, query) as client:
        # An alias, which OpenAI's clients name by habit, does not take the choice back.
        client.update(transcription={"model": "gpt-4o-transcribe"}, turn_detection=None)
        client.append(pcm(1.0, 24_000))
        client.tell(f"{AUDIO}.commit")
        client.until(f"{TRANSCRIPTION}.completed")


def openai_realtime_by_update(server: LiveServer, name: str | None) -> None:
    with realtime(server) as client:
        client.update(transcription={} if name is None else {"model": name}, turn_detection=None)
        client.append(pcm(1.0, 24_000))
        client.tell(f"{AUDIO}.commit")
        client.until(f"{TRANSCRIPTION}.completed")


def vllm_realtime(server: LiveServer, name: str | None) -> None:
    with realtime(server, "") as client:
        client.tell("session.update", model=name or "whisper-1")
        client.tell(f"{AUDIO}.append", audio=base64.b64encode(pcm(1.0)).decode())
        client.tell(f"{AUDIO}.commit", final=True)
        while "transcription.done" not in str(client.socket.recv(20)):
            pass


def deepgram_file(server: LiveServer, name: str | None) -> None:
    reply = server.client.post(
        "/v1/listen", content=CLIP, params={"model": name or "nova-3"}, headers={"content-type": "audio/wav"}
    )
    (info,) = reply.json()["metadata"]["model_info"].values()
    assert info["name"] == (name or "nova-3")


def deepgram_live(server: LiveServer, name: str | None) -> None:
    with listening(server, {**LINEAR16, "model": name or "nova-3"}) as client:
        client.socket.send(pcm(1.0))
        client.finals(1)


DIALECTS = (
    *(native, native_live, openai_file, openai_chat, openai_realtime_by_address, openai_realtime_by_update, vllm_realtime),
    *(deepgram_file, deepgram_live),
)


@pytest.mark.parametrize("ask", DIALECTS)
@pytest.mark.parametrize(
    ("name", "asked", "other"), [("org/second", SECOND, FIRST), ("first", FIRST, SECOND), (None, FIRST, SECOND)]
)
def test_a_dialect_reaches_the_model_that_it_names(
    server: LiveServer, ask: Callable[[LiveServer, str | None], None], name: str | None, asked: NamedModel, other: NamedModel
) -> None:
    before = asked.calls, other.calls
    ask(server, name)
    assert asked.calls > before[0]
    assert other.calls == before[1]


def test_answers_are_the_models_own(server: LiveServer) -> None:
    assert instruct(server, CLIP).json()["text"] == "text of first"
    assert instruct(server, CLIP, model="org/second").json()["text"] == "text of org/second"
    assert instruct(server, CLIP, model="whisper-1").json()["text"] == "text of first"


def test_all_models_are_listed_and_shown(server: LiveServer) -> None:
    cards = {card["id"]: card for card in server.client.get("/v1/models").json()["data"]}
    assert list(cards)[:3] == ["first", "org/second", "whisper-1"]
    assert {name: card["root"] for name, card in cards.items() if name != "org/second"} == dict.fromkeys(
        [name for name in cards if name != "org/second"], "first"
    )
    shown = server.client.get("/v1/models/org/second").json()
    assert (shown["id"], shown["root"], shown["status"]) == ("org/second", "org/second", "ready")


def test_an_unknown_name_is_not_found_where_names_are_strict(server: LiveServer) -> None:
    response = instruct(server, CLIP, model="third")
    assert (response.status_code, error_code(response)) == (404, "model_not_found")
    assert "`third`" in response.json()["error"]["message"]
    response = server.client.post("/v1/audio/transcriptions", files={"file": ("a.wav", CLIP)}, data={"model": "third"})
    assert (response.status_code, response.json()["error"]["param"]) == (404, "model")
    with streaming(server) as client:
        client.tell("start", instruction="Transcribe.", model="third")
        assert client.fatal() == ("model_not_found", 1008)
    with realtime(server) as session:
        session.tell(
            "session.update", session={"type": "transcription", "audio": {"input": {"transcription": {"model": "third"}}}}
        )
        assert session.until("error")[-1]["error"]["code"] == "model_not_found"


def test_metrics_are_told_apart_by_model(server: LiveServer) -> None:
    instruct(server, CLIP, model="org/second")
    text = server.client.get("/metrics").text
    assert 'thinbridge_ready{model="first"} 1.0' in text
    assert 'thinbridge_ready{model="org/second"} 1.0' in text
    lines = [line for line in text.splitlines() if line.startswith("thinbridge_request_success_total")]
    assert {line.partition("model=")[2].partition("}")[0] for line in lines} == {'"first"', '"org/second"'}


def test_probes_tell_of_each_model(server: LiveServer) -> None:
    states = {"first": "ready", "org/second": "ready"}
    assert server.client.get("/health").json() == {"status": "ok", "models": states}
    assert server.client.get("/ready").json() == {"status": "ready", "models": states}
    assert server.client.get("/ready", params={"model": "org/second"}).status_code == 200
    assert server.client.get("/ready", params={"model": "third"}).status_code == 404


def test_two_models_of_one_name_are_refused() -> None:
    with (
        pytest.raises(ValueError, match="Two models have the name 'first'"),
        live_server([NamedModel("first").source(), NamedModel("first").source()]),
    ):
        pass


def test_a_model_that_cannot_start_leaves_the_other_serving() -> None:
    good, bad = NamedModel("good"), NamedModel("bad")

    def break_start(engine: object) -> None:
        engine.start_error = ServeError("broken")  # type: ignore[attr-defined]

    bad.configure = break_start
    with live_server([good.source(), bad.source()]) as server:
        wait_until(lambda: server.client.get("/ready").status_code == 200)
        wait_until(lambda: server.client.get("/ready", params={"model": "bad"}).status_code == 503)
        assert server.client.get("/health").json()["models"] == {"good": "ready", "bad": "failed"}
        assert instruct(server, CLIP).json()["text"] == "text of good"
        response = instruct(server, CLIP, model="bad")
        assert (response.status_code, error_code(response)) == (503, "not_ready")
