"""A pool of real decode processes, for one test."""

import asyncio
import os
from collections.abc import Awaitable, Callable

from server.audio.sandbox import DecoderPool
from server.audio.stream import AudioStream
from server.audio.types import AudioLimits, Samples
from tests.support.clients.live_server import audio_file, tone

LIMITS = AudioLimits(sample_rate_hz=16_000, min_audio_s=0.08, max_audio_s=30.0)
CLIP = audio_file(tone(1.0, 44_100), 44_100, "FLAC", "PCM_16")


def run_with_pool(
    use: Callable[[DecoderPool], Awaitable[None]],
    *,
    workers: int = 1,
    timeout_s: float = 20.0,
    max_waiting: int = 8,
    max_streams: int = 4,
) -> None:
    """Run `use` with a pool that is closed afterwards."""

    async def run() -> None:
        pool = DecoderPool(
            workers, LIMITS, timeout_s=timeout_s, memory_bytes=512 * 2**20, max_waiting=max_waiting, max_streams=max_streams
        )
        await pool.start()
        try:
            await use(pool)
        finally:
            await pool.close()

    asyncio.run(run())


async def decode(pool: DecoderPool, data: bytes, client: str = "") -> Samples:
    """Return the samples of a whole file."""
    with await AudioStream.open(pool, data, client) as stream:
        return await stream.read(31 * LIMITS.sample_rate_hz)


async def wait_for_decoders(pool: DecoderPool, count: int) -> None:
    """Return once the pool has so many decoders."""
    async with asyncio.timeout(20):
        while len(pool.process_ids) != count:
            await asyncio.sleep(0.01)


async def wait_for_others(pool: DecoderPool, gone: set[int], count: int = 1) -> None:
    """Return once the pool has so many decoders, and none of those that are gone."""
    async with asyncio.timeout(20):
        while pool.process_ids & gone or len(pool.process_ids) < count:
            await asyncio.sleep(0.01)


def is_alive(process_id: int) -> bool:
    """Return whether there is such a process, a zombie included."""
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    return True
