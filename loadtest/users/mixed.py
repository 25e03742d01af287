"""Every kind of client at once: files, streamed answers, live audio, bad files, and clients that leave.

    locust -f loadtest/users/mixed.py --headless --users 6 --run-time 60s --host http://127.0.0.1:8000

Answers are checked as in `locustfile.py` and `stream.py`. `--record FILE` writes every outcome with its moment, one JSON object a
line, for `loadtest.soak`. Exit status 1 where more than `--max-failed` of the requests failed, where the 95th percentile of the
answers to files is above `--max-p95-s`, or where the generator was late.
"""

import io
import json
import random
import socket
import struct
import time
from argparse import ArgumentParser
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, TextIO
from urllib.parse import urlsplit

import gevent
from locust import HttpUser, User, between, events, task

from loadtest.support.answers import last_event
from loadtest.support.instructions import OTHER_INSTRUCTIONS, TRANSCRIBE
from loadtest.users import locustfile, stream
from loadtest.users.clips import count_refusal, wait_if_refused

BAD_FILES = {
    "empty": b"",
    "text": b"no audio at all " * 100,
    "half a WAV": b"RIFF\xff\xff\xff\xffWAVEfmt \x10\x00\x00\x00\x01\x00",
    "zip": b"PK\x03\x04" + bytes(2000),
}
BAD_STATUSES = {400, 413, 415, 422}


@events.init_command_line_parser.add_listener  # type: ignore[untyped-decorator]
def add_options(parser: ArgumentParser) -> None:
    parser.add_argument("--record", type=Path, help="file for the outcome of every request")
    # Locust's parser reads the variable; a key on the command line could be seen by others.
    parser.add_argument("--api-key", env_var="LOADTEST_API_KEY", default="", help="one of the server's keys")
    parser.add_argument("--max-failed", type=float, default=0.001, help="share of requests that may fail")
    parser.add_argument("--max-p95-s", type=float, default=30.0, help="of the answers to files, in seconds")


@events.test_start.add_listener  # type: ignore[untyped-decorator]
def prepare(environment: Any, **_kwargs: Any) -> None:
    """Hand out the key, open the record, and judge the run at its end."""
    options = environment.parsed_options
    headers = {"Authorization": f"Bearer {options.api_key}"} if options.api_key else {}
    KeyedClient.headers = LeavingClient.headers = LiveClient.headers = headers
    if options.record:
        record = Record(options.record)
        environment.events.request.add_listener(record.add)
        environment.events.quitting.add_listener(lambda **_kwargs: record.close())
    environment.events.quitting.add_listener(lambda environment, **_kwargs: judge(environment))


def judge(environment: Any) -> None:
    """Set the exit status where a limit was missed."""
    options, stats = environment.parsed_options, environment.stats
    answers = stats.get("transcribe", "POST")
    p95_s = (answers.get_response_time_percentile(0.95) or 0) / 1000
    missed = []
    if stats.total.fail_ratio > options.max_failed:
        missed.append(f"{100 * stats.total.fail_ratio:.2f} % of the requests failed; {100 * options.max_failed:g} % may")
    if p95_s > options.max_p95_s:
        missed.append(f"the 95th percentile of transcripts is {p95_s:.1f} s; {options.max_p95_s:g} s are allowed")
    for each in missed:
        print(f"FAILED: {each}.")
        environment.process_exit_code = 1


class Record:
    """Outcomes as JSON lines. `at_s` is the end of the request by the monotonic clock, which all processes share."""

    def __init__(self, path: Path) -> None:
        self._file: TextIO = path.open("w", encoding="utf-8")

    def add(self, name: str, response_time: float, exception: BaseException | None, **_kwargs: Any) -> None:
        """Note one request."""
        error = None if exception is None else f"{type(exception).__name__}: {exception}"[:200]
        line = {"at_s": round(time.monotonic(), 3), "name": name, "ms": round(response_time, 1), "error": error}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def close(self) -> None:
        """End the file."""
        self._file.close()


class KeyedClient(HttpUser):
    """A client of HTTP that sends the key."""

    abstract = True
    headers: ClassVar[Mapping[str, str]] = {}

    def on_start(self) -> None:
        self.client.headers.update(self.headers)


class FileClient(KeyedClient, locustfile.Microphone):
    """Posts files and waits for the answers."""

    weight = 2


class LiveClient(stream.Microphone):
    """Speaks into live sessions."""

    weight = 1


class EventClient(KeyedClient):
    """Reads streamed answers as server-sent events, to their end."""

    fixed_count = 1
    wait_time = between(0.1, 0.5)

    @task
    def read_events(self) -> None:
        clip = locustfile.Microphone.clips[0]
        data = {"instruction": random.choice((TRANSCRIBE, *OTHER_INSTRUCTIONS)), "max_tokens": "64", "stream": "true"}
        with self.client.post(
            "/v1/instruct", files={"audio": (clip.name, clip.audio)}, data=data, name="events", catch_response=True, timeout=90
        ) as response:
            if count_refusal(response):
                wait_if_refused(response)
            elif response.status_code != 200:
                response.failure(f"status {response.status_code}")
            elif (last := last_event(response.text)) != "instruct.text.done":
                response.failure(f"the last event is {last}")


class BadFileClient(KeyedClient):
    """Posts what is no audio; each has to be refused as the client's mistake."""

    fixed_count = 1
    wait_time = between(0.5, 1.5)

    @task
    def post_bad_file(self) -> None:
        for name, content in BAD_FILES.items():
            files = {"audio": (name, io.BytesIO(content))}
            with self.client.post(
                "/v1/instruct", files=files, data={"instruction": TRANSCRIBE}, name="bad file", catch_response=True, timeout=90
            ) as response:
                if response.status_code in (*BAD_STATUSES, 429):
                    response.success()
                else:
                    response.failure(f"{name}: status {response.status_code}")


class LeavingClient(User):
    """Sends a request and resets the connection before its answer."""

    fixed_count = 1
    wait_time = between(0.5, 1.5)
    headers: ClassVar[Mapping[str, str]] = {}

    @task
    def leave(self) -> None:
        address = urlsplit(self.host or "")
        clip = locustfile.Microphone.clips[0]
        started_s, error = time.perf_counter(), None
        try:
            with socket.create_connection((address.hostname, address.port), 30) as connection:
                parts = (
                    b'--x\r\nContent-Disposition: form-data; name="instruction"\r\n\r\n' + TRANSCRIBE.encode() + b"\r\n"
                    b'--x\r\nContent-Disposition: form-data; name="audio"; filename="clip"\r\n\r\n'
                    + clip.audio
                    + b"\r\n--x--\r\n"
                )
                fields = {
                    "Host": address.netloc,
                    "Content-Type": "multipart/form-data; boundary=x",
                    "Content-Length": str(len(parts)),
                }
                head = "".join(f"{name}: {value}\r\n" for name, value in {**fields, **self.headers}.items())
                connection.sendall(f"POST /v1/instruct HTTP/1.1\r\n{head}\r\n".encode() + parts)
                gevent.sleep(0.1)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        except OSError as found:
            error = found
        took_ms = 1000 * (time.perf_counter() - started_s)
        self.environment.events.request.fire(
            request_type="TCP", name="left", response_time=took_ms, response_length=0, exception=error, context={}
        )
