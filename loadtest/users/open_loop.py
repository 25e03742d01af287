"""Files posted at the moments of a schedule, whatever becomes of those before: a slow server cannot slow this loop down.

    locust -f loadtest/users/open_loop.py --headless --rate 4 --run-time 60s --host http://127.0.0.1:8000

The moments are a Poisson process of `--rate` per second that `--seed` decides; one user makes them all. `answer` counts from the
scheduled moment, so that what waited within the generator is not counted as fast; `service` counts from the sending. Every
answer is checked as in `locustfile.py`, and refusals (429) are counted under a name of their own. Those under way at the end
are waited for. A run whose generator was late (p99 of the slips above `--max-slip-ms`) is void: it says so,
and its exit status is 1.
"""

import random
import time
from argparse import ArgumentParser
from typing import Any, ClassVar

import gevent
from gevent.pool import Group
from locust import HttpUser, events, task
from urllib3 import PoolManager

from loadtest.support.answers import AnswerChecker, Clip, read_clips
from loadtest.support.instructions import TRANSCRIBE
from loadtest.users.clips import REQUEST_TIMEOUT_S, add_clip_options, count_refusal
from loadtest.users.slips import Slips, add_slip_option

MAX_CONNECTIONS = 1000


@events.init_command_line_parser.add_listener  # type: ignore[untyped-decorator]
def add_options(parser: ArgumentParser) -> None:
    add_clip_options(parser)
    parser.add_argument("--rate", type=float, default=2.0, help="requests per second, on average")
    parser.add_argument("--seed", type=int, default=0, help="of the schedule")
    add_slip_option(parser)


@events.test_start.add_listener  # type: ignore[untyped-decorator]
def prepare(environment: Any, **_kwargs: Any) -> None:
    """Read the clips once, and watch how late the schedule is kept."""
    options = environment.parsed_options
    Arrivals.clips = read_clips(options.clips)
    Arrivals.checker = AnswerChecker(options.max_wer)
    Arrivals.slips = Slips(environment)


class Arrivals(HttpUser):
    """All clients of the schedule; each posts one file."""

    fixed_count = 1
    pool_manager = PoolManager(maxsize=MAX_CONNECTIONS)
    clips: ClassVar[list[Clip]]
    checker: ClassVar[AnswerChecker]
    slips: ClassVar[Slips]

    @task
    def keep_schedule(self) -> None:
        options = self.environment.parsed_options
        moments = random.Random(options.seed)
        under_way = Group()
        due_s, count = time.perf_counter(), 0
        try:
            while count != options.requests:
                due_s += moments.expovariate(options.rate)
                clip = moments.choice(self.clips)
                gevent.sleep(max(0.0, due_s - time.perf_counter()))
                under_way.spawn(self._ask, clip, due_s)
                count += 1
        finally:
            # The slowest requests would be missing otherwise.
            under_way.join()
        gevent.spawn(self.environment.runner.quit)

    def _ask(self, clip: Clip, due_s: float) -> None:
        self.slips.add([time.perf_counter() - due_s])
        with self.client.post(
            "/v1/instruct",
            files={"audio": (clip.name, clip.audio)},
            data={"instruction": TRANSCRIBE, "max_tokens": "128"},
            timeout=REQUEST_TIMEOUT_S,
            name="service",
            catch_response=True,
        ) as response:
            answered_s = time.perf_counter()
            if count_refusal(response):
                return
            if complaint := self.checker.complaint(clip, TRANSCRIBE, response.status_code, response.content or b""):
                response.failure(complaint)
        self.environment.events.request.fire(
            request_type="POST",
            name="answer",
            response_time=1000 * (answered_s - due_s),
            response_length=len(response.content or b""),
            exception=RuntimeError(complaint) if complaint else None,
            context={},
        )
