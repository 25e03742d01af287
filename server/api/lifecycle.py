"""Run the server: listen, serve, check itself with one request, and stop at a signal."""

import contextlib
import http.client
import json
import signal
import socket
import sys
import threading
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from urllib.parse import urlsplit

import uvicorn
from fastapi import FastAPI

from server.api.app import create_app
from server.api.context import ServerContext
from server.api.native.messages import MAX_FRAME_BYTES
from server.api.options import DEFAULT_INSTRUCTION
from server.api.websocket import WebSocketConnection
from server.engine.types.protocol import Engine
from server.settings import Settings

POLL_S = 0.02
PING_S = 10.0
CHECK_CLIP = Path(__file__).parents[1] / "assets" / "selfcheck.flac"
CHECK_TIMEOUT_S = 60.0


class ListenError(RuntimeError):
    """The server cannot listen on its address; the message is for the operator."""


class SelfCheckError(RuntimeError):
    """The server gave no answer, or an error."""


@dataclass(frozen=True)
class SelfCheck:
    """The answer for the bundled clip, and how long the client waited."""

    text: str
    audio_s: float
    latency_s: float


def listen(settings: Settings) -> socket.socket:
    """Return a listening socket on the settings' address. Raises `ListenError`."""
    listener = socket.socket(socket.AF_INET6 if ":" in settings.host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((settings.host, settings.port))
        # A second server could bind to the same port until this one listens.
        listener.listen()
    except OSError as error:
        listener.close()
        raise ListenError(
            f"Cannot listen on {settings.host} port {settings.port}: {error.strerror or error}. "
            "Stop the program that uses it, or choose another port with --port."
        ) from None
    return listener


def base_url(listener: socket.socket) -> str:
    """Return the URL of the server for a browser on this machine."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def web_server(app: FastAPI, settings: Settings) -> uvicorn.Server:
    """Return the server of `app` for HTTP and WebSocket clients."""
    config = uvicorn.Config(
        app,
        ws=WebSocketConnection,
        ws_max_size=MAX_FRAME_BYTES,
        # Compression costs each connection more memory than everything else.
        ws_per_message_deflate=False,
        ws_ping_interval=PING_S,
        ws_ping_timeout=PING_S,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=settings.keep_alive_timeout_s,
        timeout_graceful_shutdown=max(1, round(settings.drain_timeout_s)),
    )
    return uvicorn.Server(config)


def serve(engine: Engine, settings: Settings, listener: socket.socket) -> int:
    """Serve until SIGINT or SIGTERM; return the exit status. Reports the self-check on stdout once the engine is ready."""
    app = create_app(engine, settings)
    server = web_server(app, settings)
    context: ServerContext = app.state.context
    threading.Thread(target=_watch_start, args=(server, context, base_url(listener)), name="start-watch", daemon=True).start()
    # uvicorn drains at the first signal and then raises the signal again, which would end the process as if it was killed.
    signal.signal(signal.SIGTERM, _exit_cleanly)
    with contextlib.suppress(KeyboardInterrupt):
        server.run(sockets=[listener])
    return 0 if server.started and not context.start_failed else 1


def run_self_check(url: str, clip: Path = CHECK_CLIP) -> SelfCheck:
    """Send `clip` and the instruction to transcribe it over HTTP: proof that the whole chain works. Raises `SelfCheckError`."""
    if not clip.exists():
        raise SelfCheckError(f"The clip for the self-check is missing: {clip}.")
    started_s = time.perf_counter()
    try:
        status, content = _post_clip(url, clip.read_bytes())
        reply = json.loads(content)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise SelfCheckError(f"The server did not answer: {error}.") from None
    latency_s = time.perf_counter() - started_s
    if status != 200:
        raise SelfCheckError(f"The server answered {status}: {reply['error']['message']}")
    return SelfCheck(reply["text"], reply["audio_s"], latency_s)


def curl_line(url: str, clip: Path = CHECK_CLIP) -> str:
    """Return a command to copy that does the same as the self-check."""
    return f"curl {url}/v1/instruct -F 'audio=@{clip}' -F 'instruction={DEFAULT_INSTRUCTION}'"


def _post_clip(url: str, audio: bytes) -> tuple[int, bytes]:
    boundary = uuid.uuid4().hex
    head = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="instruction"\r\n\r\n{DEFAULT_INSTRUCTION}\r\n'
        f'--{boundary}\r\nContent-Disposition: form-data; name="audio"; filename="clip"\r\n\r\n'
    )
    body = head.encode() + audio + f"\r\n--{boundary}--\r\n".encode()
    # Not urllib, which would go through a proxy that the environment names.
    address = urlsplit(url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=CHECK_TIMEOUT_S)
    with contextlib.closing(connection):
        connection.request("POST", "/v1/instruct", body, {"Content-Type": f"multipart/form-data; boundary={boundary}"})
        response = connection.getresponse()
        return response.status, response.read()


def _watch_start(server: uvicorn.Server, context: ServerContext, url: str) -> None:
    """Stop a server whose engine cannot start; check one whose engine has started."""
    while not context.engine.stats().ready:
        if context.start_failed:
            server.should_exit = True
        if server.should_exit:
            return
        time.sleep(POLL_S)
    try:
        check = run_self_check(url)
    except SelfCheckError as error:
        report = f"Self-check FAILED: {error}"
    else:
        report = f"Self-check: {check.audio_s:.1f} s of speech answered in {check.latency_s * 1000:.0f} ms: {check.text!r}"
    print(f"{report}\n\nReady. Open {url} in a browser, or try\n  {curl_line(url)}\nCtrl-C stops the server.", flush=True)


def _exit_cleanly(_signal: int, _frame: FrameType | None) -> None:
    sys.exit(0)
