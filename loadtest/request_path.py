"""Count the source files that a request crosses.

    python -m loadtest.request_path                    # this checkout
    python -m loadtest.request_path --root ../other    # another one, with a .venv of its own

Starts the server of a checkout with the default model, sends requests, and lists the files of which a function was called at
least once per request, in the server's process or its engine's. (The process that decodes audio is confined, and may write no
counts.) Calls that an idle server makes too are subtracted, and for a frame those of a session without audio. The list has two
parts:

- the way: files that call on into other files, so that a reader of the request has to follow them;
- helpers: files that are called and return without a call into another file (data types, counters, arithmetic, a model's run).
  A reader may take them at their word.
"""

import json
import struct
import sys
import tempfile
import textwrap
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx
from websockets.sync.client import connect

from loadtest.clients.server import BenchServer
from loadtest.support.options import new_parser
from loadtest.support.paths import ROOT

CLIP = ROOT / "tests" / "clips" / "ljspeech-LJ001-0016.flac"
FOLDERS = ("server", "models", "kernels")
REQUESTS = 6
FRAMES = 100
FRAME_S = 0.02
SETTLE_S = 1.5
Call = tuple[Path, Path]
"""The calling and the called file."""

# Imported by every Python process of the server: counts calls by the calling and the called file ("caller>called", the caller is
# empty for the first file of a thread or task), and writes the counts every quarter of a second.
COUNTER = """
import dis, json, os, sys, threading, time
root, out = os.environ["REQUEST_PATH_ROOT"], os.environ["REQUEST_PATH_OUT"]
folders = tuple(os.path.join(root, folder, "") for folder in os.environ["REQUEST_PATH_FOLDERS"].split(","))
counts, codes = {}, {}
AFTER_AWAIT = (2, 3)
def is_call(frame):
    # A generator expression is called for each element, and a coroutine again whenever one that it awaits goes on.
    code = frame.f_code
    if code.co_name == "<genexpr>":
        return False
    if code not in codes:
        codes[code] = code.co_code
    at = frame.f_lasti
    return at < 0 or codes[code][at] != dis.opmap["RESUME"] or codes[code][at + 1] & 3 not in AFTER_AWAIT
def count(frame, event, argument):
    if event == "call" and frame.f_code.co_filename.startswith(folders) and is_call(frame):
        caller = frame.f_back
        while caller is not None and not caller.f_code.co_filename.startswith(folders):
            caller = caller.f_back
        key = (caller.f_code.co_filename if caller is not None else "") + ">" + frame.f_code.co_filename
        counts[key] = counts.get(key, 0) + 1
def write():
    while True:
        time.sleep(0.25)
        path = os.path.join(out, str(os.getpid()))
        with open(path + ".new", "w") as file:
            json.dump(dict(counts), file)
        os.replace(path + ".new", path)
threading.setprofile(count)
threading.Thread(target=write, daemon=True).start()
sys.setprofile(count)
"""


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--root", type=Path, default=ROOT)
    root = parser.parse_args().root.resolve()
    with counted_server(root) as (url, read_counts):
        post(url)
        stream(url, FRAMES)
        print_path("POST /v1/instruct", crossed_files(lambda: post_several(url), lambda: None, read_counts, REQUESTS), root)
        frames = crossed_files(lambda: stream(url, FRAMES), lambda: stream(url, 0), read_counts, FRAMES // 8)
        print_path("live frame", frames, root)


def print_path(title: str, crossed: Mapping[Path, bool], root: Path) -> None:
    names = {
        passes_on: sorted(path.relative_to(root).as_posix() for path, passes in crossed.items() if passes is passes_on)
        for passes_on in (True, False)
    }
    print(f"{title}: {len(crossed)} files: {len(names[True])} on the way, {len(names[False])} helpers")
    for heading, passes_on in (("the way", True), ("helpers", False)):
        print(f"  {heading}")
        print(textwrap.indent("\n".join(names[passes_on]), "    "))


def crossed_files(
    send: Callable[[], None], send_baseline: Callable[[], None], read_counts: Callable[[], Counter[Call]], units: int
) -> dict[Path, bool]:
    """Return the files with at least `units` calls more than in the same time with the baseline, and whether they call others."""
    calls, busy_s = count_calls(send, read_counts, 0.0)
    baseline, _ = count_calls(send_baseline, read_counts, busy_s)
    calls.subtract(baseline)
    crossed: Counter[Path] = Counter()
    for (_, called), number in calls.items():
        crossed[called] += number
    passing = {caller for (caller, called), number in calls.items() if number >= units and caller != called}
    return {path: path in passing for path, number in crossed.items() if number >= units}


def count_calls(
    send: Callable[[], None], read_counts: Callable[[], Counter[Call]], at_least_s: float
) -> tuple[Counter[Call], float]:
    """Return the calls while `send` runs and the server comes to rest, in `at_least_s` seconds or more, and the seconds."""
    time.sleep(SETTLE_S)
    before, started_s = read_counts(), time.perf_counter()
    send()
    time.sleep(max(SETTLE_S, at_least_s - (time.perf_counter() - started_s)))
    after = read_counts()
    after.subtract(before)
    return after, time.perf_counter() - started_s


def post(url: str) -> None:
    form = {"instruction": "Transcribe the speech to text."}
    httpx.post(f"{url}/v1/instruct", files={"audio": CLIP.read_bytes()}, data=form, timeout=60).raise_for_status()


def post_several(url: str) -> None:
    for _ in range(REQUESTS):
        post(url)


def stream(url: str, frames: int) -> None:
    """Send quiet noise in frames, in real time: what is counted is the way of a frame, not that of an utterance."""
    frame = struct.pack("<320h", *(((index * 7919) % 21) - 10 for index in range(320)))
    with connect(url.replace("http", "ws") + "/v1/stream", proxy=None) as session:
        session.send(json.dumps({"type": "start", "instruction": "Transcribe the speech to text."}))
        for _ in range(frames):
            session.send(frame)
            time.sleep(FRAME_S)
        session.send(json.dumps({"type": "end"}))
        for _ in session:
            pass


@contextmanager
def counted_server(root: Path) -> Iterator[tuple[str, Callable[[], Counter[Call]]]]:
    """Run the server with the counter in all of its processes; yield its address and a function that adds the counts up."""
    with tempfile.TemporaryDirectory() as folder:
        out, inject = Path(folder, "counts"), Path(folder, "inject")
        out.mkdir()
        inject.mkdir()
        (inject / "sitecustomize.py").write_text(COUNTER)
        python = root / ".venv" / "bin" / "python"
        variables = {
            "REQUEST_PATH_ROOT": str(root),
            "REQUEST_PATH_OUT": str(out),
            "REQUEST_PATH_FOLDERS": ",".join(FOLDERS),
            "PYTHONPATH": f"{inject}:{root}",
        }
        interpreter = str(python) if python.exists() else sys.executable
        with BenchServer(root, [], python=interpreter, environment=variables) as server:
            yield server.url, lambda: read(out)


def read(out: Path) -> Counter[Call]:
    counts: Counter[Call] = Counter()
    for path in out.iterdir():
        if path.suffix != ".new":
            for key, calls in json.loads(path.read_text()).items():
                caller, _, called = key.partition(">")
                counts[Path(caller), Path(called)] += calls
    return counts


if __name__ == "__main__":
    main()
