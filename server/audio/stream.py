"""Audio that is decoded piece by piece in a decoder of the pool: files as they are read, live streams as they arrive."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Self

from server.audio.messages import END, MORE
from server.audio.raw import RawFormat
from server.audio.sandbox import DecoderLease, DecoderLost, DecoderPool
from server.audio.types import AudioLimits, Samples
from server.errors import NotReady, ServeError, UndecodableAudio

# A live session limits how long its stream may be.
ENDLESS_S = 1e9


class _Stream:
    """A file or stream that is open in a decoder, until its end or the end of a `with` block around it."""

    def __init__(self, lease: DecoderLease) -> None:
        self._lease = lease

    def __enter__(self) -> Self:
        return self

    def close(self) -> None:
        self._lease.close()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


@dataclass(frozen=True)
class Channel:
    """One of `count` channels that are decoded one by one, and may last as long together as audio may; `number` counts from 0."""

    number: int
    count: int


class AudioStream(_Stream):
    """A file, decoded no further than it is read. A file that is not read at once has a decoder to itself.

    A decoder that is lost is no fault of the client: once in every `read` the file is opened again in a fresh one.
    """

    def __init__(self, lease: DecoderLease, data: bytes, limits: AudioLimits, raw: RawFormat | None, channel: int | None) -> None:
        super().__init__(lease)
        self.ended = False
        self._data = data
        self._limits = limits
        self._raw = raw
        self._channel = channel
        self._samples_read = 0
        self._lease.decoder.open_file(data, limits, raw, channel)

    @classmethod
    async def open(
        cls, pool: DecoderPool, data: bytes, client: str = "", raw: RawFormat | None = None, channel: Channel | None = None
    ) -> Self:
        """Open a file in a decoder, for which clients wait in turn; `raw` says how to read bytes that have no header.

        All channels are mixed to one, unless one is asked for. Raises `Overloaded`, or `NotReady` without decoders.
        """
        limits, number = pool.limits, None
        if channel is not None:
            limits, number = replace(limits, max_audio_s=limits.max_audio_s / channel.count), channel.number
        return cls(await pool.lease(client), data, limits, raw, number)

    @property
    def channels(self) -> int:
        """How many channels the file has at its beginning, once something was read."""
        return self._lease.channels

    @property
    def warnings(self) -> tuple[str, ...]:
        """Sentences about what was missing in the file, once it was read to its end."""
        return self._lease.warnings

    async def read(self, count: int) -> Samples:
        """Return the next `count` mono samples at the pool's rate; fewer at the end only, when `ended` is true.

        Raises the errors of `FileDecoder` as soon as the decoder meets them; `UndecodableAudio` for a file that makes two
        decoders crash, or takes far more CPU time than its like; `NotReady` where two decoders are lost in another way; and
        `Overloaded` where the end is not reached and no more decoders can be kept. After an error there is nothing more to read.
        """
        try:
            samples = await self._read(count)
        except DecoderLost as lost:
            samples = await self._read_again(count, lost)
        self._samples_read += len(samples)
        if not self.ended:
            self._lease.keep()
        return samples

    async def _read_again(self, count: int, first: DecoderLost) -> Samples:
        """Read with a fresh decoder, which begins with what was read before."""
        try:
            await self._lease.restart()
            self._lease.decoder.open_file(self._data, self._limits, self._raw, self._channel)
            skipped = 0
            while skipped < self._samples_read:
                skipped += len(await self._read(min(count, self._samples_read - skipped)))
            return await self._read(count)
        except DecoderLost as second:
            self.close()
            raise _failure(first.crashed and second.crashed) from None

    async def _read(self, count: int) -> Samples:
        status, samples = await self._lease.read(count)
        self.ended = status == END
        return samples


class OpusStream(_Stream):
    """`SampleStream` of Ogg Opus, decoded as its pages arrive.

    The samples are those of the whole file. They come up to the end of the last whole page, but for up to 0.12 s that the
    resampler holds back (nearly nothing at the model's own rate).
    """

    def __init__(self, lease: DecoderLease, block_samples: int) -> None:
        super().__init__(lease)
        self._block_samples = block_samples

    @classmethod
    async def open(cls, pool: DecoderPool, client: str = "") -> Self:
        """Open a stream in a decoder, as `AudioStream.open` opens a file."""
        lease = await pool.lease(client)
        lease.keep()
        rate_hz = pool.limits.sample_rate_hz
        lease.decoder.open_stream(AudioLimits(rate_hz, 0.0, ENDLESS_S))
        return cls(lease, rate_hz)

    async def decode(self, data: bytes) -> AsyncIterator[Samples]:
        """Take more bytes, cut anywhere, and yield the samples that they complete, in blocks of up to a second.

        Blocks that the caller does not take come with the next call. Raises `UndecodableAudio` or `InvalidAudio`, and `NotReady`
        where the decoder is lost; then nothing more can be decoded.
        """
        if data:
            async for samples in self._decode(data):
                yield samples

    async def finish(self) -> AsyncIterator[Samples]:
        """Yield the last samples, when nothing more arrives. Raises as `decode` does."""
        async for samples in self._decode(b""):
            yield samples

    async def _decode(self, data: bytes) -> AsyncIterator[Samples]:
        if self._lease.is_reading:
            yield (await self._read())[1]
        if not self._lease.over:
            self._lease.decoder.write(data)
        status = MORE
        while status == MORE:
            status, samples = await self._read()
            if len(samples):
                yield samples

    async def _read(self) -> tuple[int, Samples]:
        try:
            return await self._lease.read(self._block_samples)
        except DecoderLost:
            # The lost child took its part of the stream with it.
            self.close()
            raise _failure(crashed_twice=False) from None


def _failure(crashed_twice: bool) -> ServeError:
    if crashed_twice:
        return UndecodableAudio("The audio could not be decoded: its decoder failed on it.", param="audio")
    return NotReady("The audio decoder was interrupted; try again soon.", retry_after_s=1)
