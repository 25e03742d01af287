"""Models are loaded, unloaded and woken while others answer."""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from models.protocols import BackendError
from server.registry.registry import ModelSource
from tests.support.clients.live_server import LiveServer, audio_file, error_code, instruct, live_server, tone, wait_until
from tests.support.clients.stream_client import pcm, streaming
from tests.support.fakes.fake_engine import FakeEngine
from tests.support.fakes.named_engines import NamedModel

CLIP = audio_file(tone(0.5, 16_000), 16_000, "WAV")
KEY, ADMIN_KEY = "0123456789abcdef-user", "0123456789abcdef-admin"


@pytest.fixture
def first() -> NamedModel:
    return NamedModel("first")


@pytest.fixture
def second() -> NamedModel:
    return NamedModel("second")


@contextlib.contextmanager
def serving(first: NamedModel, *installed: NamedModel, **settings: Any) -> Iterator[LiveServer]:
    """Serve the first model; the others are installed on the machine."""

    def catalogue(name: str) -> ModelSource:
        for model in installed:
            if model.name == name:
                return model.source()
        raise LookupError

    with live_server([first.source()], catalogue, **settings) as server:
        wait_until(lambda: server.client.get("/ready").status_code == 200)
        yield server


def load(server: LiveServer, name: str, **options: Any) -> httpx.Response:
    return server.client.post(f"/v1/models/{name}/load", **options)


def unload(server: LiveServer, name: str, **options: Any) -> httpx.Response:
    return server.client.post(f"/v1/models/{name}/unload", **options)


def states(server: LiveServer) -> dict[str, str]:
    found: dict[str, str] = server.client.get("/health").json()["models"]
    return found


def in_background(server: LiveServer, **fields: str) -> tuple[threading.Thread, list[httpx.Response]]:
    """Send one request; its response is in the list once the thread has ended."""
    replies: list[httpx.Response] = []

    def send() -> None:
        with httpx.Client(base_url=server.url, timeout=30.0, trust_env=False) as client:
            data = {"instruction": "Transcribe.", **fields}
            replies.append(client.post("/v1/instruct", files={"audio": ("clip", CLIP)}, data=data))

    thread = threading.Thread(target=send)
    thread.start()
    return thread, replies


def test_an_installed_model_is_loaded_and_unloaded(first: NamedModel, second: NamedModel) -> None:
    with serving(first, second) as server:
        assert instruct(server, CLIP, model="second").status_code == 404
        assert load(server, "second").json()["status"] == "ready"
        assert instruct(server, CLIP, model="second").json()["text"] == "text of second"
        assert load(server, "second").json()["status"] == "ready"
        assert unload(server, "second").json()["status"] == "unloaded"
        assert second.engine.drained
        response = instruct(server, CLIP, model="second")
        assert (response.status_code, error_code(response)) == (503, "model_not_loaded")
        assert 'model="second"' not in server.client.get("/metrics").text.partition("# HELP thinbridge_slots")[0]
        assert load(server, "second").status_code == 200
        assert instruct(server, CLIP, model="second").json()["text"] == "text of second"
        # Loading verified the files anew.
        assert len(second.engines) == 2
        assert instruct(server, CLIP).json()["text"] == "text of first"


def test_counters_go_on_after_a_model_is_loaded_again(first: NamedModel) -> None:
    with serving(first) as server:
        for _ in range(2):
            assert instruct(server, CLIP).status_code == 200
            assert unload(server, "first").status_code == 200
            assert load(server, "first").status_code == 200
        assert 'thinbridge_engine_steps_total{model="first"} 2.0' in server.client.get("/metrics").text


def test_while_a_model_loads_others_answer_and_it_is_not_ready(first: NamedModel, second: NamedModel) -> None:
    second.configure = lambda engine: engine.may_start.clear()
    with serving(first, second) as server:
        loading = threading.Thread(target=lambda: httpx.post(f"{server.url}/v1/models/second/load", timeout=30, trust_env=False))
        loading.start()
        wait_until(lambda: states(server).get("second") == "loading")
        assert instruct(server, CLIP).status_code == 200
        assert server.client.get("/ready").status_code == 200
        response = instruct(server, CLIP, model="second")
        assert (response.status_code, error_code(response)) == (503, "not_ready")
        assert "retry-after" in response.headers
        second.engine.may_start.set()
        loading.join(20)
        assert instruct(server, CLIP, model="second").status_code == 200


def test_a_load_that_fails_says_why_and_leaves_the_rest_serving(first: NamedModel, second: NamedModel) -> None:
    def break_start(engine: FakeEngine) -> None:
        engine.start_error = BackendError("There is no such GPU.")

    second.configure = break_start
    with serving(first, second) as server:
        response = load(server, "second")
        assert (response.status_code, error_code(response)) == (500, "model_load_failed")
        assert response.json()["error"]["message"] == "The model `second` could not be loaded: There is no such GPU."
        assert list(states(server)) == ["first"]
        second.build_error = BackendError("There is too little memory.")
        assert "There is too little memory." in load(server, "second").json()["error"]["message"]
        second.build_error = RuntimeError("secret")
        assert "secret" not in load(server, "second").text
        assert instruct(server, CLIP).status_code == 200
        response = load(server, "third")
        assert (response.status_code, error_code(response)) == (404, "model_not_found")
        assert unload(server, "third").status_code == 404


