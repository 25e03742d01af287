"""Decoding of Ogg Opus that is still arriving: mono float32 samples at the model's rate as soon as a page is there.

This runs native code on hostile bytes, as `server.audio.decode` does, in a child process.
"""

from collections.abc import Callable, Iterator
from os import SEEK_CUR, SEEK_END

import soundfile

from server.audio.decode import AudioLimits, Frames, OnceThrough, Samples, at_rate, check_shape, first_ogg_packet, mono_blocks
from server.errors import UndecodableAudio

# Enough to recognise the codec; the page that begins every stream is longer.
HEAD_BYTES = 37
# Samples appear in whole blocks only, and a page may end anywhere.
BLOCKS_PER_S = 100
UNKNOWN_BYTES = 2**62


def decode_arriving(more: Callable[[], bytes], limits: AudioLimits) -> Iterator[Samples]:
    """Yield mono blocks at `limits.sample_rate_hz`: the samples that `decode_blocks` yields for the same bytes.

    `more` is called when the pages that have arrived are decoded, except for less than 10 ms and the samples that the resampler
    holds back. It returns further bytes, cut anywhere, or none at the end of the stream, and must not raise. No bytes at all are
    no audio and no error. Raises `UndecodableAudio`, `AudioTooLong` or `InvalidAudio`.

    `decode_blocks` leaves out the last few milliseconds of a stream that is cut out of a longer one, or whose first page of audio
    is damaged; this does not.
    """
    file = _ArrivingFile(more)
    head = file.peek(HEAD_BYTES)
    if not head:
        return
    # libsndfile would probe for every format that it knows.
    if head[:4] != b"OggS" or not first_ogg_packet(head).startswith(b"OpusHead"):
        raise UndecodableAudio("The stream is not Ogg Opus.", param="audio")
    try:
        with OnceThrough(file) as sound:
            check_shape(sound.samplerate, sound.channels)
            yield from at_rate(mono_blocks(_blocks(sound), sound.samplerate, limits), sound.samplerate, limits)
    except soundfile.SoundFileError:
        raise UndecodableAudio("The Ogg Opus stream is damaged or cut off.", param="audio") from None
    if file.peek(1):
        raise UndecodableAudio("There is more after the end of the Ogg Opus stream.", param="audio")


def _blocks(sound: soundfile.SoundFile) -> Iterator[Frames]:
    while len(block := sound.read(sound.samplerate // BLOCKS_PER_S, dtype="float32", always_2d=True)):
        yield block


class _ArrivingFile:
    """A file object for libsndfile, which wants to know the length and to seek, and accepts fewer bytes than it asks for.

    The length is larger than that of any file. A seek to the present position works; after any other, `tell` fails once, and
    libsndfile continues without having looked for the last page.
    """

    def __init__(self, more: Callable[[], bytes]) -> None:
        self._more = more
        self._arrived = b""
        self._over = False
        self._position = 0
        self._next_tell: int | None = None

    def peek(self, count: int) -> bytes:
        """Return the next bytes without taking them, fewer than `count` at the end only."""
        while len(self._arrived) < count and not self._over:
            data = self._more()
            self._arrived += data
            self._over = not data
        return self._arrived[:count]

    def read(self, count: int) -> bytes:
        """Return at most `count` bytes that have arrived. Wait for the first."""
        self.peek(min(count, 1))
        data, self._arrived = self._arrived[:count], self._arrived[count:]
        self._position += len(data)
        return data

    def seek(self, offset: int, whence: int) -> None:
        if whence == SEEK_END:
            self._next_tell = UNKNOWN_BYTES
            return
        target = offset + self._position if whence == SEEK_CUR else offset
        self._next_tell = target if target == self._position else -1

    def tell(self) -> int:
        position, self._next_tell = self._next_tell, None
        return self._position if position is None else position
