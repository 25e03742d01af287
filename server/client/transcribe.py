"""One audio file through an engine of this process, as the server does it."""

import asyncio
import contextlib
import dataclasses
import time
import uuid

import numpy as np

from server.api.formats import answer_segments
from server.api.native.schema import InstructReply, instruct_reply
from server.audio.sandbox import DecoderPool
from server.engine.types.events import Segment
from server.engine.types.options import SamplingOptions, WordTimes
from server.engine.types.protocol import Engine
from server.engine.types.requests import InstructRequest
from server.jobs.events import ResultFuture
from server.jobs.job import build_job


async def instruct_file(
    engine: Engine,
    decode_pool: DecoderPool,
    file: bytes,
    instruction: str,
    sampling: SamplingOptions,
    *,
    word_times: WordTimes = "none",
) -> tuple[InstructReply, tuple[Segment, ...]]:
    """Return the reply to the bytes of an audio file, and its text in segments. Raises `ServeError`."""
    started_s = time.perf_counter()
    request = InstructRequest(uuid.uuid4().hex, np.empty(0, np.float32), instruction, sampling, word_times=word_times)
    job = await build_job(
        engine, decode_pool, file, request, cut_at_pauses=False, on_progress=lambda: None, count_audio=lambda _s: None
    )
    with contextlib.closing(job):
        result = ResultFuture()
        job.start(result.put)
        try:
            done = await result.wait()
        except asyncio.CancelledError:
            job.abort()
            raise
    total_s = time.perf_counter() - started_s
    done = dataclasses.replace(done, times=dataclasses.replace(done.times, audio_decode_s=job.audio_decode_s, total_s=total_s))
    reply = instruct_reply(job.id, done, job.audio_s, basis=job.basis, sections=job.sections, warnings=job.warnings)
    return reply, answer_segments(done, job.audio_s, job.utterances)
