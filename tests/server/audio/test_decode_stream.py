"""Files are decoded as they are read: the same samples, little at a time, and a slow reader delays no other."""

import asyncio
import contextlib
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.audio.decode import FileDecoder, decode_audio
from server.audio.reader import AudioReader
from server.audio.sandbox import Decoder, DecoderPool
from server.audio.stream import AudioStream
from server.audio.types import AudioLimits, Samples
from server.errors import AudioTooLong, InvalidAudio, Overloaded
from tests.support.clients.live_server import audio_file, tone
from tests.support.decoders import CLIP, LIMITS, decode, run_with_pool

NOISE = np.random.default_rng(0).normal(0, 0.1, (48_000 * 5, 2)).astype(np.float32)
FORMATS = [
    *[("WAV", subtype) for subtype in ("PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE")],
    *[("FLAC", "PCM_16"), ("FLAC", "PCM_24"), ("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", None)],
]


async def read_all(stream: AudioStream, count: int) -> list[Samples]:
    blocks = []
    while not stream.ended:
        blocks.append(await stream.read(count))
    return blocks


@pytest.mark.parametrize("rate_hz", [8_000, 16_000, 48_000])
@pytest.mark.parametrize(("container", "subtype"), FORMATS)
def test_the_samples_do_not_depend_on_how_they_are_read(container: str, subtype: str | None, rate_hz: int) -> None:
    data = audio_file(NOISE[: rate_hz * 5], rate_hz, container, subtype)
    whole = decode_audio(data, LIMITS)

    async def use(pool: DecoderPool) -> None:
        for count in (999, 16_000, 100_000):
            with await AudioStream.open(pool, data) as stream:
                blocks = await read_all(stream, count)
            assert {len(block) for block in blocks[:-1]} <= {count}
            assert len(blocks[-1]) < count
            np.testing.assert_array_equal(np.concatenate(blocks), whole)

    run_with_pool(use)


@settings(max_examples=25, deadline=None)
@given(rate_hz=st.integers(4_000, 96_000), seconds=st.floats(0.5, 3.0))
def test_blocks_at_odd_rates_join_without_a_seam(rate_hz: int, seconds: float) -> None:
    """A seam would be seen in a tone."""
    blocks = list(FileDecoder(audio_file(tone(seconds, rate_hz), rate_hz, "WAV", "FLOAT"), LIMITS).blocks())
    joined = np.concatenate(blocks)
    assert len(joined) == pytest.approx(seconds * 16_000, abs=3)
    middle = slice(800, len(joined) - 800)
    expected = 0.3 * np.sin(2 * np.pi * 440 * np.arange(len(joined)) / 16_000)
    np.testing.assert_allclose(joined[middle], expected[middle], atol=2e-3)


def test_no_more_is_decoded_than_was_read() -> None:
    """The decoder sends no samples that it was not asked for."""
    data = audio_file(tone(29.0, 16_000), 16_000, "FLAC", "PCM_16")
    answers: list[int] = []
    read = Decoder.read

    async def counting_read(decoder: Decoder, count: int) -> tuple[int, Samples]:
        status, samples = await read(decoder, count)
        answers.append(len(samples))
        return status, samples

    async def use(pool: DecoderPool) -> None:
        with mock.patch.object(Decoder, "read", counting_read), await AudioStream.open(pool, data) as stream:
            assert len(await stream.read(10_000)) == 10_000
            assert len(await stream.read(5)) == 5
            await asyncio.sleep(0.1)
        assert answers == [10_000, 5]

    run_with_pool(use)


def test_a_slow_reader_delays_no_other() -> None:
    """Each file that is kept open has a decoder of its own, so that one is always left, also of a single worker."""

    async def use(pool: DecoderPool) -> None:
        with contextlib.ExitStack() as held:
            begun = []
            for _ in range(3):
                stream = held.enter_context(await AudioStream.open(pool, CLIP))
                begun.append((stream, await stream.read(1_000)))
            assert len(await decode(pool, CLIP)) == 16_000
            for stream, block in reversed(begun):
                blocks = [block, *await read_all(stream, 7_000)]
                np.testing.assert_array_equal(np.concatenate(blocks), decode_audio(CLIP, LIMITS))
        assert pool.restarts == 0

    run_with_pool(use)


