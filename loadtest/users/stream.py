"""Microphones that stream speech to `/v1/stream` in real time, every session checked.

    locust -f loadtest/users/stream.py --headless --users 2 --run-time 60s --host http://127.0.0.1:8000

Each user says recordings with pauses between them, in an order of its own, in one session after the other. Besides whole
sessions (a failure where one breaks the protocol), locust's statistics get what a speaker waits for: `first partial` after the
true onset of speech, `end of speech to final` after its true end, and under `revised words` the words that a session's partials
took back, which is a number and no time. A run whose generator was late (p99 of the slips above `--max-slip-ms`) is void:
it says so, and its exit status is 1.
"""

import itertools
import time
from argparse import ArgumentParser
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import gevent
from locust import User, constant, events, task

from loadtest.clients.stream import Refused, Script, StreamRun, run_stream
from loadtest.live.audio import Speech, StreamAudio, clear_speech, make_stream
from loadtest.live.checks import complaints
from loadtest.live.figures import count_revisions, match
from loadtest.support.options import add_data_flag
from loadtest.support.paths import CLIPS
from loadtest.support.recordings import read_recordings
from loadtest.users.slips import Slips, add_slip_option

MAX_RECORDINGS = 150


@events.init_command_line_parser.add_listener  # type: ignore[untyped-decorator]
def add_options(parser: ArgumentParser) -> None:
    add_data_flag(parser)
    parser.add_argument("--session-seconds", type=float, default=20.0, help="audio of one session")
    parser.add_argument("--silence-ms", type=int, default=500, help="silence that ends an utterance")
    parser.add_argument("--sessions", type=int, help="stop after this many sessions (default: at --run-time)")
    add_slip_option(parser)


@events.test_start.add_listener  # type: ignore[untyped-decorator]
def prepare(environment: Any, **_kwargs: Any) -> None:
    """Read the recordings once, and watch how late the users are."""
    options = environment.parsed_options
    Microphone.speeches = clear_speech(read_recordings(options.data, CLIPS, MAX_RECORDINGS))
    Microphone.seeds = itertools.count()
    Microphone.slips = Slips(environment)


class Microphone(User):
    """One person who speaks, in one session after the other."""

    wait_time = constant(0)
    speeches: ClassVar[list[Speech]]
    seeds: ClassVar[Iterator[int]]
    slips: ClassVar[Slips]
    headers: ClassVar[Mapping[str, str]] = {}

    @task
    def speak(self) -> None:
        options = self.environment.parsed_options
        audio = make_stream(self.speeches, options.session_seconds, next(self.seeds))
        voice = {"silence_duration_ms": options.silence_ms}
        script = Script(audio.pcm, options={"voice": voice}, headers=self.headers)
        started_s = time.perf_counter()
        try:
            run = run_stream(self.host or "", script)
        except Refused as refusal:
            error = None if refusal.status == 429 else refusal
            self._report(f"refused ({refusal.status})", 1000 * (time.perf_counter() - started_s), error)
            gevent.sleep(refusal.retry_after_s)
            return
        self.slips.add(run.slips_s)
        wrong = complaints(run)
        self._report("session", 1000 * (time.perf_counter() - started_s), RuntimeError("; ".join(wrong)) if wrong else None)
        if not wrong:
            self._report_waits(run, audio)
        if self.environment.stats.get("session", "WS").num_requests == options.sessions:
            # Not from here: it waits for every user to end, this one included.
            gevent.spawn(self.environment.runner.quit)

    def _report_waits(self, run: StreamRun, audio: StreamAudio) -> None:
        for heard in match(run, audio.spoken):
            if heard.first_partial_s is not None:
                self._report("first partial", 1000 * heard.first_partial_s)
            error = (
                None if heard.utterances and not heard.cut_off else RuntimeError("cut off" if heard.utterances else "not heard")
            )
            self._report("end of speech to final", 1000 * max(0.0, heard.final_s or 0.0), error)
        self._report("revised words", count_revisions(run).revised)

    def _report(self, name: str, value: float, error: Exception | None = None) -> None:
        self.environment.events.request.fire(
            request_type="WS", name=name, response_time=value, response_length=0, exception=error, context={}
        )