def test_unloading_lets_requests_finish(first: NamedModel, second: NamedModel) -> None:
    second.configure = lambda engine: engine.gate.clear()
    with serving(first, second, drain_timeout_s=20) as server:
        load(server, "second")
        thread, replies = in_background(server, model="second")
        wait_until(lambda: second.engine.pending == 1)
        unloading = threading.Thread(
            target=lambda: httpx.post(f"{server.url}/v1/models/second/unload", timeout=30, trust_env=False)
        )
        unloading.start()
        wait_until(lambda: states(server)["second"] == "unloading")
        assert instruct(server, CLIP, model="second").status_code == 503
        assert not second.engine.drained
        second.engine.gate.set()
        thread.join(20)
        assert replies[0].json()["text"] == "text of second"
        unloading.join(20)
        assert states(server) == {"first": "ready", "second": "unloaded"}


def test_unloading_ends_live_sessions_with_their_answers(first: NamedModel, second: NamedModel) -> None:
    with serving(first, second) as server, streaming(server) as mine, streaming(server) as other:
        load(server, "second")
        mine.start(model="second")
        other.start()
        mine.socket.send(pcm(0.5))
        wait_until(lambda: second.calls == 1)
        assert unload(server, "second").status_code == 200
        events, close = mine.events()
        assert "final" in [event["type"] for event in events]
        assert (events[-1]["type"], events[-1]["error"]["code"], close.code) == ("error", "model_not_loaded", 1012)
        other.socket.send(pcm(0.5))
        other.tell("end")
        events, close = other.events()
        assert close.code == 1000


def test_an_idle_model_is_unloaded_and_woken_by_the_next_request(first: NamedModel) -> None:
    with serving(first, model_idle_timeout_s=0.2) as server:
        assert instruct(server, CLIP).status_code == 200
        wait_until(lambda: states(server)["first"] == "idle")
        wait_until(lambda: first.engine.drained)
        built = len(first.engines)
        # It takes requests, although it is not in memory.
        assert server.client.get("/ready").status_code == 200
        first.configure = lambda engine: engine.may_start.clear()
        threads = [in_background(server) for _ in range(3)]
        wait_until(lambda: states(server)["first"] == "waking" and len(first.engines) == built + 1)
        first.configure = lambda _engine: None
        first.engine.may_start.set()
        for thread, replies in threads:
            thread.join(20)
            assert replies[0].json()["text"] == "text of first"
        assert sum(len(engine.submitted) for engine in first.engines[built:]) == 3


def test_a_live_session_keeps_its_model_and_wakes_it(first: NamedModel) -> None:
    with serving(first, model_idle_timeout_s=0.2) as server:
        wait_until(lambda: states(server)["first"] == "idle")
        with streaming(server) as client:
            assert client.start()["type"] == "ready"
            assert states(server)["first"] == "ready"
            assert len(first.engine.sessions) == 1
            client.tell("end")
            client.events()
        wait_until(lambda: states(server)["first"] == "idle")


def test_a_wake_that_fails_is_tried_again_by_the_next_request(first: NamedModel) -> None:
    with serving(first, model_idle_timeout_s=0.2) as server:
        wait_until(lambda: states(server)["first"] == "idle")
        first.build_error = BackendError("There is too little memory.")
        response = instruct(server, CLIP)
        assert (response.status_code, error_code(response)) == (500, "model_load_failed")
        first.build_error = None
        assert instruct(server, CLIP).json()["text"] == "text of first"


def test_a_server_that_stops_while_a_model_loads_stops_its_engine(first: NamedModel) -> None:
    first.configure = lambda engine: engine.may_start.clear()
    with live_server([first.source()]) as server:
        assert states(server) == {"first": "loading"}
    assert first.engine.drained
    first.engine.may_start.set()


def test_only_an_admin_key_loads_models(first: NamedModel, second: NamedModel, tmp_path: Any) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"user:{KEY} requests_per_minute=1000\noperator:{ADMIN_KEY} admin\n")
    bearer = {key: {"authorization": f"Bearer {key}"} for key in (KEY, ADMIN_KEY)}

    def catalogue(_name: str) -> ModelSource:
        return second.source()

    with live_server([first.source()], catalogue, api_keys_file=keys) as server:
        wait_until(lambda: server.client.get("/ready").status_code == 200)
        # Probes have no key, so they tell no names.
        assert server.client.get("/health").json() == {"status": "ok"}
        assert load(server, "second").status_code == 401
        for act in (load, unload):
            response = act(server, "second", headers=bearer[KEY])
            assert (response.status_code, error_code(response)) == (403, "admin_required")
        assert load(server, "second", headers=bearer[ADMIN_KEY]).status_code == 200
        assert unload(server, "second", headers=bearer[ADMIN_KEY]).status_code == 200


def test_without_keys_only_this_machine_loads_models(first: NamedModel, second: NamedModel) -> None:
    with serving(first, second) as server:
        for header in ("x-forwarded-for", "forwarded", "x-real-ip"):
            response = load(server, "second", headers={header: "for=192.0.2.1" if header == "forwarded" else "192.0.2.1"})
            assert (response.status_code, error_code(response)) == (403, "admin_required")
        assert load(server, "second").status_code == 200