def test_no_more_are_kept_than_may_be() -> None:
    async def use(pool: DecoderPool) -> None:
        with await AudioStream.open(pool, CLIP) as kept:
            await kept.read(1_000)
            with await AudioStream.open(pool, CLIP) as refused:
                with pytest.raises(Overloaded):
                    await refused.read(1_000)
                assert len(await refused.read(1_000)) == 0
            assert len(await decode(pool, CLIP)) == 16_000
        with await AudioStream.open(pool, CLIP) as taken:
            assert len(await taken.read(1_000)) == 1_000

    run_with_pool(use, max_streams=1)


def test_files_that_are_left_half_read_leave_few_decoders() -> None:
    async def use(pool: DecoderPool) -> None:
        for _ in range(12):
            with await AudioStream.open(pool, CLIP) as stream:
                await stream.read(1_000)
        assert len(await decode(pool, CLIP)) == 16_000
        # One that decodes, and one so that the next file to be kept does not wait for a start.
        assert len(pool.process_ids) <= 2
        assert pool.restarts == 0

    run_with_pool(use)


def test_leaving_while_it_is_read_costs_no_decoder() -> None:
    async def use(pool: DecoderPool) -> None:
        for _ in range(3):
            with await AudioStream.open(pool, CLIP) as stream:
                await stream.read(1_000)
                reading = asyncio.create_task(stream.read(1_000))
                await asyncio.sleep(0)
                reading.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await reading
        assert len(await decode(pool, CLIP)) == 16_000
        assert pool.restarts == 0

    run_with_pool(use)


def test_what_is_wrong_midway_comes_where_it_is() -> None:
    not_sound = NOISE[:, 0].copy()
    not_sound[16_000 * 8] = np.nan
    too_long = audio_file(np.zeros(16_000 * 32, np.float32), 16_000, "MP3")

    async def use(pool: DecoderPool) -> None:
        with await AudioStream.open(pool, audio_file(not_sound, 16_000, "WAV", "FLOAT")) as stream:
            good = [await stream.read(16_000) for _ in range(7)]
            assert {len(block) for block in good} == {16_000}
            with pytest.raises(InvalidAudio):
                await read_all(stream, 16_000)
        # Its header says so.
        with await AudioStream.open(pool, too_long) as stream, pytest.raises(AudioTooLong):
            await stream.read(1)
        assert pool.restarts == 0

    run_with_pool(use)


def test_warnings_come_with_the_end() -> None:
    flac = audio_file(NOISE[:, 0], 16_000, "FLAC", "PCM_16")

    async def use(pool: DecoderPool) -> None:
        with await AudioStream.open(pool, flac[: len(flac) * 9 // 10]) as stream:
            await stream.read(16_000)
            assert stream.warnings == ()
            blocks = await read_all(stream, 16_000)
            assert "of audio" in "".join(stream.warnings)
            assert 12.5 < 1 + sum(map(len, blocks)) / 16_000 < 13.5
        with await AudioStream.open(pool, flac) as stream:
            await read_all(stream, 16_000)
            assert stream.warnings == ()
        assert pool.restarts == 0

    run_with_pool(use)


@pytest.mark.parametrize(("container", "subtype"), [("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("MP3", None)])
def test_the_cap_holds_where_the_header_does_not_tell(container: str, subtype: str | None) -> None:
    limits = AudioLimits(16_000, 0.0, 3.0)
    data = audio_file(np.zeros(16_000 * 20, np.float32), 16_000, container, subtype)
    lengths: list[int] = []
    with mock.patch.object(AudioReader, "declared_s", 0.1), pytest.raises(AudioTooLong):
        lengths.extend(len(block) for block in FileDecoder(data, limits).blocks())
    assert 2 * 16_000 < sum(lengths) <= 3 * 16_000
