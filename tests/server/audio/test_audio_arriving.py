"""Ogg Opus that arrives in pieces gives every sample of the file as soon as its page is there."""

import asyncio
import struct
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.audio.decode import decode_audio
from server.audio.ogg_stream import decode_arriving
from server.audio.sandbox import DecoderPool
from server.audio.stream import OpusStream
from server.audio.types import AudioLimits, Samples
from server.errors import AudioTooLong, Overloaded, UndecodableAudio
from tests.support.clients.live_server import audio_file
from tests.support.decoders import CLIP, decode, run_with_pool
from tests.support.inputs.hostile_audio import hostile_files

LIMITS = AudioLimits(sample_rate_hz=16_000, min_audio_s=0.0, max_audio_s=30.0)
NOISE = np.random.default_rng(0).normal(0, 0.1, (48_000 * 6, 2)).astype(np.float32)
RATES_HZ = (8_000, 12_000, 16_000, 24_000, 48_000)


def opus(rate_hz: int, channels: int = 1, seconds: float = 6.0) -> bytes:
    return audio_file(NOISE[: round(seconds * rate_hz), :channels], rate_hz, "OGG", "OPUS")


def pages_of(data: bytes) -> Iterator[tuple[bytes, int]]:
    """Yield each page and the granule position at its end: samples at 48 kHz, including the skipped ones at the beginning."""
    start = 0
    while start < len(data):
        segments = data[start + 26]
        end = start + 27 + segments + sum(data[start + 27 : start + 27 + segments])
        yield data[start:end], struct.unpack_from("<q", data, start + 6)[0]
        start = end


def arriving(pieces: list[bytes], limits: AudioLimits = LIMITS) -> Samples:
    left = iter(pieces)
    return np.concatenate([np.zeros(0, np.float32), *decode_arriving(lambda: next(left, b""), limits)])


async def write(stream: OpusStream, data: bytes) -> list[Samples]:
    return [block async for block in stream.decode(data)]


async def finish(stream: OpusStream) -> list[Samples]:
    return [block async for block in stream.finish()]


async def write_all(stream: OpusStream, data: bytes) -> list[Samples]:
    return await write(stream, data) + await finish(stream)


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("rate_hz", RATES_HZ)
def test_the_samples_are_those_of_the_whole_file(rate_hz: int, channels: int) -> None:
    data = opus(rate_hz, channels)
    whole = decode_audio(data, LIMITS)
    assert len(whole) == 6 * 16_000
    for size in (3, 500, 5_000, len(data)):
        pieces = [data[at : at + size] for at in range(0, len(data), size)]
        np.testing.assert_array_equal(arriving(pieces), whole)


DATA = opus(16_000, seconds=3.0)
SKIPPED_SAMPLES = 104


@settings(max_examples=40, deadline=None)
@given(cuts=st.lists(st.integers(1, len(DATA) - 1), max_size=12, unique=True))
def test_it_may_be_cut_anywhere(cuts: list[int]) -> None:
    places = [0, *sorted(cuts), len(DATA)]
    pieces = [DATA[start:end] for start, end in pairwise(places)]
    np.testing.assert_array_equal(arriving(pieces), decode_audio(DATA, LIMITS))


@settings(max_examples=40, deadline=None)
@given(place=st.integers(900, len(DATA) - 1), noise=st.binary(min_size=1, max_size=40), size=st.integers(100, 4_000))
def test_damage_does_what_it_does_to_the_file(place: int, noise: bytes, size: int) -> None:
    """A broken page is left out, and it is an error here where it is one in a file.

    If the first page is broken, libsndfile takes the beginning of the file for skipped, and leaves out as much of its end.
    """
    data = DATA[:place] + noise + DATA[place + len(noise) :]
    pieces = [data[at : at + size] for at in range(0, len(data), size)]
    try:
        whole = decode_audio(data, LIMITS)
    except UndecodableAudio:
        with pytest.raises(UndecodableAudio):
            arriving(pieces)
    else:
        streamed = arriving(pieces)
        np.testing.assert_array_equal(streamed[: len(whole)], whole)
        assert len(streamed) - len(whole) in (0, SKIPPED_SAMPLES)


