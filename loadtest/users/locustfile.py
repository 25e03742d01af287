"""Real clips with instructions against a running server, every answer checked.

    locust -f loadtest/users/locustfile.py --headless --users 4 --run-time 60s --host http://127.0.0.1:8000

A closed loop: each user is one microphone that waits for its answer. An answer fails when its status or shape is wrong,
when a transcript is too far from the known text, or when the same clip and instruction ever gave another text. A refusal
(429) is no failure: it is counted under a name of its own, and the user waits as long as it was told to.
"""

import random
from argparse import ArgumentParser
from typing import Any, ClassVar

import gevent
from locust import HttpUser, between, events, task

from loadtest.support.answers import AnswerChecker, Clip, read_clips
from loadtest.support.instructions import OTHER_INSTRUCTIONS, TRANSCRIBE
from loadtest.users.clips import REQUEST_TIMEOUT_S, add_clip_options, count_refusal, wait_if_refused


@events.init_command_line_parser.add_listener  # type: ignore[untyped-decorator]
def add_options(parser: ArgumentParser) -> None:
    add_clip_options(parser)


@events.test_start.add_listener  # type: ignore[untyped-decorator]
def prepare(environment: Any, **_kwargs: Any) -> None:
    """Read the clips once; all users share them and the memory of first answers."""
    options = environment.parsed_options
    Microphone.clips = read_clips(options.clips)
    Microphone.checker = AnswerChecker(options.max_wer)


class Microphone(HttpUser):
    """One person who speaks, waits for the answer, and pauses."""

    wait_time = between(0.1, 0.5)
    clips: ClassVar[list[Clip]]
    checker: ClassVar[AnswerChecker]

    @task(3)
    def transcribe(self) -> None:
        self._ask(random.choice(self.clips), TRANSCRIBE, "transcribe")

    @task(1)
    def instruct(self) -> None:
        self._ask(random.choice(self.clips), random.choice(OTHER_INSTRUCTIONS), "instruct")

    def _ask(self, clip: Clip, instruction: str, name: str) -> None:
        with self.client.post(
            "/v1/instruct",
            files={"audio": (clip.name, clip.audio)},
            data={"instruction": instruction, "max_tokens": "128"},
            timeout=REQUEST_TIMEOUT_S,
            name=name,
            catch_response=True,
        ) as response:
            if not count_refusal(response) and (
                complaint := self.checker.complaint(clip, instruction, response.status_code, response.content or b"")
            ):
                response.failure(complaint)
        wait_if_refused(response)
        if self.environment.stats.total.num_requests == self.environment.parsed_options.requests:
            # Not from here: it waits for every user to end, this one included.
            gevent.spawn(self.environment.runner.quit)
