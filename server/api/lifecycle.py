"""Run the server: listen, serve, check itself with one request, and stop at a signal without breaking a promise."""

import asyncio
import contextlib
import http.client
import json
import resource
import signal
import socket
import ssl
import sys
import threading
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from urllib.parse import urlsplit

import uvicorn
from fastapi import FastAPI
from uvicorn.config import Config

from server.api.access.proxies import TrustedProxies
from server.api.access.shares import Shares
from server.api.app import create_app
from server.api.context import ServerContext
from server.api.http import ConnectionLimits
from server.api.native.messages import MAX_FRAME_BYTES
from server.api.options import DEFAULT_INSTRUCTION
from server.api.websocket import MessageMemory, WebSocketConnection
from server.garbage import leave_out_present_objects
from server.registry.registry import Catalogue, ModelSource
from server.settings import Settings

# Time for the last replies and closing frames, once the engine has given up what was left.
FAREWELL_S = 2.0
POLL_S = 0.02
PING_S = 10.0
LONGEST_SHOWN = 120
"""Characters of a text that the line about the self-check shows."""
# Files that this process needs for itself and its children.
FILES_BESIDE_CONNECTIONS = 256
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
    """Return a listening socket on the settings' address. Raises `ListenError`, also if Wyoming's port is taken."""
    if settings.wyoming_port is not None:
        # Opened again once the server starts, when only a trace could tell that the port is taken.
        _listen(settings.host, settings.wyoming_port, "THINBRIDGE_WYOMING_PORT").close()
    return _listen(settings.host, settings.port, "--port")


def _listen(host: str, port: int, option: str) -> socket.socket:
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        # A second server could bind to the same port until this one listens.
        listener.listen()
    except OSError as error:
        listener.close()
        raise ListenError(
            f"Cannot listen on {host} port {port}: {error.strerror or error}. "
            f"Stop the program that uses it, or choose another port with {option}."
        ) from None
    return listener


def base_url(listener: socket.socket, settings: Settings) -> str:
    """Return the URL of the server for a browser on this machine."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    scheme = "http" if settings.tls_certificate is None else "https"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def connection_limits(settings: Settings) -> ConnectionLimits:
    """Return the limits of all connections together. Raises the limit of open files, as far as this process may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = settings.max_connections + FILES_BESIDE_CONNECTIONS
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    free = settings.max_connections if soft == resource.RLIM_INFINITY else max(8, soft - FILES_BESIDE_CONNECTIONS)
    return ConnectionLimits(
        Shares(min(settings.max_connections, free)),
        TrustedProxies(settings.trusted_networks),
        MessageMemory(settings.body_timeout_s),
        settings.header_timeout_s,
        settings.write_timeout_s,
    )


def web_server(app: FastAPI, settings: Settings) -> uvicorn.Server:
    """Return the server of `app` for HTTP and WebSocket clients."""
    config = uvicorn.Config(
        app,
        http=connection_limits(settings).protocol(),
        ws=WebSocketConnection,
        ws_max_size=MAX_FRAME_BYTES,
        # Compression costs each connection more memory than everything else.
        ws_per_message_deflate=False,
        ws_ping_interval=PING_S,
        ws_ping_timeout=PING_S,
        log_config=None,
        access_log=False,
        server_header=False,
        # `ProxyHeaders` does this by the settings.
        proxy_headers=False,
        ssl_certfile=settings.tls_certificate,
        ssl_keyfile=settings.tls_key,
        timeout_keep_alive=settings.keep_alive_timeout_s,
        # By then `DrainingServer` has waited for all that may still come.
        timeout_graceful_shutdown=1,
    )
    return DrainingServer(config, app.state.context)


def serve(sources: Sequence[ModelSource], catalogue: Catalogue, settings: Settings, listener: socket.socket) -> int:
    """Serve until SIGINT or SIGTERM; return the exit status. Reports the self-checks on stdout once the models are ready.

    Raises `ValueError` if the models cannot be served together.
    """
    app = create_app(sources, settings, catalogue)
    server = web_server(app, settings)
    context: ServerContext = app.state.context
    threading.Thread(
        target=_watch_start, args=(server, context, base_url(listener, settings)), name="start-watch", daemon=True
    ).start()
    # uvicorn drains at the first signal and then raises the signal again, which would end the process as if it was killed.
    signal.signal(signal.SIGTERM, _exit_cleanly)
    with contextlib.suppress(KeyboardInterrupt):
        server.run(sockets=[listener])
    return 0 if server.started and not context.models.start_failed else 1


def run_self_check(url: str, key: str, model: str | None = None) -> SelfCheck:
    """Send a clip and the instruction to transcribe it over HTTP, with an API key: proof that the whole chain works.

    Without a `model` the default answers. Raises `SelfCheckError`.
    """
    if not CHECK_CLIP.exists():
        raise SelfCheckError(f"The clip for the self-check is missing: {CHECK_CLIP}.")
    started_s = time.perf_counter()
    try:
        status, content = _post_clip(url, key, CHECK_CLIP.read_bytes(), model)
        reply = json.loads(content)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise SelfCheckError(f"The server did not answer: {error}.") from None
    latency_s = time.perf_counter() - started_s
    if status != 200:
        raise SelfCheckError(f"The server answered {status}: {reply['error']['message']}")
    return SelfCheck(reply["text"], reply["audio_s"], latency_s)


