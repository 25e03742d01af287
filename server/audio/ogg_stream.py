"""Decoding of Ogg Opus that is still arriving: mono float32 samples at the model's rate as soon as a page is there.

This runs native code on hostile bytes, as `server.audio.decode` does, in a child process.
"""

from collections.abc import Callable, Iterator

from server.audio.containers import OGG
from server.audio.decode import mono_at_rate
from server.audio.reader import AudioReader
from server.audio.types import AudioLimits, Samples
from server.errors import UndecodableAudio

# Enough to recognise the codec; the page that begins every stream is longer.
HEAD_BYTES = 37
PAGE_HEADER_BYTES = 27


def decode_arriving(more: Callable[[], bytes], limits: AudioLimits) -> Iterator[Samples]:
    """Yield mono blocks at `limits.sample_rate_hz`: the samples that `FileDecoder` yields for the same bytes.

    `more` is called when the pages that have arrived are decoded, except for the samples that the resampler and, of several
    channels, the mixing hold back. It returns further bytes, cut anywhere, or none at the end of the stream, and must not raise.
    No bytes at all are no audio and no error. Raises `UndecodableAudio`, `AudioTooLong` or `InvalidAudio`.
    """
    file = _ArrivingFile(more)
    head = file.peek(HEAD_BYTES)
    if not head:
        return
    if head[:4] != b"OggS" or not _first_packet(head).startswith(b"OpusHead"):
        raise UndecodableAudio("The stream is not Ogg Opus.", param="audio")
    reader = AudioReader(file, OGG)
    yield from mono_at_rate(reader.read(), limits, block_s=0.0, warnings=reader.warnings)


def _first_packet(head: bytes) -> bytes:
    """Return the data after the first page's header and its segment table; it names the codec."""
    return head[PAGE_HEADER_BYTES + head[PAGE_HEADER_BYTES - 1] :] if len(head) >= PAGE_HEADER_BYTES else b""


class _ArrivingFile:
    """A file object that cannot seek, and returns fewer bytes than it is asked for rather than wait for more."""

    def __init__(self, more: Callable[[], bytes]) -> None:
        self._more = more
        self._arrived = b""
        self._over = False

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
        return data
