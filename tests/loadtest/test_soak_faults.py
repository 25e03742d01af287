"""The soak's own proxy, clock and limits do what they say, and are gone afterwards."""

import resource
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from loadtest.clients.server import BenchServer
from loadtest.soak import faults
from loadtest.soak.clock import Clock
from loadtest.soak.proxy import Proxy

TIMEOUT_S = 30.0
MESSAGE = bytes(range(256)) * 400


@pytest.fixture
def echo() -> Iterator[str]:
    """Serve connections that get back what they send; yield the URL."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer(connection: socket.socket) -> None:
            with connection:
                try:
                    while piece := connection.recv(65_536):
                        connection.sendall(piece)
                except ConnectionError:
                    return

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                threading.Thread(target=answer, args=(connection,), daemon=True).start()

        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)


def dial(proxy: Proxy) -> socket.socket:
    return socket.create_connection(("127.0.0.1", int(proxy.url.rpartition(":")[2])), TIMEOUT_S)


def receive(connection: socket.socket, count: int) -> bytes:
    """Return what comes until there is so much, or the end."""
    received = b""
    while len(received) < count and (piece := connection.recv(65_536)):
        received += piece
    return received


@pytest.mark.parametrize("bytes_per_s", [None, 4e6])
def test_the_proxy_passes_everything_on(echo: str, bytes_per_s: float | None) -> None:
    with Proxy(echo) as proxy, dial(proxy) as connection:
        proxy.bytes_per_s = bytes_per_s
        connection.sendall(MESSAGE)
        assert receive(connection, len(MESSAGE)) == MESSAGE
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(1) == b""


def test_reset_connections_are_reset_and_new_ones_are_not(echo: str) -> None:
    with Proxy(echo) as proxy:
        with dial(proxy) as connection:
            connection.sendall(b"a")
            assert connection.recv(1) == b"a"
            proxy.reset_all()
            with pytest.raises(ConnectionResetError):
                connection.recv(1)
        with dial(proxy) as connection:
            connection.sendall(b"b")
            assert connection.recv(1) == b"b"


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        ("disk full for 5 s (no file may grow)", resource.RLIMIT_FSIZE),
        ("engine without further memory for 5 s", resource.RLIMIT_AS),
    ],
)
def test_limits_hold_for_a_while_and_are_lifted(fault: str, kind: int, monkeypatch: pytest.MonkeyPatch) -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    with child:
        before = resource.prlimit(child.pid, kind)
        during: list[tuple[int, int]] = []
        monkeypatch.setattr(faults, "engine_pid", lambda pid: pid)
        monkeypatch.setattr(time, "sleep", lambda _seconds: during.append(resource.prlimit(child.pid, kind)))
        server = type("Server", (), {"pid": child.pid})()
        faults.FAULTS[fault](faults.Target(cast(BenchServer, server), cast(Any, None), cast(Any, None)))
        assert [hard for _, hard in during] == [before[1]]
        assert during[0][0] != before[0]
        assert resource.prlimit(child.pid, kind) == before
        child.kill()


def test_a_full_disk_stops_a_file_from_growing(tmp_path: Path) -> None:
    """And the writer gets an error, not a signal."""
    program = "import resource, sys\nresource.setrlimit(resource.RLIMIT_FSIZE, (0, -1))\nopen(sys.argv[1], 'wb', 0).write(b'a')\n"
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "file")], capture_output=True, text=True, check=False)
    assert "OSError: [Errno 27]" in done.stderr


def test_the_clock_jumps_while_a_process_runs_and_the_monotonic_one_does_not(tmp_path: Path) -> None:
    clock = Clock(tmp_path)
    program = "import time\nwhile input(): print(time.time(), time.time_ns(), time.monotonic(), flush=True)\n"
    with subprocess.Popen(
        [sys.executable, "-c", program], env=clock.variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as process:
        assert process.stdin
        assert process.stdout

        def told() -> list[float]:
            assert process.stdin
            assert process.stdout
            process.stdin.write("now\n")
            return [float(word) for word in process.stdout.readline().split()]

        first = told()
        clock.be_wrong_by(-36_000)
        behind = told()
        clock.be_wrong_by(36_000)
        ahead = told()
        process.kill()
    assert behind[0] < first[0] - 30_000
    assert ahead[0] > first[0] + 30_000
    assert ahead[1] > 1e9 * (first[0] + 30_000)
    assert first[2] <= behind[2] <= ahead[2] < first[2] + 30_000
