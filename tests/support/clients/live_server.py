"""A real server on a real socket for tests, and small helpers for them."""

import contextlib
import io
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
import soundfile

from server.api.app import create_app
from server.api.lifecycle import listen, web_server
from server.engine.types.protocol import Engine
from server.registry.registry import Catalogue, ModelSource, no_catalogue
from server.settings import Settings
from tests.support.fakes.fake_engine import FakeEngine


@dataclass
class LiveServer:
    """The address of a running server, a client for it, what makes the server stop, and its other ports."""

    url: str
    port: int
    client: httpx.Client
    stop: Callable[[], None] = lambda: None
    other_ports: tuple[int, ...] = ()


def fixed_source(engine: Engine) -> ModelSource:
    """Return a model that is loaded once."""
    return ModelSource(engine, lambda: engine)


@contextlib.contextmanager
def live_server(
    engine: Engine | Sequence[Engine | ModelSource], catalogue: Catalogue = no_catalogue, /, **settings: Any
) -> Iterator[LiveServer]:
    """Serve an engine, or several, on a free port of the loopback interface until the block ends."""
    chosen = Settings(**{"decode_workers": 1, "port": 0, "drain_timeout_s": 1, **settings})
    engines = engine if isinstance(engine, Sequence) else [engine]
    sources = [each if isinstance(each, ModelSource) else fixed_source(each) for each in engines]
    app = create_app(sources, chosen, catalogue)
    server = web_server(app, chosen)
    listener = listen(chosen)
    port = listener.getsockname()[1]
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    wait_until(lambda: server.started or not thread.is_alive())
    url = f"http://127.0.0.1:{port}"

    def stop() -> None:
        server.should_exit = True

    with httpx.Client(base_url=url, timeout=30.0, trust_env=False) as client:
        try:
            yield LiveServer(url, port, client, stop, tuple(each.port for each in app.state.context.listeners))
        finally:
            stop()
            thread.join(20)
    if thread.is_alive():
        raise RuntimeError("the server did not stop")


@contextlib.contextmanager
def scripted_engine_server(**settings: Any) -> Iterator[tuple[FakeEngine, LiveServer]]:
    """Serve a scripted engine, and yield it and its server once it is ready."""
    engine = FakeEngine()
    with live_server(engine, **settings) as server:
        wait_until(lambda: engine.stats().ready)
        yield engine, server


def wait_until(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    """Return once `condition` holds. Raises `TimeoutError`."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline_s:
            raise TimeoutError("the condition did not come true")
        time.sleep(0.005)


def tone(seconds: float, rate_hz: int, frequency_hz: float = 440.0) -> npt.NDArray[np.float32]:
    """Return a sine of amplitude 0.3."""
    return (0.3 * np.sin(2 * np.pi * frequency_hz * np.arange(round(seconds * rate_hz)) / rate_hz)).astype(np.float32)


def audio_file(samples: npt.NDArray[np.float32], rate_hz: int, container: str, subtype: str | None = None) -> bytes:
    """Return an audio file as bytes."""
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate_hz, format=container, subtype=subtype)
    return buffer.getvalue()


def instruct(server: LiveServer, audio: bytes, instruction: str = "Transcribe.", **fields: str) -> httpx.Response:
    """Send one well-formed request."""
    return server.client.post("/v1/instruct", files={"audio": ("clip", audio)}, data={"instruction": instruction, **fields})


def error_code(response: httpx.Response) -> str:
    """Return the stable code of an error reply, after checking its shape."""
    body = response.json()
    if set(body) != {"error", "request_id"} or set(body["error"]) != {"message", "type", "param", "code"}:
        raise AssertionError(f"not the one error shape: {body}")
    if response.headers["x-request-id"] != body["request_id"]:
        raise AssertionError("the request id of header and body differ")
    code: str = body["error"]["code"]
    return code
