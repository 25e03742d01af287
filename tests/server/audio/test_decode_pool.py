"""The decode pool survives children that die, hang or run out of memory, and says so."""

import asyncio
import os
import signal
from asyncio.subprocess import Process
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np
import pytest

from server.audio.decode import AudioLimits, Samples, decode_audio
from server.audio.sandbox import DecodePool
from server.audio.stream import AudioStream
from server.errors import AudioTooLong, AudioTooShort, Overloaded, UndecodableAudio
from tests.support.clients.live_server import audio_file, tone

LIMITS = AudioLimits(sample_rate_hz=16_000, min_audio_s=0.08, max_audio_s=30.0)
CLIP = audio_file(tone(1.0, 44_100), 44_100, "FLAC", "PCM_16")


def run_with_pool(
    use: Callable[[DecodePool], Awaitable[None]],
    *,
    workers: int = 1,
    timeout_s: float = 20.0,
    max_waiting: int = 8,
    max_streams: int = 4,
) -> None:
    async def run() -> None:
        memory_bytes = 512 * 2**20
        pool = DecodePool(
            workers, LIMITS, timeout_s=timeout_s, memory_bytes=memory_bytes, max_waiting=max_waiting, max_streams=max_streams
        )
        await pool.start()
        try:
            await use(pool)
        finally:
            await pool.close()

    asyncio.run(run())


async def decode(pool: DecodePool, data: bytes) -> Samples:
    """A whole file at once."""
    with await AudioStream.open(pool, data) as stream:
        return await stream.read(31 * LIMITS.sample_rate_hz)


async def settled(pool: DecodePool, children: int) -> None:
    """Return once so many children live."""
    async with asyncio.timeout(20):
        while len(pool.process_ids) != children:
            await asyncio.sleep(0.01)


def is_alive(process_id: int) -> bool:
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_child_gives_the_samples_that_this_process_would() -> None:
    async def use(pool: DecodePool) -> None:
        np.testing.assert_array_equal(await decode(pool, CLIP), decode_audio(CLIP, LIMITS))

    run_with_pool(use)


def test_refusals_keep_their_kind_and_cost_no_child() -> None:
    async def use(pool: DecodePool) -> None:
        for data, kind in [
            (b"", AudioTooShort),
            (audio_file(tone(31, 8_000), 8_000, "FLAC"), AudioTooLong),
            (b"GIF89a", UndecodableAudio),
        ]:
            with pytest.raises(kind) as caught:
                await decode(pool, data)
            assert caught.value.param == "audio"
        assert pool.restarts == 0

    run_with_pool(use)


@pytest.mark.parametrize("fate", [signal.SIGKILL, signal.SIGSEGV, signal.SIGSTOP])
def test_a_child_that_dies_or_hangs_is_replaced(fate: signal.Signals) -> None:
    async def use(pool: DecodePool) -> None:
        (child,) = pool.process_ids
        os.kill(child, fate)
        with pytest.raises(UndecodableAudio):
            await decode(pool, CLIP)
        assert len(await decode(pool, CLIP)) == 16_000
        assert pool.restarts == 1
        assert pool.process_ids != {child}
        assert not is_alive(child)

    run_with_pool(use, timeout_s=5.0)


def test_a_file_that_needs_too_much_memory_is_refused() -> None:
    async def use(pool: DecodePool) -> None:
        with pytest.raises(UndecodableAudio):
            await decode(pool, b"RIFF\xff\xff\xff\xffWAVE" + bytes(600 * 2**20))
        assert len(await decode(pool, CLIP)) == 16_000

    run_with_pool(use, timeout_s=60.0)


def test_a_caller_that_leaves_costs_no_child() -> None:
    async def use(pool: DecodePool) -> None:
        for _ in range(5):
            task = asyncio.create_task(decode(pool, CLIP))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert len(await decode(pool, CLIP)) == 16_000
        assert pool.restarts == 0

    run_with_pool(use)


def test_waiting_is_bounded() -> None:
    async def use(pool: DecodePool) -> None:
        (child,) = pool.process_ids
        os.kill(child, signal.SIGSTOP)
        tasks = [asyncio.create_task(decode(pool, CLIP)) for _ in range(3)]
        # One is in the child's hands, two wait.
        await asyncio.sleep(0.2)
        with pytest.raises(Overloaded):
            await decode(pool, CLIP)
        os.kill(child, signal.SIGCONT)
        assert [len(samples) for samples in await asyncio.gather(*tasks)] == [16_000] * 3

    run_with_pool(use, max_waiting=2)


def test_close_leaves_no_child() -> None:
    seen: set[int] = set()

    async def use(pool: DecodePool) -> None:
        with await AudioStream.open(pool, CLIP) as stream:
            await stream.read(1)
            await settled(pool, 3)
            seen.update(pool.process_ids)

    run_with_pool(use, workers=2)
    assert len(seen) == 3
    assert not any(is_alive(child) for child in seen)


def test_a_child_that_is_being_ended_when_the_pool_closes_is_ended_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    broken: set[int] = set()
    ended: set[int] = set()
    wait = Process.wait

    async def wait_long(process: Process) -> int:
        await asyncio.sleep(0.2)
        status = await wait(process)
        ended.add(process.pid)
        return status

    monkeypatch.setattr(Process, "wait", wait_long)

    async def use(pool: DecodePool) -> None:
        broken.update(pool.process_ids)
        with await AudioStream.open(pool, CLIP) as stream:
            await stream.read(1_000)
            for child in broken:
                os.kill(child, signal.SIGKILL)
            with pytest.raises(UndecodableAudio):
                await stream.read(1_000)

    run_with_pool(use)
    assert broken
    assert broken <= ended


def test_a_child_gets_nothing_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "hush")

    async def use(pool: DecodePool) -> None:
        (child,) = pool.process_ids
        assert b"hush" not in Path(f"/proc/{child}/environ").read_bytes()

    run_with_pool(use)
