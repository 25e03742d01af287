"""Whether calls of any kind leave memory behind: each kind by itself, many thousand times, on one server.

    python -m loadtest.growth                                    # every kind, 1,000 to warm up and 2,000 that count
    python -m loadtest.growth --kinds refused left --calls 500   # some of them

Starts a server of its own. Live sessions leave before their first message, before any audio, within it or right after a flush: by
the protocol's end, a close, a reset, or silence until the server ends them. Half of the files come from an address that no other
has, so that a table by client shows. Before and ten times within the calls that count, the command waits until all gauges of the
server are 0, and looks at each of its processes: growth is the slope of a straight line through these looks, as one look is off
by some MiB either way. Prints a row and the looks for each kind as soon as they are known, and at the end the table; exit status
1 where gauges, processes, files or threads are left, where a call had another outcome than its kind says, or where memory grew
by more than 4 MiB for 2,000 calls.
"""

import http.client
import json
import random
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from urllib.parse import urlsplit

import numpy as np

from loadtest.clients.drops import as_opus, choose_drop, run_drop
from loadtest.clients.server import BenchServer, ServerError, add_server_flags, make_body, server_options
from loadtest.hostile.aborts import KINDS as ABORT_KINDS
from loadtest.hostile.aborts import leave
from loadtest.hostile.target import Target, read_target
from loadtest.live.audio import StreamAudio, clear_speech, make_stream
from loadtest.support.instructions import TRANSCRIBE
from loadtest.support.leaks import MAX_GROWTH_MIB, Look, leaks, look
from loadtest.support.markdown import table
from loadtest.support.options import new_parser
from loadtest.support.paths import CLIPS, ROOT
from loadtest.support.process import OthersWatch
from loadtest.support.recordings import read_recordings

CALLS, WARM_UP_CALLS = 2000, 1000
BAR_CALLS = 2000
"""The number of calls for which `MAX_GROWTH_MIB` are allowed."""
LOOKS = 10
CONCURRENCY = 8
SPARE_SESSIONS = 16
IDLE_TIMEOUT_S = 1.0
OPUS_SHARE = 1 / 8
AUDIO_S = 5.0
CLIP_LENGTHS = 8
"""So many different recordings are sent, so that caches hold the same after the warm-up as at the end."""
MOST_ANSWER_S = 0.5
TIMEOUT_S = 120.0
SHOWN = 5
HEAD = ["kind", "calls", "server", "engine", "others", "for 2,000 calls", "left", "wrong"]


@dataclass(frozen=True)
class Caller:
    """The server, and everything that calls send."""

    target: Target
    speech: StreamAudio
    opus: bytes

    def post(self, path: str, body: bytes, content_type: str, seed: int) -> tuple[int, bytes]:
        """Return status and body. Every other seed calls from an address of its own. Raises `OSError`."""
        address = urlsplit(self.target.url)
        source = (f"127.{1 + seed // 65_536 % 254}.{seed // 256 % 256}.{seed % 256}", 0) if seed % 2 else None
        connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=TIMEOUT_S, source_address=source)
        try:
            connection.request("POST", path, body, {"Content-Type": content_type})
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def post_clip(self, seed: int, **fields: object) -> tuple[int, bytes]:
        """Post one of `CLIP_LENGTHS` recordings to `/v1/instruct`."""
        length = len(self.target.samples) * (1 + seed % CLIP_LENGTHS) // CLIP_LENGTHS
        clip = Target(self.target.url, self.target.samples[:length]).clip()
        body = make_body(clip, TRANSCRIBE, **{"max_tokens": 16, **fields})
        return self.post("/v1/instruct", body.content, body.content_type, seed)


def ask(caller: Caller, seed: int) -> str:
    """Post a file and read the answer."""
    status, _ = caller.post_clip(seed)
    return "" if status == 200 else f"status {status}"


def ask_for_events(caller: Caller, seed: int) -> str:
    """Post a file and read the answer as server-sent events."""
    status, text = caller.post_clip(seed, stream="true")
    return "" if status == 200 and b"instruct.text.done" in text else f"status {status}, {text[-200:]!r}"


def be_refused(caller: Caller, seed: int) -> str:
    """Post what no server answers: another kind of mistake for each seed, with names that never come again."""
    match seed % 6:
        case 0:
            body = make_body(b"no audio at all " * 100)
            status, _ = caller.post("/v1/instruct", body.content, body.content_type, seed)
        case 1:
            status, _ = caller.post_clip(seed, model=f"unknown-{seed}")
        case 2:
            status, _ = caller.post_clip(seed, **{f"field_{seed}": "1", "temperature": "hot"})
        case 3:
            status, _ = caller.post(f"/v1/unknown/{seed}", b"{}", "application/json", seed)
        case 4:
            status, _ = caller.post_clip(seed, deadline_ms=1)
        case _:
            status, _ = caller.post("/v1/instruct", b"--x\r\nContent-Disp", f"multipart/form-data; boundary=x{seed}", seed)
    return "" if 400 <= status < 500 or status == 504 else f"mistake {seed % 6}: status {status}"


def leave_early(caller: Caller, seed: int) -> str:
    """Go at a random point of a request or session, by FIN or RST."""
    chance = random.Random(seed)
    kind = ABORT_KINDS[seed % len(ABORT_KINDS)]
    leave(caller.target, kind, chance.random(), MOST_ANSWER_S, resets=chance.random() < 0.5)
    return ""