def curl_line(url: str, *, needs_key: bool) -> str:
    """Return a command to copy that does the same as the self-check."""
    options = ("--insecure " if url.startswith("https:") else "") + ("-H 'Authorization: Bearer KEY' " if needs_key else "")
    return f"curl {options}{url}/v1/instruct -F 'audio=@{CHECK_CLIP}' -F 'instruction={DEFAULT_INSTRUCTION}'"


def _post_clip(url: str, key: str, audio: bytes, model: str | None) -> tuple[int, bytes]:
    boundary = uuid.uuid4().hex
    fields = {"instruction": DEFAULT_INSTRUCTION} | ({} if model is None else {"model": model})
    head = "".join(
        f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n' for name, value in fields.items()
    )
    head += f'--{boundary}\r\nContent-Disposition: form-data; name="audio"; filename="clip"\r\n\r\n'
    body = head.encode() + audio + f"\r\n--{boundary}--\r\n".encode()
    # Not urllib, which would go through a proxy that the environment names.
    address = urlsplit(url)
    if address.scheme == "https":
        # The certificate is for the server's own name, which is not the address that is asked here.
        unchecked = ssl._create_unverified_context()
        connection: http.client.HTTPConnection = http.client.HTTPSConnection(
            address.hostname or "", address.port, timeout=CHECK_TIMEOUT_S, context=unchecked
        )
    else:
        connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=CHECK_TIMEOUT_S)
    headers = {"Content-Type": f"multipart/form-data; boundary={boundary}", "Authorization": f"Bearer {key}"}
    with contextlib.closing(connection):
        connection.request("POST", "/v1/instruct", body, headers)
        response = connection.getresponse()
        return response.status, response.read()


def _watch_start(server: uvicorn.Server, context: ServerContext, url: str) -> None:
    """Stop a server none of whose models can start; check those that have started."""
    while context.models.is_starting or context.models.start_failed:
        if context.models.start_failed:
            server.should_exit = True
        if server.should_exit:
            return
        time.sleep(POLL_S)
    started = [model.name for model in context.models.models if model.state == "ready"]
    only_one = len(context.models.models) == 1
    report = "\n".join(_check_report(url, context.keys.own_key, None if only_one else name) for name in started)
    leave_out_present_objects()
    command = curl_line(url, needs_key=not context.keys.is_open)
    print(f"{report}\n\nReady. Open {url} in a browser, or try\n  {command}\nCtrl-C stops the server.", flush=True)


def _check_report(url: str, key: str, model: str | None) -> str:
    """Return the line about a check of the model with this name, by default the only one."""
    title = "Self-check" if model is None else f"Self-check of {model}"
    try:
        check = run_self_check(url, key, model=model)
    except SelfCheckError as error:
        return f"{title} FAILED: {error}"
    return f"{title}: {check.audio_s:.1f} s of speech answered in {check.latency_s * 1000:.0f} ms: {_shorten(check.text)!r}"


def _shorten(text: str) -> str:
    """Return the beginning of a text, for a line about it."""
    return text if len(text) <= LONGEST_SHOWN else text[:LONGEST_SHOWN] + " …"


def _exit_cleanly(_signal: int, _frame: FrameType | None) -> None:
    sys.exit(0)


class DrainingServer(uvicorn.Server):
    """uvicorn's server, with a way of its own from the signal to the end.

    At the signal `/ready` and all new work get 503, on new connections too, while live sessions are asked to end. Work gets
    `drain_timeout_s`; the rest then fails with `not_ready`. Then no connection is accepted any more.
    """

    def __init__(self, config: Config, context: ServerContext) -> None:
        super().__init__(config)
        self._context = context

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._context.models.stopping = True
        for connection in list(self.server_state.connections):
            if isinstance(connection, WebSocketConnection):
                connection.shutdown()
        for listener in self._context.listeners:
            listener.stop()
        await self._wait_for_work(self._context.settings.drain_timeout_s)
        # From here on the engines take nothing, and everything in them fails.
        await self._context.models.drain(0)
        await self._wait_for_work(FAREWELL_S)
        await super().shutdown(sockets)

    @property
    def _has_work(self) -> bool:
        return bool(self.server_state.tasks) or any(listener.is_busy for listener in self._context.listeners)

    async def _wait_for_work(self, timeout_s: float) -> None:
        """Return once no request and no session is left, after the timeout, or at a second signal."""
        ends_s = time.monotonic() + timeout_s
        while self._has_work and not self.force_exit and time.monotonic() < ends_s:
            await asyncio.sleep(POLL_S)
