"""Decoders that die, hang or run out of memory are replaced, and no client is blamed for it."""

import asyncio
import contextlib
import os
import resource
import signal
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

from server.audio.decode import decode_audio
from server.audio.sandbox import Decoder, DecoderPool
from server.audio.stream import AudioStream, OpusStream
from server.errors import AudioTooLong, AudioTooShort, NotReady, Overloaded, UndecodableAudio
from tests.support.clients.live_server import audio_file, tone
from tests.support.decoders import CLIP, LIMITS, decode, is_alive, run_with_pool, wait_for_decoders, wait_for_others

on_each_event_loop = pytest.mark.usefixtures("each_event_loop")

LONG_CLIP = audio_file(tone(20.0, 16_000), 16_000, "FLAC")
OPUS = audio_file(tone(3.0, 16_000), 16_000, "OGG", "OPUS")
# An Opus header and the beginnings of pages: libsndfile searches it for ever longer.
BOMB = OPUS[:47] + b"OggS" * 2_000_000


def kill(process_ids: set[int], fate: signal.Signals = signal.SIGKILL) -> None:
    for process_id in process_ids:
        # One that was killed before may be reaped already.
        with contextlib.suppress(ProcessLookupError):
            os.kill(process_id, fate)


def kill_when_asked(monkeypatch: pytest.MonkeyPatch, fates: list[signal.Signals]) -> list[Decoder]:
    """Kill the next decoders that are asked for samples, once they were asked; return those that were."""
    asked: list[Decoder] = []
    read = Decoder.read

    async def read_and_kill(decoder: Decoder, count: int) -> object:
        asked.append(decoder)
        if fates:
            # It cannot answer before it is killed: what a stopped process was sent, it meets first when it goes on.
            process_ids, fate = {decoder.process.process_id}, fates.pop(0)
            kill(process_ids, signal.SIGSTOP)
            kill(process_ids, fate)
            if fate != signal.SIGSTOP:
                kill(process_ids, signal.SIGCONT)
        return await read(decoder, count)

    monkeypatch.setattr(Decoder, "read", read_and_kill)
    return asked


def test_a_decoder_gives_the_samples_that_this_process_would() -> None:
    async def use(pool: DecoderPool) -> None:
        np.testing.assert_array_equal(await decode(pool, CLIP), decode_audio(CLIP, LIMITS))

    run_with_pool(use)


def test_refusals_keep_their_kind_and_cost_no_decoder() -> None:
    async def use(pool: DecoderPool) -> None:
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


@on_each_event_loop
@pytest.mark.parametrize("fate", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM])
def test_decoders_that_die_while_idle_are_replaced_before_anything_is_asked(fate: signal.Signals) -> None:
    async def use(pool: DecoderPool) -> None:
        dead = pool.process_ids
        kill(dead, fate)
        await wait_for_others(pool, dead, 2)
        assert pool.restarts == 2
        assert not any(map(is_alive, dead))
        assert [len(await decode(pool, CLIP)) for _ in range(3)] == [16_000] * 3

    run_with_pool(use, workers=2)


@on_each_event_loop
@pytest.mark.parametrize("fate", [signal.SIGKILL, signal.SIGSEGV])
def test_a_client_is_not_told_of_decoders_that_died_just_before(fate: signal.Signals) -> None:
    async def use(pool: DecoderPool) -> None:
        for _ in range(2):
            kill(pool.process_ids, fate)
            assert len(await decode(pool, CLIP)) == 16_000

    run_with_pool(use, workers=2)


@on_each_event_loop
@pytest.mark.usefixtures("stopped_children_time_out_soon")
def test_decoders_that_were_stopped_while_idle_cost_one_wait() -> None:
    async def use(pool: DecoderPool) -> None:
        stopped = pool.process_ids
        kill(stopped, signal.SIGSTOP)
        decoded = await asyncio.gather(*(decode(pool, CLIP, client) for client in "ab"))
        assert [len(samples) for samples in decoded] == [16_000] * 2
        await wait_for_others(pool, stopped, 2)
        assert not any(map(is_alive, stopped))

    run_with_pool(use, workers=2)


@on_each_event_loop
def test_one_loss_in_use_is_made_good(monkeypatch: pytest.MonkeyPatch) -> None:
    async def use(pool: DecoderPool) -> None:
        for fate in (signal.SIGKILL, signal.SIGSEGV):
            kill_when_asked(monkeypatch, [fate])
            np.testing.assert_array_equal(await decode(pool, CLIP), decode_audio(CLIP, LIMITS))
        assert pool.restarts == 2

    run_with_pool(use)


