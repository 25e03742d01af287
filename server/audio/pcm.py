"""Decoding of PCM that arrives in pieces: mono float32 samples at the model's rate, piece by piece."""

from collections.abc import AsyncIterator
from typing import Any, Protocol

import numpy as np
import soxr

from server.audio.containers import ID3_MAGIC, MP3, detect_header
from server.audio.types import Samples
from server.audio.wave_header import MAGIC_BYTES, PcmFormat, may_be_wave, read_header
from server.errors import UndecodableAudio


class SampleStream(Protocol):
    """Bytes in, samples at the model's rate out. The samples do not depend on how the bytes are cut into pieces."""

    def decode(self, data: bytes) -> AsyncIterator[Samples]:
        """Take more bytes, and yield the samples that they complete. Raises a `ServeError` for bytes that are no audio."""
        ...

    def finish(self) -> AsyncIterator[Samples]:
        """Yield the last samples. Raises as `decode` does."""
        ...

    def close(self) -> None:
        """Free the decoder, finished or not."""
        ...


class PcmStream:
    """`SampleStream` of samples without a header. A piece of a frame at the very end is dropped.

    Clients send whole WAV files where samples are expected: a piece that begins like one is read as one, up to the end of its
    samples, and its header says how. Another kind of file at the very beginning is refused, since as samples it would be noise.
    Resampling looks ahead, so the samples of the last few milliseconds come with the next piece, or from `finish`.
    """

    def __init__(self, format: PcmFormat, sample_rate_hz: int) -> None:
        self._sample_rate_hz = sample_rate_hz
        self._resampler: Any = None
        self._open(format)
        # Bytes that may be the header of a WAV file, until it is whole.
        self._header: bytes | None = None
        # Bytes of samples that are left of a WAV file; None where there is no file, or its end is not known.
        self._left: int | None = None
        self._is_first = True

    async def decode(self, data: bytes) -> AsyncIterator[Samples]:
        if self._is_first and data:
            self._is_first = False
            _refuse_file(data)
        if self._header is None and data and not self._odd and may_be_wave(data):
            self._header = b""
        if self._header is None:
            yield self._decode(data)
            return
        self._header += data
        if not may_be_wave(self._header):
            data, self._header = self._header, None
            yield self._decode(data)
        elif (header := read_header(self._header)) is not None:
            yield self._finish()
            data, self._header = self._header[header.size :], None
            self._left = header.data_bytes
            self._open(header.format)
            yield self._decode(data)

    async def finish(self) -> AsyncIterator[Samples]:
        if self._header is not None and len(self._header) < MAGIC_BYTES:
            data, self._header = self._header, None
            yield self._decode(data)
        yield self._finish()

    def close(self) -> None:
        self._resampler = None

    def _open(self, format: PcmFormat) -> None:
        self._format = format
        self._odd = b""
        self._resampler = None
        if format.sample_rate_hz != self._sample_rate_hz:
            self._resampler = soxr.ResampleStream(format.sample_rate_hz, self._sample_rate_hz, 1, dtype="float32", quality="HQ")

    def _decode(self, data: bytes) -> Samples:
        if self._left is not None:
            # Behind the samples of a file there are tags.
            data = data[: self._left]
            self._left -= len(data)
        data = self._odd + data
        whole = len(data) - len(data) % self._format.frame_bytes
        self._odd = data[whole:]
        return self._resampled(self._format.decode(data[:whole]))

    def _finish(self) -> Samples:
        return self._resampled(np.empty(0, np.float32), last=True)

    def _resampled(self, samples: Samples, *, last: bool = False) -> Samples:
        if self._resampler is None:
            return samples
        resampled: Samples = self._resampler.resample_chunk(samples, last=last)
        return resampled


def _refuse_file(data: bytes) -> None:
    """Raise `UndecodableAudio` if the first bytes of a stream are those of a file that holds no plain samples."""
    if may_be_wave(data):
        return
    container = MP3 if data.startswith(ID3_MAGIC) else detect_header(data)
    if container is not None:
        message = f"The audio begins as a file does ({container.name}), and samples were expected: send samples, or a WAV file."
        raise UndecodableAudio(message, param="audio")