@pytest.mark.parametrize("rate_hz", RATES_HZ)
def test_audio_comes_as_soon_as_its_page_is_there(rate_hz: int) -> None:
    async def use(pool: DecoderPool) -> None:
        skipped = 0
        samples = 0
        with await OpusStream.open(pool) as stream:
            for page, end in pages_of(opus(rate_hz)):
                if page[28:].startswith(b"OpusHead"):
                    (skipped,) = struct.unpack_from("<H", page, 28 + 10)
                samples += sum(map(len, await write(stream, page)))
                assert samples >= (end - skipped) / 3 - 0.12 * 16_000
            samples += sum(map(len, await finish(stream)))
        assert samples == 6 * 16_000

    run_with_pool(use)


def test_a_page_that_holds_much_comes_in_blocks() -> None:
    """An hour of silence in a few kilobytes is not an hour in memory."""
    silence = audio_file(np.zeros(16_000 * 28, np.float32), 16_000, "OGG", "OPUS")

    async def use(pool: DecoderPool) -> None:
        with await OpusStream.open(pool) as stream:
            blocks = await write_all(stream, silence)
        assert max(map(len, blocks)) <= 16_000
        assert sum(map(len, blocks)) == 28 * 16_000

    run_with_pool(use)


def test_a_block_that_is_not_taken_comes_later() -> None:
    data = opus(16_000)

    async def use(pool: DecoderPool) -> None:
        with await OpusStream.open(pool) as stream:
            blocks = []
            async for block in stream.decode(data[: len(data) // 2]):
                blocks.append(block)
                break
            blocks += await write_all(stream, data[len(data) // 2 :])
        np.testing.assert_array_equal(np.concatenate(blocks), decode_audio(data, LIMITS))

    run_with_pool(use)


def test_a_caller_that_leaves_loses_nothing() -> None:
    data = opus(48_000)

    async def use(pool: DecoderPool) -> None:
        with await OpusStream.open(pool) as stream:
            writing = asyncio.create_task(write(stream, data[:1_000]))
            await asyncio.sleep(0)
            writing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await writing
            blocks = await write_all(stream, data[1_000:])
        np.testing.assert_array_equal(np.concatenate(blocks), decode_audio(data, LIMITS))

    run_with_pool(use)


def test_nothing_is_no_audio_and_no_error() -> None:
    async def use(pool: DecoderPool) -> None:
        with await OpusStream.open(pool) as stream:
            assert await write(stream, b"") == await finish(stream) == []

    run_with_pool(use)


def test_a_stream_may_stop_anywhere_after_its_headers() -> None:
    pages = [page for page, _ in pages_of(opus(16_000))]
    assert len(arriving([*pages[:4], pages[4][:100]])) == pytest.approx(2 * 16_000, abs=500)
    for beginning in (pages[:1], [pages[0], pages[1][:-1]]):
        with pytest.raises(UndecodableAudio):
            arriving(beginning)


def test_what_follows_the_end_mark_is_heard_too() -> None:
    """Chained streams have one stream after the other."""
    assert len(arriving([DATA, DATA])) == 2 * len(arriving([DATA]))


def test_the_cap_on_seconds_holds() -> None:
    with pytest.raises(AudioTooLong):
        arriving([DATA], AudioLimits(16_000, 0.0, 2.0))


def test_a_vorbis_stream_is_refused() -> None:
    with pytest.raises(UndecodableAudio):
        arriving([audio_file(NOISE[:16_000, 0], 16_000, "OGG", "VORBIS")])


HOSTILE = {name: data for name, data in hostile_files() if data and b"OpusHead" not in data}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE)
def test_hostile_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(UndecodableAudio):
        arriving([data[:1], data[1:30], data[30:]])


def test_hostile_bytes_and_open_streams_cost_no_decoder() -> None:
    async def use(pool: DecoderPool) -> None:
        for data in (b"OggS" + bytes(400), CLIP, DATA[:60] + bytes(10_000)):
            with await OpusStream.open(pool) as stream, pytest.raises(UndecodableAudio):
                await write_all(stream, data)
        for length in (0, 20, 1_000, len(DATA)):
            with await OpusStream.open(pool) as stream:
                await write(stream, DATA[:length])
        assert len(await decode(pool, CLIP)) == 16_000
        assert pool.restarts == 0

    run_with_pool(use)


def test_streams_are_counted_with_the_files_that_are_kept() -> None:
    async def use(pool: DecoderPool) -> None:
        with await OpusStream.open(pool):
            with pytest.raises(Overloaded):
                await OpusStream.open(pool)
            assert len(await decode(pool, CLIP)) == 16_000
            await asyncio.sleep(0)

    run_with_pool(use, max_streams=1)
