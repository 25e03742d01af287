"""Time what OpenAI's and Deepgram's dialects cost over the native API: the same clip by all, in turns, one request at a time.

python -m loadtest.dialects                          # a server at port 8000
python -m loadtest.dialects --url http://127.0.0.1:9000 --requests 500
python -m loadtest.dialects --server-pid PID         # processor time of the server's own process too, on a busy machine

The processor time leaves the engine's process out, which does the same for all.
"""

import base64
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import httpx

from loadtest.support.instructions import TRANSCRIBE
from loadtest.support.markdown import table
from loadtest.support.options import add_url_flag, new_parser
from loadtest.support.process import own_cpu_seconds

CLIP = Path(__file__).parents[1] / "tests" / "clips" / "ljspeech-LJ001-0002.flac"
ROUNDS = 3


def main() -> None:
    parser = new_parser(__doc__)
    add_url_flag(parser)
    parser.add_argument("--clip", type=Path, default=CLIP)
    parser.add_argument("--requests", type=int, default=200, help="of each kind")
    parser.add_argument("--server-pid", type=int, help="the process id of the server")
    arguments = parser.parse_args()
    with httpx.Client(base_url=arguments.url, timeout=60, trust_env=False) as client:
        send = senders(client, arguments.clip.read_bytes())
        columns = {"p50": {name: statistics.median(each) for name, each in time_in_turns(send, arguments.requests).items()}}
        if arguments.server_pid is not None:
            columns["processor time"] = processor_times(send, arguments.requests, arguments.server_pid)
    print("\n".join(table(["", *(part for title in columns for part in (title, "over the native API"))], rows(columns))))


def senders(client: httpx.Client, audio: bytes) -> dict[str, Callable[[], httpx.Response]]:
    """Return a function for each kind of request that gets the transcript of `audio`."""
    part = {"type": "input_audio", "input_audio": {"data": base64.b64encode(audio).decode(), "format": "flac"}}
    messages = [{"role": "user", "content": [{"type": "text", "text": TRANSCRIBE}, part]}]
    form = {"model": "whisper-1"}

    def transcribe(**fields: str) -> httpx.Response:
        return client.post("/v1/audio/transcriptions", files={"file": audio}, data={**form, **fields})

    return {
        "instruct": lambda: client.post("/v1/instruct", files={"audio": audio}, data={"instruction": TRANSCRIBE}),
        "transcriptions": transcribe,
        "transcriptions, verbose_json": lambda: transcribe(response_format="verbose_json"),
        "transcriptions, stream": lambda: transcribe(stream="true"),
        "listen": lambda: client.post("/v1/listen", content=audio, headers={"content-type": "audio/flac"}),
        "chat": lambda: client.post("/v1/chat/completions", json={"messages": messages}),
    }


def time_in_turns(send: dict[str, Callable[[], httpx.Response]], requests: int) -> dict[str, list[float]]:
    """Return the seconds that each kind of request took, each sent `requests` times."""
    times_s: dict[str, list[float]] = {name: [] for name in send}
    for _ in range(requests):
        for name, send_one in send.items():
            started_s = time.perf_counter()
            send_one().raise_for_status()
            times_s[name].append(time.perf_counter() - started_s)
    return times_s


def processor_times(send: dict[str, Callable[[], httpx.Response]], requests: int, pid: int) -> dict[str, float]:
    """Return the seconds of processor time that a request of each kind takes in the process `pid` alone.

    The system counts hundredths of a second, so the requests of a kind follow one another.
    """
    used_s = dict.fromkeys(send, 0.0)
    for _ in range(ROUNDS):
        for name, send_one in send.items():
            before_s = own_cpu_seconds(pid)
            for _ in range(requests):
                send_one().raise_for_status()
            used_s[name] += own_cpu_seconds(pid) - before_s
    return {name: each_s / (ROUNDS * requests) for name, each_s in used_s.items()}


def rows(columns: dict[str, dict[str, float]]) -> list[list[str]]:
    """Return a row for each kind of request: its milliseconds in each column, and how much more that is than the native API's."""
    return [
        [name, *(part for times_s in columns.values() for part in _compare(times_s[name], times_s["instruct"]))]
        for name in columns["p50"]
    ]


def _compare(each_s: float, native_s: float) -> tuple[str, str]:
    return f"{1000 * each_s:.2f} ms", f"{1000 * (each_s - native_s):+.2f} ms"


if __name__ == "__main__":
    main()
