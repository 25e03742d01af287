"""`thinbridge serve` as users start it, spoken to over HTTP."""

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

START_TIMEOUT_S = 900
REQUEST_TIMEOUT_S = 300
STOP_TIMEOUT_S = 60
LAST_CHARACTERS = 2000
"""Of a server's output, where it does not start."""


class ServerError(RuntimeError):
    """The server did not start, or did not answer. The message holds what it said."""


@dataclass(frozen=True)
class Question:
    """A recording's file, and what is asked about it."""

    audio: Path
    instruction: str


@dataclass(frozen=True)
class Answer:
    """`seconds` from the request to the whole reply."""

    text: str
    seconds: float


class Server:
    """Asks a running server. For several threads."""

    def __init__(self, client: httpx.Client) -> None:
        """`client` is of the server's address."""
        self._client = client

    def ask(self, question: Question) -> Answer:
        """Raises `ServerError` for any other status than 200."""
        started_s = time.perf_counter()
        response = self._client.post("/v1/instruct", **_form(question))
        seconds = time.perf_counter() - started_s
        _require_answer(response.status_code, response.text)
        return Answer(response.json()["text"], seconds)

    def first_text_s(self, question: Question) -> float:
        """Seconds to the first text of a streamed answer, or to its end where that is empty. Raises `ServerError`."""
        started_s = time.perf_counter()
        with self._client.stream("POST", "/v1/instruct", **_form(question, stream="true")) as response:
            if response.status_code != 200:
                _require_answer(response.status_code, response.read().decode())
            for line in response.iter_lines():
                if line.startswith("data: ") and json.loads(line[6:])["type"] in ("instruct.text.delta", "instruct.text.done"):
                    return time.perf_counter() - started_s
        raise ServerError("the streamed answer had no text and no end")

    def ask_at_once(self, questions: Sequence[Question], clients: int) -> tuple[list[Answer], float]:
        """All of them by so many clients that each wait for their answers; the answers in order, and seconds for all."""
        with ThreadPoolExecutor(clients) as pool:
            started_s = time.perf_counter()
            answers = list(pool.map(self.ask, questions))
            return answers, time.perf_counter() - started_s


@contextmanager
def serve(root: Path, bundle: Path, device: str, log: Path, *options: str) -> Iterator[Server]:
    """A server of the checkout `root` on a free port, ready; stopped at the end. Raises `ServerError` where it does not start."""
    command = [sys.executable, "-m", "server", "serve", "--port", "0", "--bundle", str(bundle), "--device", device, *options]
    with log.open("w") as output, subprocess.Popen(command, cwd=root, stdout=output, stderr=subprocess.STDOUT) as process:
        try:
            url = _wait_until_ready(process, log)
            with httpx.Client(base_url=url, timeout=REQUEST_TIMEOUT_S, trust_env=False) as client:
                yield Server(client)
        finally:
            process.terminate()
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()


def _wait_until_ready(process: "subprocess.Popen[bytes]", log: Path) -> str:
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline_s and process.poll() is None:
        said = log.read_text()
        found = re.search(r"at (http://\S+)", said)
        if found and re.search(r"^Ready\.", said, re.MULTILINE):
            return found[1]
        time.sleep(0.1)
    raise ServerError(f"the server did not start: {log.read_text()[-LAST_CHARACTERS:]}")


def _form(question: Question, **more: str) -> dict[str, Any]:
    files = {"audio": (question.audio.name, question.audio.read_bytes())}
    return {"files": files, "data": {"instruction": question.instruction, **more}}


def _require_answer(status: int, text: str) -> None:
    if status != 200:
        raise ServerError(f"status {status}: {text[:LAST_CHARACTERS]}")
