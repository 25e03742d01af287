"""An engine over a tiny LLM whose drafts are its own answers with errors, which is what a draft is."""

import zlib
from dataclasses import dataclass, replace
from random import Random

import numpy as np

from models.chain import Models
from models.protocols import LLM, Float32, ProjectorOutput
from server.engine.runner.runner import Runner
from server.engine.types.events import Done
from server.engine.types.requests import InstructRequest
from server.engine.types.stats import EngineCounters
from tests.support.clients.engine_client import serving_models, wait_until_idle
from tests.support.clients.runner_client import run
from tests.support.fakes.fake_models import FakeProjector, fake_models, sure_output
from tests.support.schedules.random_schedules import play_schedules, random_budgets, random_requests, without_id
from tests.support.tasks import change_task

WIDTH = 64


class DraftingProjector(FakeProjector):
    """Frames as wide as the LLM's embeddings; the draft is what it was told to be for these frames."""

    boundary_before = np.full((2, WIDTH), 0.25, np.float32)
    boundary_after = np.full((2, WIDTH), 0.75, np.float32)

    def __init__(self) -> None:
        self.drafts: dict[int, list[int]] = {}

    def _project(self, states: Float32) -> ProjectorOutput:
        output = super()._project(states)
        frames = np.tile(output.embeddings, (1, WIDTH // output.embeddings.shape[1])) / np.float32(4)
        draft = self.drafts.get(zlib.crc32(frames.tobytes()), [])
        # A blank between any two, so that a token may come twice.
        best = np.array([each for token in draft for each in (token, -1)] or output.require_draft().best_token, np.int64)
        return sure_output(frames, best)


def wrong_here_and_there(random: Random, tokens: list[int]) -> list[int]:
    draft: list[int] = []
    for token in tokens:
        draft += random.choices([[token], [random.randrange(20, 300)], [token, token], []], [16, 2, 1, 1])[0]
    return draft


@dataclass(frozen=True)
class Alone:
    """The answer of a request that ran alone and without a draft, and its tokens."""

    done: Done
    tokens: list[int]


def drafting_models(llm: LLM) -> tuple[Models, DraftingProjector]:
    adapter = DraftingProjector()
    return replace(fake_models(llm), projector=adapter), adapter


def drafted_requests() -> list[InstructRequest]:
    """Without the relaxed ones: their answers depend on the draft."""
    requests = [(request, request.task.sampling) for request in random_requests()]
    return [
        change_task(request, draft="exact", sampling=replace(sampling, max_tokens=2 * sampling.max_tokens))
        for request, sampling in requests
    ]


def answer_alone(llm: LLM, requests: list[InstructRequest]) -> list[Alone]:
    models, _ = drafting_models(llm)
    answers = []
    for request in requests:
        sequence, _ = run(Runner(models), change_task(request, draft="off"))
        done = sequence.terminal_event()
        assert isinstance(done, Done)
        answers.append(Alone(done, sequence.tokens))
    return answers


def draft_answers(
    models: Models, adapter: DraftingProjector, random: Random, asked: list[InstructRequest], alone: list[Alone]
) -> None:
    """Give the adapter a draft for every audio: the answer's tokens with errors."""
    for request, answer in zip(asked, alone, strict=True):
        frames = adapter.project(models.encoder.encode([models.features(request.audio)]))[0].embeddings
        adapter.drafts[zlib.crc32(frames.tobytes())] = wrong_here_and_there(random, answer.tokens)


def play_on(llm: LLM, requests: list[InstructRequest], alone: list[Alone], seed: int, schedules: int) -> EngineCounters:
    """Random schedules of the requests on one engine; every answer has to be the one alone."""
    random = Random(seed)
    models, adapter = drafting_models(llm)
    draft_answers(models, adapter, random, requests, alone)
    with serving_models(models, 16, **random_budgets(random)) as engine:
        answered = play_schedules(engine, random, schedules, requests, [without_id(each.done) for each in alone])
        wait_until_idle(engine)
        stats = engine.stats()
    assert (stats.waiting, stats.running) == (0, 0)
    assert answered > schedules
    return stats.counters
