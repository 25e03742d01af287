"""Audio that is decoded bit by bit in a child of the decode pool: files as they are read, live streams as they arrive."""

from collections.abc import AsyncIterator
from types import TracebackType
from typing import Self

from server.audio import AudioLimits, Samples
from server.decode_pool import DecodePool, Lease
from server.decode_worker import END, MORE


class _Stream:
    """Something that is open in a child, until its end or the end of a `with` block around it."""

    def __init__(self, lease: Lease) -> None:
        self._lease = lease

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Give the child back, whatever it is still at."""
        self._lease.close()


class AudioStream(_Stream):
    """A file, decoded no further than it is read. What is not read in one go has a child to itself."""

    def __init__(self, lease: Lease) -> None:
        super().__init__(lease)
        self.ended = False

    @classmethod
    async def open(cls, pool: DecodePool, data: bytes) -> Self:
        """Raises `Overloaded`, or `NotReady` with no child."""
        lease = await pool.lease()
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
    """An Ogg Opus stream that is still arriving, decoded as its pages do."""

    def __init__(self, lease: Lease, block_samples: int) -> None:
        super().__init__(lease)
        self._block_samples = block_samples

    @classmethod
    async def open(cls, pool: DecodePool, max_audio_s: float) -> Self:
        """One of at most so many seconds. Raises `Overloaded`, or `NotReady` with no child."""
        lease = await pool.lease()
        lease.keep()
        lease.child.open_stream(AudioLimits(pool.limits.sample_rate_hz, 0.0, max_audio_s))
        return cls(lease, pool.limits.sample_rate_hz)

    async def write(self, data: bytes) -> AsyncIterator[Samples]:
        """Take the next bytes, cut anywhere, and give what can be decoded now: mono blocks at the pool's rate of up to a second.

        All blocks of all calls are the samples of the whole file. They end where the last whole page does, but for less than
        0.12 s that the resampler holds back, and nearly nothing at the model's own rate. A block that is not taken comes with
        the next call. Raises `UndecodableAudio`, `AudioTooLong` or `InvalidAudio`, after which nothing more can be decoded.
        """
        if data:
            async for samples in self._decode(data):
                yield samples

    async def finish(self) -> AsyncIterator[Samples]:
        """The rest, where nothing more arrives; call it once. Raises as `write` does."""
        async for samples in self._decode(b""):
            yield samples

    async def _decode(self, data: bytes) -> AsyncIterator[Samples]:
        if not self._lease.over:
            self._lease.child.write(data)
        status = MORE
        while status == MORE:
            status, samples = await self._lease.read(self._block_samples)
            if len(samples):
                yield samples
