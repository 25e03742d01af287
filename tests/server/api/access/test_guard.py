"""Every route, also one that is added later, refuses callers that it should not have; the right ones get in."""

import contextlib
import socket
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import httpx
import pytest
from fastapi.routing import APIRoute, APIWebSocketRoute
from websockets.sync.client import connect

from server.api.app import create_app
from server.settings import Settings
from tests.support.clients.live_server import (
    LiveServer,
    audio_file,
    error_code,
    fixed_source,
    instruct,
    live_server,
    scripted_engine_server,
    tone,
    wait_until,
)
from tests.support.clients.routes import routes_of
from tests.support.fakes.fake_engine import FakeEngine

KEY, OTHER_KEY = "first-key-0123456789", "second-key-0123456789"
CLIP = audio_file(tone(0.6, 16_000), 16_000, "FLAC", "PCM_16")
BEARER = {"authorization": f"Bearer {KEY}"}
APP = create_app([fixed_source(FakeEngine())], Settings())
ROUTES = routes_of(APP)
HTTP_ROUTES = sorted(
    {(method, route.path) for route in ROUTES if isinstance(route, APIRoute) for method in (route.methods or set()) - {"HEAD"}}
    | {("GET", "/openapi.json"), ("GET", "/nothing"), ("POST", "/v1/later")}
)
SOCKET_ROUTES = sorted({route.path for route in ROUTES if isinstance(route, APIWebSocketRoute)} | {"/v1/later"})
UPGRADE = {
    "connection": "Upgrade",
    "upgrade": "websocket",
    "sec-websocket-version": "13",
    "sec-websocket-key": "AAAAAAAAAAAAAAAAAAAAAA==",
}
PROBES = ("/health", "/ready")
WRONG = [
    {"authorization": "Bearer wrong-key-0123456789"},
    {"authorization": KEY},
    {"authorization": f"Basic {KEY}"},
    {"authorization": "Bearer"},
    {"authorization": f"Bearer {KEY[:-1]}"},
    {"authorization": f"Bearer {KEY}x"},
    {"x-api-key": "\xe9" * 20},
    {"api-key": ""},
    {"x-forwarded-for": "127.0.0.1"},
    {"cookie": f"key={KEY}"},
]
FOREIGN_ORIGINS = ["http://evil.example", "null", "http://127.0.0.1", "https://127.0.0.1:1", "file://", "http://["]
FOREIGN_HOSTS = [
    "evil.example",
    "evil.example:{port}",
    "127.0.0.1.evil.example",
    "localhost.evil.example",
    "[::1",
    "a b",
    "[evil]",
]


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    with scripted_engine_server(api_keys=f"{KEY}, robot:{OTHER_KEY}", public_page=False) as (_, live):
        yield live


def refused_socket(server: LiveServer, path: str, **headers: str) -> tuple[int, str]:
    """Return status and error code of the reply in place of a WebSocket."""
    refused = server.client.get(path, headers={**UPGRADE, **headers})
    body = refused.json()
    return refused.status_code, body.get("error", {}).get("code") or body["err_code"].lower()


def code_of(response: httpx.Response) -> str:
    body = response.json()
    return error_code(response) if "error" in body else str(body["err_code"]).lower()


def test_the_routes_are_found() -> None:
    assert ("POST", "/v1/instruct") in HTTP_ROUTES
    assert "/v1/stream" in SOCKET_ROUTES


@pytest.mark.parametrize(("method", "path"), HTTP_ROUTES)
def test_every_route_needs_a_key(server: LiveServer, method: str, path: str) -> None:
    for headers in ({}, *WRONG):
        encoded = {name.encode(): value.encode("latin-1") for name, value in headers.items()}
        response = server.client.request(method, path, headers=encoded)
        if path in PROBES:
            assert response.status_code == 200
        else:
            assert (response.status_code, code_of(response)) == (401, "invalid_api_key"), headers
            assert response.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("path", SOCKET_ROUTES)
def test_every_websocket_needs_a_key(server: LiveServer, path: str) -> None:
    for headers in ({}, WRONG[0], {"sec-websocket-protocol": "openai-insecure-api-key.wrong"}):
        assert refused_socket(server, path, **headers) == (401, "invalid_api_key")


