"""From a form to the work that it asks for. How long the audio is, and so how it is worked on, is known once it is decoded."""

import contextlib
import time
import uuid

from server.api.call import TimeLimit
from server.api.context import ServerContext
from server.api.instruct_form import InstructForm
from server.audio.stream import AudioStream
from server.engine.types.requests import InstructRequest
from server.jobs.gathering import live_request_from
from server.jobs.job import Job, ShortAudioJob
from server.jobs.long_audio import BLOCK_S, LongAudioJob


async def prepare(
    context: ServerContext, form: InstructForm, client: str, started_s: float, limit: TimeLimit, held: contextlib.ExitStack
) -> Job:
    """The work, ready to be started; `held` has to be closed after it.

    Raises what is wrong with the constraint, or with the audio as far as it is decoded here: a short file to its end, a long one
    not. The work on that moves `limit` on as it goes.
    """
    engine = context.engine
    if form.sampling.constraint is not None:
        await context.grammar_sandbox.check(form.sampling.constraint, client)
    decode_started_s = time.perf_counter()
    audio = held.enter_context(await AudioStream.open(context.decode_pool, form.audio, client))
    in_one_piece = form.chunking == "auto"
    head_s = engine.max_audio_s if in_one_piece else BLOCK_S
    # One sample more, so that what fits exactly is known to be all.
    head = await audio.read(int(head_s * engine.sample_rate_hz) + 1)
    decoded_s = time.perf_counter()
    audio_decode_s = decoded_s - decode_started_s
    deadline_s = None if form.deadline_s is None else max(0.0, form.deadline_s - (decoded_s - started_s))
    request = InstructRequest(
        id=f"instruct-{uuid.uuid4().hex}",
        audio=head,
        instruction=form.instruction,
        sampling=form.sampling,
        client=client,
        priority=form.priority,
        deadline_s=deadline_s,
        draft=form.draft,
        word_times=form.word_times,
    )
    if in_one_piece and audio.ended:
        return ShortAudioJob(engine, request, audio_decode_s)
    session = live_request_from(request, engine.transcribes(request.instruction))
    if deadline_s is not None:
        limit.set_deadline(deadline_s)
    return LongAudioJob(engine, session, head, audio, audio_decode_s, limit.extend)
