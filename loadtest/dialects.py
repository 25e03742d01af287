"""Time what OpenAI's and Deepgram's dialects cost over the native API: the same clip by all, in turns, one request at a time.

python -m loadtest.dialects                          # a server at port 8000
python -m loadtest.dialects --url http://127.0.0.1:9000 --requests 500
"""

import argparse
import base64
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import httpx

CLIP = Path(__file__).parents[1] / "tests" / "clips" / "ljspeech-LJ001-0002.flac"
INSTRUCTION = "Transcribe the speech to text."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--clip", type=Path, default=CLIP)
    parser.add_argument("--requests", type=int, default=200, help="of each kind")
    arguments = parser.parse_args()
    with httpx.Client(base_url=arguments.url, timeout=60, trust_env=False) as client:
        times_s = time_in_turns(senders(client, arguments.clip.read_bytes()), arguments.requests)
    native_ms = statistics.median(times_s["instruct"]) * 1000
    print("| | p50 | over the native API |\n| --- | --- | --- |")
    for name, each_s in times_s.items():
        middle_ms = statistics.median(each_s) * 1000
        print(f"| {name} | {middle_ms:.2f} ms | {middle_ms - native_ms:+.2f} ms |")


def senders(client: httpx.Client, audio: bytes) -> dict[str, Callable[[], httpx.Response]]:
    """Return a function for each kind of request that gets the transcript of `audio`."""
    part = {"type": "input_audio", "input_audio": {"data": base64.b64encode(audio).decode(), "format": "flac"}}
    messages = [{"role": "user", "content": [{"type": "text", "text": INSTRUCTION}, part]}]
    form = {"model": "whisper-1"}

    def transcribe(**fields: str) -> httpx.Response:
        return client.post("/v1/audio/transcriptions", files={"file": audio}, data={**form, **fields})

    return {
        "instruct": lambda: client.post("/v1/instruct", files={"audio": audio}, data={"instruction": INSTRUCTION}),
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


if __name__ == "__main__":
    main()