@pytest.mark.parametrize(("method", "path"), HTTP_ROUTES)
def test_every_route_refuses_other_names_and_other_pages(server: LiveServer, method: str, path: str) -> None:
    for host in FOREIGN_HOSTS:
        response = server.client.request(method, path, headers={**BEARER, "host": host.format(port=server.port)})
        assert (response.status_code, code_of(response)) == (403, "forbidden_host"), host
    for origin in FOREIGN_ORIGINS:
        response = server.client.request(method, path, headers={**BEARER, "origin": origin})
        assert (response.status_code, code_of(response)) == (403, "forbidden_origin"), origin
        assert "access-control-allow-origin" not in response.headers
    rebinding = {**BEARER, "host": f"evil.example:{server.port}", "origin": f"http://evil.example:{server.port}"}
    assert server.client.request(method, path, headers=rebinding).status_code == 403


@pytest.mark.parametrize("path", SOCKET_ROUTES)
def test_every_websocket_refuses_other_names_and_other_pages(server: LiveServer, path: str) -> None:
    for host in FOREIGN_HOSTS:
        assert refused_socket(server, path, **BEARER, Host=host.format(port=server.port)) == (403, "forbidden_host")
    rebinding = {"Host": f"evil.example:{server.port}", "Origin": f"http://evil.example:{server.port}"}
    assert refused_socket(server, path, **BEARER, **rebinding) == (403, "forbidden_host")
    for origin in FOREIGN_ORIGINS:
        assert refused_socket(server, path, **BEARER, Origin=origin) == (403, "forbidden_origin")


@pytest.mark.parametrize(
    "headers",
    [
        BEARER,
        {"authorization": f"bearer  {KEY}"},
        {"authorization": f"Token {KEY}"},
        {"api-key": KEY},
        {"x-api-key": OTHER_KEY},
        {"authorization": "Bearer wrong-key-0123456789", "api-key": KEY},
    ],
)
def test_a_key_is_taken_from_each_header_that_clients_use(server: LiveServer, headers: dict[str, str]) -> None:
    assert server.client.get("/metrics", headers=headers).status_code == 200


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [
        (["realtime", f"openai-insecure-api-key.{KEY}"], "realtime"),
        (["token", KEY], "token"),
        (["thinbridge", f"openai-insecure-api-key.{KEY}", "openai-beta.realtime-v1"], "thinbridge"),
    ],
)
def test_a_browsers_websocket_brings_its_key_as_a_subprotocol_and_does_not_get_it_back(
    server: LiveServer, offered: list[str], chosen: str
) -> None:
    with connect(f"ws://127.0.0.1:{server.port}/v1/stream", proxy=None, subprotocols=offered) as connection:  # type: ignore[arg-type]
        assert connection.subprotocol == chosen


def test_requests_count_against_their_key(server: LiveServer) -> None:
    response = server.client.post(
        "/v1/instruct", files={"audio": ("clip", CLIP)}, data={"instruction": "Transcribe."}, headers=BEARER
    )
    assert response.status_code == 200


def test_the_page_and_the_metrics_may_be_public() -> None:
    with live_server(FakeEngine(), api_keys=KEY, public_metrics=True) as server:
        for path in ("/", "/metrics", "/openapi.json"):
            assert server.client.get(path).status_code == 200
        assert server.client.post("/").status_code == 401
        assert instruct(server, CLIP).status_code == 401


def test_pages_that_are_allowed_may_ask_and_read() -> None:
    origins = "https://app.example, http://localhost:*, null, file://"
    with live_server(FakeEngine(), api_keys=KEY, allowed_origins=origins, allowed_hosts="speech.example,*.lan") as server:
        wait_until(lambda: server.client.get("/ready").status_code == 200)
        for origin in ("https://app.example", "http://localhost:3000", "null", "file://"):
            asks = {
                "origin": origin,
                "access-control-request-method": "POST",
                "access-control-request-headers": "authorization,x-a",
            }
            asks["access-control-request-private-network"] = "true"
            answer = server.client.options("/v1/instruct", headers=asks)
            assert answer.status_code == 204
            assert answer.headers["access-control-allow-origin"] == origin
            assert answer.headers["access-control-allow-headers"] == "authorization,x-a"
            assert answer.headers["access-control-allow-private-network"] == "true"
            assert answer.headers["vary"] == "Origin"
            reply = server.client.get("/metrics", headers={**BEARER, "origin": origin})
            assert (reply.status_code, reply.headers["access-control-allow-origin"]) == (200, origin)
            refused = server.client.get("/metrics", headers={"origin": origin})
            assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, origin)
        for origin in (
            "https://app.example.evil",
            "https://app.example:444",
            "http://localhost.evil:1",
            "http://localhost:1.evil",
        ):
            asks = {"origin": origin, "access-control-request-method": "POST"}
            assert server.client.options("/v1/instruct", headers=asks).status_code == 403
        for host in ("speech.example", "SPEECH.example:443", "a.b.lan", "app.localhost", "[::1]:8000", "10.0.0.1"):
            assert server.client.get("/health", headers={"host": host}).status_code == 200, host
        for host in ("lan", "evillan", "x.speech.example"):
            assert server.client.get("/health", headers={"host": host}).status_code == 403, host