@on_each_event_loop
@pytest.mark.usefixtures("stopped_children_time_out_soon")
@pytest.mark.parametrize(
    ("fates", "error"),
    [
        ([signal.SIGSEGV, signal.SIGABRT], UndecodableAudio),
        ([signal.SIGKILL, signal.SIGKILL], NotReady),
        ([signal.SIGKILL, signal.SIGSEGV], NotReady),
        ([signal.SIGSTOP, signal.SIGSTOP], NotReady),
    ],
)
def test_only_two_crashes_are_blamed_on_the_file(
    fates: list[signal.Signals], error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def use(pool: DecoderPool) -> None:
        asked = kill_when_asked(monkeypatch, list(fates))
        with pytest.raises(error):
            await decode(pool, CLIP)
        assert len(asked) == 2
        assert not any(is_alive(decoder.process.process_id) for decoder in asked)
        assert len(await decode(pool, CLIP)) == 16_000

    run_with_pool(use)


@on_each_event_loop
@pytest.mark.usefixtures("stopped_children_time_out_soon")
@pytest.mark.parametrize("fate", [signal.SIGKILL, signal.SIGSTOP])
def test_a_file_goes_on_where_its_decoder_was_lost(fate: signal.Signals) -> None:
    async def use(pool: DecoderPool) -> None:
        with await AudioStream.open(pool, CLIP) as stream:
            blocks = [await stream.read(1_000), await stream.read(3_000)]
            kill(pool.process_ids, fate)
            while not stream.ended:
                blocks.append(await stream.read(5_000))
        np.testing.assert_array_equal(np.concatenate(blocks), decode_audio(CLIP, LIMITS))

    run_with_pool(use)


@on_each_event_loop
def test_decoders_that_die_while_they_are_kept_leak_no_place() -> None:
    async def use(pool: DecoderPool) -> None:
        for _ in range(4):
            with await AudioStream.open(pool, CLIP) as stream:
                await stream.read(1_000)
                dead = pool.process_ids
                kill(dead)
                await wait_for_others(pool, dead)
            with await OpusStream.open(pool) as live:
                kill(pool.process_ids)
                with pytest.raises(NotReady):
                    await exhaust(live.decode(OPUS))
        assert len(await decode(pool, CLIP)) == 16_000
        await wait_for_decoders(pool, 1)

    run_with_pool(use, max_streams=1)


@on_each_event_loop
def test_a_kept_decoder_that_dies_while_another_is_started_starts_no_second_one(monkeypatch: pytest.MonkeyPatch) -> None:
    starts: list[int] = []
    start = Decoder.start

    async def count_and_start(memory_bytes: int, timeout_s: float) -> Decoder:
        starts.append(memory_bytes)
        return await start(memory_bytes, timeout_s)

    async def use(pool: DecoderPool) -> None:
        for _ in range(3):
            with await AudioStream.open(pool, CLIP) as stream:
                await stream.read(1_000)
                kept, before = pool.process_ids, pool.restarts
                kill(kept)
                while pool.restarts == before:
                    await asyncio.sleep(0.001)
                await wait_for_others(pool, kept)

    monkeypatch.setattr(Decoder, "start", count_and_start)
    run_with_pool(use)
    assert len(starts) == 1 + 3


async def exhaust(blocks: AsyncIterator[object]) -> None:
    async for _ in blocks:
        pass


def test_a_file_that_takes_too_long_for_what_it_holds_is_refused_early() -> None:
    async def use(pool: DecoderPool) -> None:
        before_s = children_cpu_s()
        with pytest.raises(UndecodableAudio, match="takes too long"):
            await decode(pool, BOMB)
        assert pool.restarts == 1, "it is not tried again"
        assert len(await decode(pool, CLIP)) == 16_000
        # Of which the most is the start of another process; it could be ten times as much.
        assert children_cpu_s() - before_s < 4

    run_with_pool(use, timeout_s=60.0)


def children_cpu_s() -> float:
    """The CPU time of the child processes that have ended."""
    times = os.times()
    return times.children_user + times.children_system


def test_a_stream_that_takes_too_long_for_what_it_holds_is_refused_too() -> None:
    async def use(pool: DecoderPool) -> None:
        with await OpusStream.open(pool) as live, pytest.raises(UndecodableAudio, match="takes too long"):
            await exhaust(live.decode(BOMB))
        assert len(await decode(pool, CLIP)) == 16_000

    run_with_pool(use, timeout_s=60.0)


def test_a_file_that_needs_too_much_memory_is_refused() -> None:
    async def use(pool: DecoderPool) -> None:
        with pytest.raises(UndecodableAudio):
            await decode(pool, b"RIFF\xff\xff\xff\xffWAVE" + bytes(600 * 2**20))
        assert len(await decode(pool, CLIP)) == 16_000

    run_with_pool(use, timeout_s=60.0)


def test_a_decoder_without_memory_judges_no_file() -> None:
    """A good file is decoded by another one, and a bad file is refused as ever."""

    async def use(pool: DecoderPool) -> None:
        for data, is_good in ((LONG_CLIP, True), (LONG_CLIP[:100] + bytes(1_000_000), False)):
            for process_id in pool.process_ids:
                size = int(Path(f"/proc/{process_id}/statm").read_text().split()[0]) * resource.getpagesize()
                _, most = resource.prlimit(process_id, resource.RLIMIT_AS)
                resource.prlimit(process_id, resource.RLIMIT_AS, (size, most))
            before = pool.restarts
            if is_good:
                assert len(await decode(pool, data)) == 20 * 16_000
            else:
                with pytest.raises(UndecodableAudio, match="damaged"):
                    await decode(pool, data)
            assert pool.restarts == before + 1

    run_with_pool(use, timeout_s=60.0)


@on_each_event_loop
def test_a_caller_that_leaves_costs_no_decoder() -> None:
    async def use(pool: DecoderPool) -> None:
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
    async def use(pool: DecoderPool) -> None:
        stopped = pool.process_ids
        kill(stopped, signal.SIGSTOP)
        tasks = [asyncio.create_task(decode(pool, CLIP)) for _ in range(3)]
        # One has the decoder, two wait.
        await asyncio.sleep(0.2)
        with pytest.raises(Overloaded):
            await decode(pool, CLIP)
        kill(stopped, signal.SIGCONT)
        assert [len(samples) for samples in await asyncio.gather(*tasks)] == [16_000] * 3

    run_with_pool(use, max_waiting=2)


def test_a_client_that_holds_no_decoder_goes_before_one_that_waits_for_many() -> None:
    async def use(pool: DecoderPool) -> None:
        stopped = pool.process_ids
        kill(stopped, signal.SIGSTOP)
        ended: list[str] = []

        async def decode_for(client: str) -> None:
            await decode(pool, CLIP, client)
            ended.append(client)

        flood = [asyncio.create_task(decode_for("flood")) for _ in range(6)]
        await asyncio.sleep(0.1)
        victim = asyncio.create_task(decode_for("victim"))
        await asyncio.sleep(0.1)
        kill(stopped, signal.SIGCONT)
        await asyncio.gather(victim, *flood)
        assert "victim" in ended[:2]

    run_with_pool(use)


def test_no_client_holds_all_decoders() -> None:
    async def use(pool: DecoderPool) -> None:
        flood = [asyncio.create_task(pool.lease("flood")) for _ in range(3)]
        await asyncio.sleep(0.1)
        assert [task.done() for task in flood] == [True, False, False]
        assert len(await decode(pool, CLIP, "victim")) == 16_000
        for task in flood:
            (await task).close()

    run_with_pool(use, workers=2)


@on_each_event_loop
def test_close_leaves_no_decoder() -> None:
    seen: set[int] = set()

    async def use(pool: DecoderPool) -> None:
        with await AudioStream.open(pool, CLIP) as stream:
            await stream.read(1)
            await wait_for_decoders(pool, 3)
            seen.update(pool.process_ids)

    run_with_pool(use, workers=2)
    assert len(seen) == 3
    assert not any(map(is_alive, seen))


@on_each_event_loop
def test_close_waits_for_a_decoder_that_is_being_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    broken: set[int] = set()
    ended: set[int] = set()
    wait = Process.wait

    async def wait_long(process: Process) -> int:
        await asyncio.sleep(0.2)
        status = await wait(process)
        ended.add(process.pid)
        return status

    monkeypatch.setattr(Process, "wait", wait_long)

    async def use(pool: DecoderPool) -> None:
        broken.update(pool.process_ids)
        with await AudioStream.open(pool, CLIP) as stream:
            await stream.read(1_000)
            kill(broken)
            await stream.read(1_000)

    run_with_pool(use)
    assert broken
    assert broken <= ended


def test_a_decoder_gets_nothing_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "hush")

    async def use(pool: DecoderPool) -> None:
        (decoder,) = pool.process_ids
        assert b"hush" not in Path(f"/proc/{decoder}/environ").read_bytes()

    run_with_pool(use)
