"""Ogg Opus that is still arriving -> mono float32 at the model's sample rate, as soon as a page is there.

Native code on hostile bytes, as in `server.audio.decode`: the server calls it in a child process.
"""

from collections.abc import Callable, Iterator
from os import SEEK_CUR, SEEK_END

import soundfile

from server.audio.decode import AudioLimits, Frames, OnceThrough, Samples, at_rate, check_shape, first_ogg_packet, mono_blocks
from server.errors import UndecodableAudio

# Enough to know the codec by; the page that begins every stream is longer.
HEAD_BYTES = 37
# What has not filled a block yet is not seen, and a page ends anywhere.
BLOCKS_PER_S = 100
UNKNOWN_BYTES = 2**62


def decode_arriving(more: Callable[[], bytes], limits: AudioLimits) -> Iterator[Samples]:
    """Mono blocks at `limits.sample_rate_hz`: the samples that `decode_blocks` gives for the same bytes. (Of a stream that is cut
    out of a longer one, or whose first page of audio is damaged, that leaves out the last few milliseconds.)

    `more` is called when the pages that have arrived are decoded, but for less than 10 ms and what the resampler holds back. It
    returns further bytes, cut anywhere, or none where the stream is over, and must not raise. No bytes at all are no audio, and
    no error. Raises `UndecodableAudio`, `AudioTooLong` or `InvalidAudio`.
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
    """What libsndfile needs of a file: it may read less than was asked for, but has to be able to tell the length, and to seek.

    The length is none that a file has. A seek to where it stands is fine; after any other, `tell` says once that it failed, and
    libsndfile goes on without having looked for the last page.
    """

    def __init__(self, more: Callable[[], bytes]) -> None:
        self._more = more
        self._arrived = b""
        self._over = False
        self._position = 0
        self._told: int | None = None

    def peek(self, count: int) -> bytes:
        """The next bytes, fewer than `count` at the end only."""
        while len(self._arrived) < count and not self._over:
            data = self._more()
            self._arrived += data
            self._over = not data
        return self._arrived[:count]

    def read(self, count: int) -> bytes:
        """At most `count` bytes of those that have arrived; it waits for the first."""
        self.peek(min(count, 1))
        data, self._arrived = self._arrived[:count], self._arrived[count:]
        self._position += len(data)
        return data

    def seek(self, offset: int, whence: int) -> None:
        if whence == SEEK_END:
            self._told = UNKNOWN_BYTES
            return
        target = offset + self._position if whence == SEEK_CUR else offset
        self._told = target if target == self._position else -1

    def tell(self) -> int:
        told, self._told = self._told, None
        return self._position if told is None else told