def test_a_page_that_hides_its_origin_may_not_post() -> None:
    with live_server(FakeEngine()) as server:
        wait_until(lambda: server.client.get("/ready").status_code == 200)
        for site in ("cross-site", "same-site"):
            assert server.client.post("/v1/instruct", headers={"sec-fetch-site": site}).status_code == 403
        own = {"origin": server.url, "sec-fetch-site": "same-origin"}
        files = {"audio": ("clip", CLIP)}
        assert server.client.post("/v1/instruct", files=files, data={"instruction": "a"}, headers=own).status_code == 200


@pytest.mark.parametrize(("head", "status"), [("Host: localhost\r\nHost: localhost\r\n", 400), ("", 400)])
def test_a_request_names_one_host(server: LiveServer, head: str, status: int) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as peer:
        peer.sendall(f"GET /health HTTP/1.1\r\n{head}\r\n".encode())
        assert peer.recv(100).startswith(f"HTTP/1.1 {status} ".encode())


@contextlib.contextmanager
def limited(tmp_path: Path, limits: str, engine: FakeEngine) -> Iterator[LiveServer]:
    file = tmp_path / "keys"
    file.write_text(f"# Keys of this test\nrobot:{KEY} {limits}\nrobot:{OTHER_KEY} {limits}\nfree:{'f' * 16}\n")
    with live_server(engine, api_keys_file=file) as server:
        wait_until(lambda: engine.stats().ready)
        yield server


def post(server: LiveServer, key: str) -> httpx.Response:
    files, data = {"audio": ("clip", CLIP)}, {"instruction": "Transcribe."}
    return server.client.post("/v1/instruct", files=files, data=data, headers={"authorization": f"Bearer {key}"})


@pytest.mark.parametrize("limits", ["requests_per_minute=2", "audio_s_per_minute=1"])
def test_a_key_has_its_limits_and_shares_them_with_keys_of_its_name(tmp_path: Path, limits: str) -> None:
    engine = FakeEngine()
    with limited(tmp_path, limits, engine) as server:
        assert [post(server, key).status_code for key in (KEY, OTHER_KEY)] == [200, 200]
        refused = post(server, KEY)
        assert (refused.status_code, error_code(refused)) == (429, "rate_limit_exceeded")
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        assert post(server, "f" * 16).status_code == 200
        assert {request.client for request in engine.submitted} == {"robot", "free"}


def test_sessions_count_as_requests_at_a_time(tmp_path: Path) -> None:
    with limited(tmp_path, "concurrent_requests=1", FakeEngine()) as server:
        with connect(f"ws://127.0.0.1:{server.port}/v1/stream", proxy=None, additional_headers=BEARER):
            assert code_of(post(server, OTHER_KEY)) == "rate_limit_exceeded"
        wait_until(lambda: post(server, KEY).status_code == 200)


def _is_ready(server: LiveServer) -> bool:
    return server.client.get("/ready").status_code == 200


def test_the_address_behind_a_trusted_proxy_is_the_client() -> None:
    for proxies, client in (("", "127.0.0.1"), ("127.0.0.0/8", "203.0.113.7")):
        engine = FakeEngine()
        with live_server(engine, trusted_proxies=proxies, allowed_hosts="speech.example") as server:
            wait_until(partial(_is_ready, server))
            headers = {"x-forwarded-for": "198.51.100.1, 203.0.113.7, 127.0.0.5", "x-forwarded-host": "speech.example"}
            headers["origin"] = "https://speech.example"
            files, data = {"audio": ("clip", CLIP)}, {"instruction": "Transcribe."}
            reply = server.client.post("/v1/instruct", files=files, data=data, headers=headers)
            assert reply.status_code == (200 if proxies else 403)
            del headers["origin"]
            server.client.post("/v1/instruct", files=files, data=data, headers=headers)
            assert {request.client for request in engine.submitted} == {client}
