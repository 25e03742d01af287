"""One channel of a file, decoded by itself."""

import numpy as np
import pytest

from server.audio.decode import FileDecoder, decode_audio
from server.audio.raw import RawFormat
from server.audio.sandbox import DecoderPool
from server.audio.stream import AudioStream, Channel
from server.audio.types import Samples
from server.errors import AudioTooLong, InvalidAudio
from tests.support.clients.live_server import audio_file, tone
from tests.support.decoders import LIMITS, run_with_pool

RATE_HZ = 16_000
LEFT, RIGHT = tone(1.5, RATE_HZ), tone(1.5, RATE_HZ, 1000.0)
STEREO = audio_file(np.stack([LEFT, RIGHT], axis=1), RATE_HZ, "WAV", "FLOAT")


def decode_channel(data: bytes, channel: int, raw: RawFormat | None = None) -> tuple[Samples, int]:
    """Return the samples of a channel, and the number of all channels."""
    file = FileDecoder(data, LIMITS, raw, channel)
    return np.concatenate(list(file.blocks())), file.channels


@pytest.mark.parametrize(("channel", "expected"), [(0, LEFT), (1, RIGHT)])
def test_a_channel_is_what_it_is_in_a_file_of_its_own(channel: int, expected: Samples) -> None:
    samples, channels = decode_channel(STEREO, channel)
    assert channels == 2
    np.testing.assert_array_equal(samples, decode_audio(audio_file(expected, RATE_HZ, "WAV", "FLOAT"), LIMITS))


def test_samples_without_a_header_have_channels_too() -> None:
    raw = np.stack([LEFT, RIGHT], axis=1).astype("<f4").tobytes()
    samples, channels = decode_channel(raw, 1, RawFormat("f32le", RATE_HZ, 2))
    assert channels == 2
    np.testing.assert_array_equal(samples, RIGHT)


def test_a_channel_that_is_not_there_is_an_error() -> None:
    with pytest.raises(InvalidAudio, match="no channel 2"):
        decode_channel(STEREO, 2)


def test_the_decoder_in_a_child_tells_the_channels_and_decodes_one() -> None:
    async def decode(pool: DecoderPool) -> None:
        for number, expected in enumerate((LEFT, RIGHT)):
            with await AudioStream.open(pool, STEREO, channel=Channel(number, 2)) as stream:
                np.testing.assert_array_equal(await stream.read(4 * RATE_HZ), expected)
                assert (stream.ended, stream.channels) == (True, 2)
        with await AudioStream.open(pool, STEREO) as mixed:
            await mixed.read(4 * RATE_HZ)
            assert mixed.channels == 2
        long = audio_file(np.zeros((16 * RATE_HZ, 2), np.float32), RATE_HZ, "WAV")
        with await AudioStream.open(pool, long, channel=Channel(0, 2)) as stream, pytest.raises(AudioTooLong, match="than 15 s"):
            await stream.read(RATE_HZ)

    run_with_pool(decode)
