"""Thinbridge as the benchmark runs it: its own process, started by the command line that users start, spoken to over HTTP."""

import argparse
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import httpx

from loadtest.support.instructions import TRANSCRIBE

START_TIMEOUT_S = 900
REQUEST_TIMEOUT_S = 180
MAX_TOKENS = 256


@dataclass(frozen=True)
class Body:
    """A multipart body that can be sent again and again."""

    content: bytes
    content_type: str


def make_body(audio: bytes, instruction: str = TRANSCRIBE, **fields: object) -> Body:
    """Return the form of `POST /v1/instruct`. Fields that are None are left out."""
    texts = {"instruction": instruction, "max_tokens": MAX_TOKENS, **fields}
    data = {name: str(value) for name, value in texts.items() if value is not None}
    request = httpx.Request("POST", "http://localhost", files={"audio": ("clip.wav", audio)}, data=data)
    return Body(request.read(), request.headers["content-type"])


def add_server_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of a tool that starts a server; `server_options` reads them."""
    parser.add_argument("--bundle", help="for the server; default: the default bundle")
    parser.add_argument("--cache-dir", help="where the bundle is kept; default: the server's own")


def server_options(arguments: argparse.Namespace) -> list[str]:
    """Return the chosen values as options of `thinbridge serve`."""
    flags = {"--bundle": arguments.bundle, "--cache-dir": arguments.cache_dir}
    return [part for flag, value in flags.items() if value for part in (flag, value)]


class ServerError(RuntimeError):
    """The server did not start, or refused a request that it should have answered."""


class BenchServer:
    """A context manager: starts the server on a free port and waits until it has checked itself; stops it at the end."""

    def __init__(
        self,
        root: Path,
        options: list[str],
        *,
        python: str = sys.executable,
        environment: Mapping[str, str] | None = None,
        **settings: object,
    ) -> None:
        """Start `thinbridge serve` with `options` in the folder `root`, run by `python`.

        `settings` are further ones, and `environment` further variables.
        """
        self._output = tempfile.NamedTemporaryFile("w+", suffix=".log")  # noqa: SIM115
        variables = [f"THINBRIDGE_{name.upper()}={value}" for name, value in settings.items()]
        variables += [f"{name}={value}" for name, value in (environment or {}).items()]
        command = ["env", *variables, python, "-m", "server", "serve", "--port", "0", *options]
        self._process = subprocess.Popen(command, cwd=root, stdout=self._output, stderr=subprocess.STDOUT)
        self.pid = self._process.pid
        try:
            self.url = self._wait_for(r"at (http://\S+)")
            self._wait_for(r"^(Ready)\.")
        except BaseException:
            self._stop()
            raise
        self.client = httpx.Client(base_url=self.url, timeout=REQUEST_TIMEOUT_S, trust_env=False)

    def _wait_for(self, pattern: str) -> str:
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline_s:
            output = Path(self._output.name).read_text()
            if found := re.search(pattern, output, re.MULTILINE):
                return found[1]
            if self._process.poll() is not None:
                break
            time.sleep(0.1)
        raise ServerError(f"The server did not start: {Path(self._output.name).read_text()[-3000:]}")

    def post(self, body: Body) -> httpx.Response:
        return self.client.post("/v1/instruct", content=body.content, headers={"content-type": body.content_type})

    def answer(self, body: Body) -> dict[str, Any]:
        """Return the reply. Raises `ServerError` for any other status than 200."""
        response = self.post(body)
        if response.status_code != 200:
            raise ServerError(f"status {response.status_code}: {response.text[:500]}")
        reply: dict[str, Any] = response.json()
        return reply

    def _stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._output.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.client.close()
        self._stop()
