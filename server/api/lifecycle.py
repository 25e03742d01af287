"""Run the server until a signal ends it."""

import contextlib
import signal
import socket
import sys
import threading
import time
from types import FrameType

import uvicorn
from fastapi import FastAPI

from server.api.app import create_app
from server.api.context import ServerContext
from server.api.native.stream_messages import MAX_FRAME_BYTES
from server.api.self_check import SelfCheckError, curl_line, run_self_check
from server.api.websocket import WebSocketConnection
from server.engine.types.protocol import Engine
from server.settings import Settings

POLL_S = 0.02
PING_S = 10.0


class ListenError(RuntimeError):
    """The address cannot be listened on; the message is for the operator."""


def listen(settings: Settings) -> socket.socket:
    """A listening socket on the settings' address. Raises `ListenError`."""
    listener = socket.socket(socket.AF_INET6 if ":" in settings.host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((settings.host, settings.port))
        # Until somebody listens, a second server could bind to the same port.
        listener.listen()
    except OSError as error:
        listener.close()
        raise ListenError(
            f"Cannot listen on {settings.host} port {settings.port}: {error.strerror or error}. "
            "Stop what uses it, or choose another port with --port."
        ) from None
    return listener


def base_url(listener: socket.socket) -> str:
    """Where a browser on this machine finds the server."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def web_server(app: FastAPI, settings: Settings) -> uvicorn.Server:
    """What serves `app` to HTTP and WebSocket clients."""
    config = uvicorn.Config(
        app,
        ws=WebSocketConnection,
        ws_max_size=MAX_FRAME_BYTES,
        # It costs each connection more memory than all the rest.
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
    """Serve until SIGINT or SIGTERM; the exit status. Reports the self-check on stdout once the engine is ready."""
    app = create_app(engine, settings)
    server = web_server(app, settings)
    context: ServerContext = app.state.context
    threading.Thread(target=_watch_start, args=(server, context, base_url(listener)), name="start-watch", daemon=True).start()
    # uvicorn drains at the first signal and then raises it again, which would end the process as if it was killed.
    signal.signal(signal.SIGTERM, _exit_cleanly)
    with contextlib.suppress(KeyboardInterrupt):
        server.run(sockets=[listener])
    return 0 if server.started and not context.start_failed else 1


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
