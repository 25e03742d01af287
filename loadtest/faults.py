"""Measure what clients see while the engine's process is killed or stopped under load, and how soon the server is ready again.

    python -m loadtest.faults --out loadtest/results

Starts a server of its own. Clients post one request after the other; then the engine's process gets SIGKILL, or SIGSTOP. Of the
requests that were under way it is told what came back, and how long after the fault. Writes `faults.json` and `faults.md`.
"""

import os
import signal
import sys
import threading
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx

from loadtest.clients.server import BenchServer, Body, make_body
from loadtest.support.instructions import TRANSCRIBE
from loadtest.support.markdown import table
from loadtest.support.options import new_parser
from loadtest.support.paths import ROOT, SELF_CHECK_CLIP
from loadtest.support.process import process_tree
from loadtest.support.results import write_results

FAULTS = {"kill -9": signal.SIGKILL, "SIGSTOP": signal.SIGSTOP}
STALL_TIMEOUT_S = 3.0
WARM_UP_S = 2.0
GIVE_UP_S = 60.0


@dataclass(frozen=True)
class Answer:
    """One reply: seconds of the monotonic clock, and `200` with its text, or the error's code."""

    sent_s: float
    received_s: float
    outcome: str
    text: str


@dataclass(frozen=True)
class Report:
    """The effects of one fault. Times count from the fault."""

    fault: str
    under_way: int
    outcomes: dict[str, int]
    last_told_s: float
    ready_again_s: float
    afterwards_ok: int
    same_texts: bool


class Crowd:
    """Clients that post without a pause until they are stopped."""

    def __init__(self, url: str, body: Body, clients: int) -> None:
        self.answers: list[Answer] = []
        self._url, self._body = url, body
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._post, daemon=True) for _ in range(clients)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join(GIVE_UP_S)

    def _post(self) -> None:
        headers = {"content-type": self._body.content_type}
        with httpx.Client(base_url=self._url, timeout=GIVE_UP_S, trust_env=False) as client:
            while not self._stopping.is_set():
                sent_s = time.monotonic()
                response = client.post("/v1/instruct", content=self._body.content, headers=headers)
                reply = response.json()
                outcome = "200" if response.status_code == 200 else f"{response.status_code} {reply['error']['code']}"
                self.answers.append(Answer(sent_s, time.monotonic(), outcome, reply.get("text", "")))
                if response.status_code != 200:
                    time.sleep(0.1)


def engine_pid(server_pid: int) -> int:
    """Return the process that runs the models: the one with the most memory below the server's own."""
    below = process_tree(server_pid)[1:]
    return max(below, key=lambda pid: int(Path(f"/proc/{pid}/statm").read_text().split()[1]))


def seconds_until_ready(url: str, since_s: float) -> float:
    """Seconds from `since_s` until the server is ready, having been unready since."""
    was_unready = False
    while time.monotonic() < since_s + GIVE_UP_S:
        is_ready = httpx.get(f"{url}/ready", trust_env=False).status_code == 200
        if is_ready and was_unready:
            return time.monotonic() - since_s
        was_unready = was_unready or not is_ready
        time.sleep(0.02)
    raise TimeoutError(f"The server was not unready and ready again within {GIVE_UP_S:g} s.")


def cause_fault(name: str, server: BenchServer, body: Body, clients: int) -> Report:
    """Cause one fault under load. Raises `TimeoutError` where the server does not come back."""
    crowd = Crowd(server.url, body, clients)
    time.sleep(WARM_UP_S)
    fault_s = time.monotonic()
    os.kill(engine_pid(server.pid), FAULTS[name])
    ready_again_s = seconds_until_ready(server.url, fault_s)
    time.sleep(WARM_UP_S)
    crowd.stop()
    under_way = [answer for answer in crowd.answers if answer.sent_s < fault_s < answer.received_s]
    afterwards = [answer for answer in crowd.answers if answer.sent_s > fault_s + ready_again_s]
    texts = {answer.text for answer in crowd.answers if answer.outcome == "200"}
    return Report(
        fault=name,
        under_way=len(under_way),
        outcomes=dict(Counter(answer.outcome for answer in under_way)),
        last_told_s=max(answer.received_s for answer in under_way) - fault_s,
        ready_again_s=ready_again_s,
        afterwards_ok=sum(answer.outcome == "200" for answer in afterwards),
        same_texts=len(texts) == 1,
    )


def markdown(reports: list[Report]) -> str:
    """Return the reports as a table."""
    head = [
        "fault",
        "under way",
        "what their clients got",
        "the last one after",
        "ready again after",
        "200 afterwards",
        "same text",
    ]
    rows = []
    for report in reports:
        outcomes = ", ".join(f"{count}x {outcome}" for outcome, count in report.outcomes.items())
        times = [f"{report.last_told_s:.2f} s", f"{report.ready_again_s:.2f} s"]
        same = "yes" if report.same_texts else "NO"
        rows.append([report.fault, report.under_way, outcomes, *times, report.afterwards_ok, same])
    return "\n".join(table(head, rows)) + "\n"


def main() -> int:
    parser = new_parser(__doc__)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    body = make_body(SELF_CHECK_CLIP.read_bytes(), TRANSCRIBE)
    with BenchServer(ROOT, ["--stall-timeout-s", str(STALL_TIMEOUT_S)]) as server:
        reports = [cause_fault(name, server, body, arguments.clients) for name in FAULTS]
    title = f"{arguments.clients} clients; a stalled engine is given up after {STALL_TIMEOUT_S:g} s.\n\n"
    write_results(arguments.out, "faults", [asdict(report) for report in reports], title + markdown(reports))
    print(markdown(reports))
    return 0 if all(report.same_texts and report.afterwards_ok for report in reports) else 1


if __name__ == "__main__":
    sys.exit(main())