def have_session(caller: Caller, seed: int) -> str:
    """Have a live session that is dropped at a random point, in a random way; one in eight brings Ogg Opus."""
    return run_drop(caller.target.url, choose_drop(seed, OPUS_SHARE), caller.speech.pcm, caller.opus)


Call = Callable[[Caller, int], str]
"""Makes one call, a different one for each seed; returns a complaint, or an empty string."""
KINDS: dict[str, Call] = {
    "files": ask,
    "events": ask_for_events,
    "refused": be_refused,
    "left": leave_early,
    "sessions": have_session,
}


@dataclass(frozen=True)
class Growth:
    """The server within calls of a kind, before the first and after the last too, and what was wrong with calls."""

    kind: str
    looks: Sequence[Look]
    wrong: Sequence[str]

    @property
    def calls(self) -> int:
        return self.looks[-1].sessions - self.looks[0].sessions

    def mib(self, *names: str) -> float:
        """Return by how much the processes of some names grew together, by the straight line through all looks."""
        return float(np.polyfit([seen.sessions for seen in self.looks], self.list_held_mib(*names), 1)[0]) * self.calls

    def list_held_mib(self, *names: str) -> list[float]:
        """Return the memory that the processes of some names held at each look."""
        return [sum(each.anonymous_mib for each in seen.processes if each.name in names) for seen in self.looks]

    @property
    def names(self) -> set[str]:
        return {each.name for seen in self.looks for each in seen.processes}

    @property
    def bar_mib(self) -> float:
        """The growth of all processes for as many calls as the bar speaks of."""
        return self.mib(*self.names) * BAR_CALLS / self.calls

    @property
    def left(self) -> list[str]:
        """The gauges, processes, files and threads that did not come back to what they were."""
        before, *_, after = self.looks
        return [each for each in leaks(before, after, after) if "memory" not in each]

    @property
    def is_good(self) -> bool:
        return self.bar_mib <= MAX_GROWTH_MIB and not self.left and not self.wrong

    def list_looks(self) -> list[str]:
        """Return a line for the processes of each name: the MiB that they held at each look."""
        return [f"{name}: {', '.join(f'{mib:.1f}' for mib in self.list_held_mib(name))}" for name in sorted(self.names)]

    def row(self) -> list[object]:
        """Return the cells below `HEAD`."""
        others = self.names - {"server", "server.engine.ipc.main"}
        parts = [self.mib("server"), self.mib("server.engine.ipc.main"), self.mib(*others), self.bar_mib]
        return [
            self.kind,
            self.calls,
            *(f"{round(part, 1) + 0.0:+.1f} MiB" for part in parts),
            "; ".join(self.left) or "nothing",
            len(self.wrong),
        ]


def make_calls(call: Call, caller: Caller, seeds: Sequence[int], concurrency: int) -> list[str]:
    """Make the calls of some seeds, so many at a time; return the complaints."""

    def attempt(seed: int) -> str:
        try:
            return call(caller, seed)
        except OSError as error:
            return f"{error!r}"

    with ThreadPoolExecutor(concurrency) as pool:
        return [complaint for complaint in pool.map(attempt, seeds) if complaint]


def measure(server: BenchServer, caller: Caller, kind: str, warm_up: int, calls: int, concurrency: int) -> Growth:
    """Make the calls of a kind, and look at the server before and within those that count."""
    make = partial(make_calls, KINDS[kind], caller, concurrency=concurrency)
    make(seeds=range(warm_up))
    looks, wrong = [look(server, 0)], []
    for part in range(LOOKS):
        begin, end = (calls * each // LOOKS for each in (part, part + 1))
        wrong += make(seeds=range(warm_up + begin, warm_up + end))
        looks.append(look(server, end))
    return Growth(kind, looks, wrong)


def main() -> int:
    parser = new_parser(__doc__)
    add_server_flags(parser)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--calls", type=int, default=CALLS, help="of each kind, that count (default: %(default)s)")
    parser.add_argument("--warm-up", type=int, default=WARM_UP_CALLS, help="calls before them (default: %(default)s)")
    parser.add_argument("--concurrency", type=int, default=CONCURRENCY, help="how many at a time (default: %(default)s)")
    arguments = parser.parse_args()
    speech = make_stream(clear_speech(read_recordings(None, CLIPS, limit=20)), AUDIO_S, seed=0)
    limits = {"live_idle_timeout_s": IDLE_TIMEOUT_S, "live_sessions": arguments.concurrency + SPARE_SESSIONS}
    try:
        with BenchServer(ROOT, server_options(arguments), **limits) as server:
            caller, others, growths = Caller(read_target(server.url), speech, as_opus(speech)), OthersWatch(), []
            for kind in arguments.kinds:
                growths.append(measure(server, caller, kind, arguments.warm_up, arguments.calls, arguments.concurrency))
                print(json.dumps(growths[-1].row()), *growths[-1].list_looks(), *growths[-1].wrong[:SHOWN], sep="\n", flush=True)
    except ServerError as error:
        print(f"growth: {error}", file=sys.stderr)
        return 2
    print("\n".join(table(HEAD, [each.row() for each in growths])))
    print(f"Other work took {others.share():.0%} of the machine.")
    return 0 if all(each.is_good for each in growths) else 1


if __name__ == "__main__":
    sys.exit(main())
