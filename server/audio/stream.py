"""Audio that is decoded bit by bit in a child of the decode pool: files as they are read, live streams as they arrive."""

from collections.abc import AsyncIterator
from types import TracebackType
from typing import Self

from server.audio.decode import AudioLimits, Samples
from server.audio.sandbox import DecodePool, Lease
from server.audio.worker import END, MORE

# How long a live stream may be is for its session to say.
ENDLESS_S = 1e9


class _Stream:
    """Something that is open in a child, until its end or the end of a `with` block around it."""

    def __init__(self, lease: Lease) -> None:
        self._lease = lease

    def __enter__(self) -> Self:
        return self

    def close(self) -> None:
        self._lease.close()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class AudioStream(_Stream):
    """A file, decoded no further than it is read. What is not read in one go has a child to itself."""

    def __init__(self, lease: Lease) -> None:
        super().__init__(lease)
        self.ended = False

    @classmethod
    async def open(cls, pool: DecodePool, data: bytes, client: str = "") -> Self:
        """Open a file for `client`, among whose like decoders are shared. Raises `Overloaded`, or `NotReady` with no child."""
        lease = await pool.lease(client)
        lease.child.open_file(data, pool.limits)
        return cls(lease)

    async def read(self, count: int) -> Samples:
        """The next `count` mono samples at the pool's rate; fewer at the end only, when `ended` is true.

        Raises the errors of `decode_blocks` as soon as the decoder meets them, and `Overloaded` where the end is not reached
        and no more children can be kept. After an error there is nothing more to read.
        """
        status, samples = await self._lease.read(count)
        self.ended = status == END
        if not self.ended:
            self._lease.keep()
        return samples


class OpusStream(_Stream):
    """`SampleStream` of Ogg Opus, decoded as its pages arrive.

    The samples are those of the whole file. They are told up to the end of the last whole page, but for less than 0.12 s that
    the resampler holds back, and nearly nothing at the model's own rate.
    """

    def __init__(self, lease: Lease, block_samples: int) -> None:
        super().__init__(lease)
        self._block_samples = block_samples

    @classmethod
    async def open(cls, pool: DecodePool, client: str = "") -> Self:
        """Open a stream for `client`, as in `AudioStream`. Raises `Overloaded`, or `NotReady` with no child."""
        lease = await pool.lease(client)
        lease.keep()
        rate_hz = pool.limits.sample_rate_hz
        lease.child.open_stream(AudioLimits(rate_hz, 0.0, ENDLESS_S))
        return cls(lease, rate_hz)

    async def decode(self, data: bytes) -> AsyncIterator[Samples]:
        """Take more bytes, cut anywhere, and give what can be told already, in blocks of up to a second.

        What was not taken of it comes with the next call. Raises `UndecodableAudio` or `InvalidAudio`, and then nothing more
        can be decoded.
        """
        if data:
            async for samples in self._decode(data):
                yield samples

    async def finish(self) -> AsyncIterator[Samples]:
        """The rest, where nothing more arrives. Raises as `decode` does."""
        async for samples in self._decode(b""):
            yield samples

    async def _decode(self, data: bytes) -> AsyncIterator[Samples]:
        if self._lease.is_reading:
            _, samples = await self._lease.read(self._block_samples)
            yield samples
        if not self._lease.over:
            self._lease.child.write(data)
        status = MORE
        while status == MORE:
            status, samples = await self._lease.read(self._block_samples)
            if len(samples):
                yield samples
