"""Decoding of PCM that arrives in pieces: mono float32 samples at the model's rate, piece by piece."""

from collections.abc import AsyncIterator
from typing import Protocol

import numpy as np
import soxr

from server.audio.decode import Samples

SAMPLE_BYTES = 2


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
    """`SampleStream` of signed 16-bit little-endian samples. An odd byte at the very end is dropped.

    Resampling looks ahead, so the samples of the last few milliseconds come with the next piece, or from `finish`.
    """

    def __init__(self, source_rate_hz: int, sample_rate_hz: int) -> None:
        self._odd = b""
        self._resampler = None
        if source_rate_hz != sample_rate_hz:
            self._resampler = soxr.ResampleStream(source_rate_hz, sample_rate_hz, 1, dtype="float32", quality="HQ")

    async def decode(self, data: bytes) -> AsyncIterator[Samples]:
        data = self._odd + data
        count = len(data) // SAMPLE_BYTES
        self._odd = data[count * SAMPLE_BYTES :]
        samples = np.frombuffer(data, "<i2", count).astype(np.float32)
        samples /= 32768
        yield self._resampled(samples)

    async def finish(self) -> AsyncIterator[Samples]:
        yield self._resampled(np.empty(0, np.float32), last=True)

    def close(self) -> None:
        self._resampler = None

    def _resampled(self, samples: Samples, *, last: bool = False) -> Samples:
        if self._resampler is None:
            return samples
        resampled: Samples = self._resampler.resample_chunk(samples, last=last)
        return resampled
