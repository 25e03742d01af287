"""Leave at random points of requests and sessions while neighbours ask: the place is free at once, and they notice nothing.

    python -m loadtest.hostile.aborts                                   # starts a server of its own
    python -m loadtest.hostile.aborts --url http://127.0.0.1:8000 --aborts 300

Each of the aborts is a request for JSON, one for server-sent events, or a live session. It is left at a point of its own, within
the upload or within the time that an answer takes, by FIN or by RST. Three neighbours, one of each kind, ask for another clip
meanwhile, and every answer is compared with the one that they got before. A place is free once the server's gauges show no more
work than the neighbours have under way. Prints a table; exits with 1 where an answer differs, a request of a neighbour fails, or
the p99 until the place is free is above 250 ms.
"""

import json
import random
import socket
import struct
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import urlsplit

import httpx

from loadtest.clients.server import make_body
from loadtest.clients.stream import Refused, Script, run_stream
from loadtest.hostile.raw import masked_frame, request_head, websocket_head
from loadtest.hostile.target import RATE_HZ, Target, add_target_flags, open_target
from loadtest.support.gauges import read_metrics
from loadtest.support.markdown import table
from loadtest.support.options import new_parser
from loadtest.support.statistics import percentile

Kind = Literal["json", "sse", "websocket"]
KINDS: tuple[Kind, ...] = ("json", "sse", "websocket")
UPLOAD_SHARE = 0.3
"""The share of the aborts that happen while the request is sent."""
MAX_FREE_S = 0.25
GIVE_UP_S = 30.0
POLL_S = 0.01


@dataclass
class Report:
    """The seconds until each place was free again, None where it never was; the neighbours' answers by kind and outcome."""

    freed_s: list[float | None] = field(default_factory=list)
    answers: Counter[tuple[Kind, str]] = field(default_factory=Counter)

    @property
    def disturbed(self) -> int:
        """How many of the neighbours' answers were not the ones that they got when they were alone."""
        return sum(count for (_, outcome), count in self.answers.items() if outcome != "same")

    @property
    def p99_s(self) -> float | None:
        known = [each for each in self.freed_s if each is not None]
        return percentile(known, 99) if known and len(known) == len(self.freed_s) else None

    def markdown(self) -> str:
        known = [each for each in self.freed_s if each is not None]
        times = [f"{1000 * percentile(known, percent):.0f} ms" for percent in (50, 99, 100)] if known else [None] * 3
        neighbours = ", ".join(f"{count} {kind} {outcome}" for (kind, outcome), count in sorted(self.answers.items()))
        head = ["aborts", "never free", "free after, p50", "p99", "most", "neighbours' answers"]
        return "\n".join(table(head, [[len(self.freed_s), len(self.freed_s) - len(known), *times, neighbours]])) + "\n"


class Neighbours:
    """A client of each kind, in threads, that asks again and again until the block ends."""

    def __init__(self, target: Target, report: Report) -> None:
        self._target, self._report = target, report
        self._expected = {kind: ask(target, kind) for kind in KINDS}
        self._under_way: Counter[Kind] = Counter()
        self._changed = threading.Lock()
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._ask_on, args=(kind,), daemon=True) for kind in KINDS]

    def under_way(self) -> tuple[int, int]:
        """Return how many requests, and how many sessions, are not ended yet."""
        with self._changed:
            return self._under_way["json"] + self._under_way["sse"], self._under_way["websocket"]

    def _ask_on(self, kind: Kind) -> None:
        while not self._stopping.is_set():
            with self._changed:
                self._under_way[kind] += 1
            try:
                outcome = "same" if ask(self._target, kind) == self._expected[kind] else "different"
            except (httpx.HTTPError, Refused, OSError) as error:
                outcome = f"failed: {error!r}"
            with self._changed:
                self._under_way[kind] -= 1
                self._report.answers[kind, outcome] += 1

    def __enter__(self) -> "Neighbours":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()


def ask(target: Target, kind: Kind) -> str:
    """Return what the server answers about the clip, without what differs from request to request.

    Raises `httpx.HTTPError` or `Refused`.
    """
    if kind == "websocket":
        run = run_stream(target.url, Script(target.samples.tobytes(), RATE_HZ, {"partials": False}, speed=0))
        return json.dumps([run.close_code, *(each.event["text"] for each in run.of_type("final"))])
    body = make_body(target.clip(), stream="true" if kind == "sse" else None, logprobs=1)
    with httpx.Client(base_url=target.url, timeout=GIVE_UP_S, trust_env=False) as client:
        response = client.post("/v1/instruct", content=body.content, headers={"content-type": body.content_type})
    response.raise_for_status()
    data = [line.removeprefix("data: ") for line in response.text.splitlines() if line.startswith("data: ")]
    events = [json.loads(each) for each in data] if kind == "sse" else [response.json()]
    kept = ("delta", "text", "finish_reason", "language", "logprobs")
    # Deltas may be cut elsewhere under load; their sum may not differ.
    deltas = "".join(event.get("delta", "") for event in events)
    return json.dumps([deltas, {name: events[-1][name] for name in kept if name in events[-1]}])


