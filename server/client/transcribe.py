"""One audio file through an engine of this process, as the server does it."""

import contextlib
import time
import uuid

import numpy as np

from server.api.call import Answer
from server.api.exchange import make_answer
from server.audio.sandbox import DecoderPool
from server.engine.types.options import SamplingOptions, WordTimes
from server.engine.types.protocol import Engine
from server.engine.types.requests import InstructRequest, SpeechTask
from server.jobs.job import build_job, run_job


async def instruct_file(
    engine: Engine,
    decode_pool: DecoderPool,
    file: bytes,
    instruction: str,
    sampling: SamplingOptions,
    *,
    word_times: WordTimes = "none",
) -> Answer:
    """Return the answer about the bytes of an audio file. Raises `ServeError`."""
    started_s = time.perf_counter()
    task = SpeechTask(instruction, sampling, word_times=word_times)
    request = InstructRequest(uuid.uuid4().hex, np.empty(0, np.float32), task)
    job = await build_job(
        engine,
        decode_pool,
        file,
        request,
        cut_at_pauses=False,
        on_progress=lambda: None,
        count_audio=lambda _audio_s: None,
    )
    with contextlib.closing(job):
        done, _ = await run_job(job)
    return make_answer(job, done, time.perf_counter() - started_s)
