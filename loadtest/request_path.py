"""Count the source files that a request crosses.

    python -m loadtest.request_path                    # this checkout
    python -m loadtest.request_path --root ../other    # another one, with a .venv of its own

Starts the server of a checkout with the default model, sends requests, and lists the files of which a function was called at
least once per request, in any of the server's processes. Calls that an idle server makes too are subtracted.
"""

import argparse
import json
import re
import struct
import subprocess
import sys
import tempfile
import textwrap
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from websockets.sync.client import connect

ROOT = Path(__file__).parents[1]
CLIP = ROOT / "tests" / "clips" / "ljspeech-LJ001-0016.flac"
FOLDERS = ("server", "models", "kernels")
REQUESTS = 12
FRAMES = 100
FRAME_S = 0.02
SETTLE_S = 1.5
START_TIMEOUT_S = 300.0

# Imported by every Python process of the server: counts calls by file, and writes the counts every quarter of a second.
COUNTER = """
import atexit, json, os, sys, threading, time
root, out = os.environ["REQUEST_PATH_ROOT"], os.environ["REQUEST_PATH_OUT"]
counts = {}
def count(frame, event, argument):
    if event == "call":
        name = frame.f_code.co_filename
        if name.startswith(root):
            counts[name] = counts.get(name, 0) + 1
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=ROOT)
    root = parser.parse_args().root.resolve()
    with counted_server(root) as (url, read_counts):
        post(url)
        stream(url)
        for title, send, units in (("POST /v1/instruct", post_several, REQUESTS), ("live frame", stream, FRAMES // 8)):
            files = files_crossed(root, lambda send=send: send(url), read_counts, units)  # type: ignore[misc]
            print(f"{title}: {len(files)} files")
            print(textwrap.indent("\n".join(files), "    "))


def files_crossed(root: Path, send: Callable[[], None], read_counts: Callable[[], Counter[str]], units: int) -> list[str]:
    """Return the files with at least `units` calls more than an idle server makes in the same time."""
    time.sleep(SETTLE_S)
    before, started_s = read_counts(), time.perf_counter()
    send()
    time.sleep(SETTLE_S)
    after, busy_s = read_counts(), time.perf_counter() - started_s
    time.sleep(busy_s)
    idle = read_counts()
    more = {name: after[name] - before[name] - (idle[name] - after[name]) for name in after}
    return sorted(Path(name).relative_to(root).as_posix() for name, calls in more.items() if calls >= units)


def post(url: str) -> None:
    form = {"instruction": "Transcribe the speech to text."}
    httpx.post(f"{url}/v1/instruct", files={"audio": CLIP.read_bytes()}, data=form, timeout=60).raise_for_status()


def post_several(url: str) -> None:
    for _ in range(REQUESTS):
        post(url)


def stream(url: str) -> None:
    """Send quiet noise in frames, in real time: what is counted is the way of a frame, not that of an utterance."""
    frame = struct.pack("<320h", *(((index * 7919) % 21) - 10 for index in range(320)))
    with connect(url.replace("http", "ws") + "/v1/stream", proxy=None) as session:
        session.send(json.dumps({"type": "start", "instruction": "Transcribe the speech to text."}))
        for _ in range(FRAMES):
            session.send(frame)
            time.sleep(FRAME_S)
        session.send(json.dumps({"type": "end"}))
        for _ in session:
            pass


@contextmanager
def counted_server(root: Path) -> Iterator[tuple[str, Callable[[], Counter[str]]]]:
    """Run the server with the counter in all of its processes; yield its address and a function that adds the counts up."""
    with tempfile.TemporaryDirectory() as folder:
        out, inject = Path(folder, "counts"), Path(folder, "inject")
        out.mkdir()
        inject.mkdir()
        (inject / "sitecustomize.py").write_text(COUNTER)
        python = root / ".venv" / "bin" / "python"
        variables = [f"REQUEST_PATH_ROOT={root}/", f"REQUEST_PATH_OUT={out}", f"PYTHONPATH={inject}:{root}"]
        interpreter = python if python.exists() else sys.executable
        command = ["env", *variables, str(interpreter), "-m", "server", "serve", "--port", "0"]
        server = subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True)
        try:
            yield wait_for_address(server), lambda: read(root, out)
        finally:
            server.terminate()
            server.wait(30)


def wait_for_address(server: subprocess.Popen[str]) -> str:
    deadline_s = time.monotonic() + START_TIMEOUT_S
    for line in server.stdout or ():
        if found := re.search(r"Open (http://\S+)", line):
            return found[1]
        if time.monotonic() > deadline_s:
            break
    raise SystemExit("The server did not become ready.")


def read(root: Path, out: Path) -> Counter[str]:
    counts: Counter[str] = Counter()
    for path in out.iterdir():
        if path.suffix != ".new":
            counts.update(json.loads(path.read_text()))
    wanted = tuple(f"{root}/{folder}/" for folder in FOLDERS)
    return Counter({name: calls for name, calls in counts.items() if name.startswith(wanted)})


if __name__ == "__main__":
    main()