def request_bytes(target: Target, kind: Kind) -> tuple[bytes, bytes]:
    """Return the head of a request, and all that follows once the server has taken the connection."""
    host = urlsplit(target.url).netloc
    if kind == "websocket":
        start = json.dumps({"type": "start", "instruction": "Transcribe the speech to text.", "sample_rate_hz": RATE_HZ})
        samples = target.samples.tobytes()
        pieces = [samples[begin : begin + 8192] for begin in range(0, len(samples), 8192)]
        frames = [masked_frame(1, start.encode()), *(masked_frame(2, piece) for piece in pieces)]
        return websocket_head(host), b"".join(frames) + masked_frame(1, b'{"type": "flush", "id": "last"}')
    body = make_body(target.clip(1), stream="true" if kind == "sse" else None)
    fields = (f"Content-Type: {body.content_type}", f"Content-Length: {len(body.content)}")
    return request_head(host, "POST /v1/instruct", *fields), body.content


def leave(target: Target, kind: Kind, point: float, answer_s: float, *, resets: bool) -> float:
    """Begin a request, or a session, and leave it at a `point` from 0 to 1; return the moment on the monotonic clock."""
    address = urlsplit(target.url)
    head, rest = request_bytes(target, kind)
    with socket.create_connection((address.hostname or "", address.port or 80), timeout=GIVE_UP_S) as peer:
        if resets:
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if kind == "websocket":
            peer.sendall(head)
            peer.recv(4096)
            sent = rest
        else:
            sent = head + rest
        if point < UPLOAD_SHARE:
            peer.sendall(sent[: int(len(sent) * point / UPLOAD_SHARE)])
        else:
            peer.sendall(sent)
            time.sleep(answer_s * (point - UPLOAD_SHARE) / (1 - UPLOAD_SHARE))
        return time.monotonic()


def seconds_until_free(read: Callable[[], tuple[int, int]], neighbours: Neighbours, since_s: float) -> float | None:
    """Return the seconds from a moment until the server has no more work than the neighbours'; None if that takes too long."""
    while time.monotonic() < since_s + GIVE_UP_S:
        begun = neighbours.under_way()
        requests, sessions = read()
        ended = neighbours.under_way()
        # A neighbour's request may have begun or ended while the gauges were read.
        if requests <= max(begun[0], ended[0]) and sessions <= max(begun[1], ended[1]):
            return time.monotonic() - since_s
        time.sleep(POLL_S)
    return None


def gauge_reader(client: httpx.Client) -> Callable[[], tuple[int, int]]:
    """Return a function that reads how many requests and how many sessions a server has, at its door or in its engine."""

    def read() -> tuple[int, int]:
        values = read_metrics(client)
        engine_requests = values["num_requests_waiting"] + values["num_requests_running"]
        requests = max(values["instruct_in_flight"], engine_requests)
        return int(requests), int(max(values["stream_sockets"], values["live_sessions"]))

    return read


def try_aborts(target: Target, seeds: Sequence[int]) -> Report:
    """Abort once for each seed, one after the other."""
    report = Report()
    started_s = time.monotonic()
    ask(target, "json")
    answer_s = time.monotonic() - started_s
    with (
        httpx.Client(base_url=target.url, timeout=GIVE_UP_S, trust_env=False) as client,
        Neighbours(target, report) as neighbours,
    ):
        read = gauge_reader(client)
        for seed in seeds:
            choice = random.Random(seed)
            kind = KINDS[seed % len(KINDS)]
            left_s = leave(target, kind, choice.random(), answer_s, resets=seed // len(KINDS) % 2 == 1)
            report.freed_s.append(seconds_until_free(read, neighbours, left_s))
    return report


def main() -> int:
    parser = new_parser(__doc__)
    add_target_flags(parser)
    parser.add_argument("--aborts", type=int, default=300)
    arguments = parser.parse_args()
    with open_target(parser, arguments) as target:
        report = try_aborts(target, range(arguments.aborts))
    print(report.markdown())
    return 0 if not report.disturbed and report.p99_s is not None and report.p99_s <= MAX_FREE_S else 1


if __name__ == "__main__":
    sys.exit(main())
