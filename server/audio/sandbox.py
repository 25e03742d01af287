"""Audio decoding in warm child processes, so that hostile bytes can neither crash, hang nor exhaust the server.

Each open file or stream has a decoder of its own while it is open. A decoder that dies is replaced, whether it was idle or in
use. There is no in-process fallback: where no decoder can be started, requests wait for one and then fail.
"""

import asyncio
import logging
import struct
from collections.abc import Coroutine
from typing import Any, Self, TypeVar

import numpy as np

from server.audio.messages import (
    CHANNELS,
    CLOSE,
    END,
    ERROR,
    FILE,
    PROTECTION,
    READ,
    REPLY,
    REQUEST,
    STREAM,
    TEXTS,
    WARNING,
    WRITE,
    pack_opening,
)
from server.audio.raw import RawFormat
from server.audio.types import AudioLimits, Samples
from server.child_process import START_TIMEOUT_S, ChildFailed, ChildProcess
from server.errors import AudioTooLong, AudioTooShort, InvalidAudio, NotReady, Overloaded, ServeError, UndecodableAudio
from server.fair_semaphore import FairSemaphore

logger = logging.getLogger(__name__)

RESTART_PAUSE_S = 1.0
MAX_MESSAGE_BYTES = 1024
MAX_WARNINGS = 8
MAX_DIGITS = 9
ERRORS: dict[str, type[ServeError]] = {kind.code: kind for kind in (AudioTooShort, AudioTooLong, InvalidAudio, UndecodableAudio)}

Result = TypeVar("Result")


class DecoderLost(Exception):
    """A decoder ended or hung while it was in use, which may be no fault of the audio; `crashed` says whether its code failed."""

    def __init__(self, crashed: bool) -> None:
        super().__init__()
        self.crashed = crashed


class Decoder:
    """A child process that decodes, and the file or stream that is open in it.

    `channels` is how many a file has, once it was read; `warnings` are about a file that has ended.
    """

    def __init__(self, process: ChildProcess, timeout_s: float) -> None:
        self.process = process
        self.warnings: tuple[str, ...] = ()
        self.channels = 0
        self.missing_protection = ""
        self._timeout_s = timeout_s

    @classmethod
    async def start(cls, memory_bytes: int, timeout_s: float) -> Self:
        """Start a decoder of which each `read` may take `timeout_s`. Raises `ChildFailed`."""
        decoder = cls(await ChildProcess.start("server.audio.worker", str(memory_bytes), str(timeout_s)), timeout_s)
        try:
            status, missing = await decoder._reply(0)
            if status != PROTECTION:
                raise ChildFailed("it did not report its protection")
        except BaseException:
            decoder.process.kill()
            await decoder.process.wait()
            raise
        decoder.missing_protection = missing.decode("utf-8", "replace")
        return decoder

    def open_file(self, data: bytes, limits: AudioLimits, raw: RawFormat | None = None, channel: int | None = None) -> None:
        """Open a file, or one channel of it; `raw` says how to read bytes that have no header."""
        self._open(FILE, data, pack_opening(limits, raw, channel))

    def open_stream(self, limits: AudioLimits) -> None:
        self._open(STREAM, b"", pack_opening(limits, None))

    def write(self, data: bytes) -> None:
        """Add bytes to the stream that is open; none end it."""
        self.process.write(REQUEST.pack(WRITE, len(data)), data)

    def close(self) -> None:
        """Forget the file or stream that is open. No `read` may be going on."""
        self.process.write(REQUEST.pack(CLOSE, 0))

    async def read(self, count: int) -> tuple[int, Samples]:
        """Return a status of `server.audio.messages` and the next samples: `count` with `MORE`, fewer with `DRY` and `END`.

        Raises the error of audio that cannot be decoded, after which nothing is open, or `ChildFailed`.
        """
        self.process.write(REQUEST.pack(READ, count))
        while True:
            status, payload = await self._reply(4 * count)
            if status == CHANNELS:
                self.channels = _read_number(payload)
            elif status != WARNING:
                break
            elif len(self.warnings) < MAX_WARNINGS:
                self.warnings += (payload.decode("utf-8", "replace"),)
        if status == ERROR:
            code, _, message = payload.decode("utf-8", "replace").partition("\n")
            raise ERRORS.get(code, UndecodableAudio)(message, param="audio")
        return status, np.frombuffer(payload, dtype="<f4")

    async def _reply(self, most_bytes: int) -> tuple[int, bytes]:
        status, size = REPLY.unpack(await self.process.read(REPLY.size, self._timeout_s))
        if size > (MAX_MESSAGE_BYTES if status in TEXTS else most_bytes) or (status not in TEXTS and size % 4):
            raise ChildFailed("it announced an answer that it may not give")
        return status, await self.process.read(size, self._timeout_s)

    def _open(self, kind: int, body: bytes, opening: bytes) -> None:
        self.warnings, self.channels = (), 0
        self.process.write(REQUEST.pack(kind, len(opening) + len(body)), opening, body)


def _read_number(payload: bytes) -> int:
    """Return the number that a child sent. Raises `ChildFailed`."""
    if not payload.isdigit() or len(payload) > MAX_DIGITS:
        raise ChildFailed("it announced an answer that it may not give")
    return int(payload)


class DecoderPool:
    """`workers` decoders for files that are decoded at once, and others for audio that takes longer.

    Clients wait for one of the `workers` places in turn (`FairSemaphore`), at most `max_waiting` requests in all. A file that is
    not at its end after its first read, or a live stream, leaves its place and keeps its decoder, and another is started for the
    place; at most `max_streams` are kept. `timeout_s` is how long one read may take. Belongs to one event loop; `start` before
    use, `close` after.
    """

    def __init__(
        self, workers: int, limits: AudioLimits, *, timeout_s: float, memory_bytes: int, max_waiting: int, max_streams: int
    ) -> None:
        self.limits = limits
        self.restarts = 0
        self._workers = workers
        self._timeout_s = timeout_s
        self._memory_bytes = memory_bytes
        self._max_streams = max_streams
        refusal = "Too many requests are waiting for their audio to be decoded; try again soon."
        self._places = FairSemaphore(workers, max_waiting, refusal)
        self._starting = 0
        self._kept: set[DecoderLease] = set()
        # The decoders that can be used. Of those that are idle some may have died since.
        self._decoders: set[Decoder] = set()
        self._idle: asyncio.LifoQueue[Decoder] = asyncio.LifoQueue()
        # One task per child process that waits for its end, so that none stays a zombie.
        self._watches: dict[Decoder, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closed = False

    @property
    def process_ids(self) -> set[int]:
        """The decoders that can be used now."""
        return {decoder.process.process_id for decoder in self._decoders}

    @property
    def missing_protection(self) -> str:
        """The names of the kernel's protections that decoders here have to do without; empty where there are all."""
        return next(iter(self._decoders)).missing_protection if self._decoders else ""

    async def start(self) -> None:
        """Start the decoders and wait until each is warm. Raises `ChildFailed` where one cannot run here."""
        try:
            await asyncio.gather(*(self.track(self._start_idle()) for _ in range(self._workers)))
        except BaseException:
            await self.close()
            raise
        if missing := self.missing_protection:
            logger.warning("Audio is decoded without %s, which this kernel or container does not give.", missing)

    async def close(self) -> None:
        """Kill all decoders. Nothing may be decoded afterwards."""
        self._closed = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._decoders.clear()
        for decoder in self._watches:
            decoder.process.kill()
        await asyncio.gather(*self._watches.values())

    async def lease(self, client: str = "") -> "DecoderLease":
        """Wait for a decoder to open something in. Raises `Overloaded`, or `NotReady` where none can be started."""
        await self._places.acquire(client)
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                while (decoder := await self._idle.get()) not in self._decoders:
                    pass
        except BaseException as error:
            self._places.release(client)
            if isinstance(error, TimeoutError):
                raise NotReady("No audio decoder is available; try again soon.", retry_after_s=5) from None
            raise
        return DecoderLease(self, decoder, client)

    def keep(self, lease: "DecoderLease") -> None:
        """Move a lease from its place to the kept ones. Raises `Overloaded` where too many are kept."""
        if lease in self._kept:
            return
        if len(self._kept) >= self._max_streams:
            raise Overloaded("Too many recordings and streams are being decoded; try again later.", retry_after_s=5)
        self._kept.add(lease)
        self._places.release(lease.client)
        self.track(self._fill_up())

    def release(self, lease: "DecoderLease") -> None:
        """Take back a decoder in which nothing is open, or one that was discarded, and its place."""
        has_place = lease not in self._kept
        self._kept.discard(lease)
        if lease.decoder not in self._decoders:
            # The client holds its place until there is another decoder, so that breaking them gains it no turns.
            self.track(self._replace(lease.client, has_place))
            return
        # Some more than are needed stay, so that streams that come and go need not each wait for a start.
        if self._decoders_for_places > 2 * self._workers:
            self._discard(lease.decoder)
        else:
            self._idle.put_nowait(lease.decoder)
        if has_place:
            self._places.release(lease.client)

    async def discard_broken(self, decoder: Decoder) -> str:
        """Kill a decoder that cannot be used any more; return how it ended."""
        self.restarts += decoder in self._decoders
        self._discard(decoder)
        return await decoder.process.wait()

    async def start_decoder(self) -> Decoder:
        """Start a decoder that is in use from the beginning. Raises `ChildFailed`."""
        decoder = await Decoder.start(self._memory_bytes, self._timeout_s)
        self._decoders.add(decoder)
        self._watches[decoder] = asyncio.create_task(self._watch(decoder))
        return decoder

    def track(self, work: Coroutine[Any, Any, Result]) -> asyncio.Task[Result]:
        """Run a task that goes on when its caller leaves, until `close`."""
        task = asyncio.create_task(work)
        # The loop itself holds tasks weakly.
        self._tasks.add(task)
        task.add_done_callback(self._forget)
        return task

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        # The error of a task whose caller has left is looked at here.
        if not task.cancelled():
            task.exception()

    def _discard(self, decoder: Decoder) -> None:
        self._decoders.discard(decoder)
        decoder.process.kill()

    async def _watch(self, decoder: Decoder) -> None:
        """Wait for the end of a decoder, and replace one that died by itself."""
        ending = await decoder.process.wait()
        del self._watches[decoder]
        if decoder in self._decoders:
            self._decoders.discard(decoder)
            self.restarts += 1
            logger.warning("A decode process that was not at work ended: %s.", ending)
            self.track(self._fill_up())

    async def _replace(self, client: str, has_place: bool) -> None:
        try:
            await self._fill_up()
        finally:
            if has_place:
                self._places.release(client)

    @property
    def _decoders_for_places(self) -> int:
        """How many decoders there are beside those of kept leases, of which some may have lost theirs."""
        return len(self._decoders) - sum(lease.decoder in self._decoders for lease in self._kept)

    async def _fill_up(self) -> None:
        """Start decoders until there is one for each place, however long that takes."""
        while not self._closed and self._decoders_for_places + self._starting < self._workers:
            self._starting += 1
            try:
                await self._start_idle()
            except ChildFailed:
                logger.exception("A decode process could not be started; trying again.")
                await asyncio.sleep(RESTART_PAUSE_S)
            finally:
                self._starting -= 1

    async def _start_idle(self) -> None:
        self._idle.put_nowait(await self.start_decoder())


class DecoderLease:
    """A decoder, to open one file or stream in. It goes back after the last `read` or `close`; then the lease is `over`.

    `channels` is how many a file has, once it was read, and `warnings` are those of one that was read to its end.
    """

    def __init__(self, pool: DecoderPool, decoder: Decoder, client: str) -> None:
        self.decoder = decoder
        self.client = client
        self.over = False
        self.channels = 0
        self.warnings: tuple[str, ...] = ()
        self._pool = pool
        self._released = False
        self._reading: asyncio.Task[tuple[int, Samples]] | None = None

    def keep(self) -> None:
        """Announce that this takes longer than one read. Raises `Overloaded`, and gives the decoder back."""
        if self.over:
            return
        try:
            self._pool.keep(self)
        except Overloaded:
            self.close()
            raise

    @property
    def is_reading(self) -> bool:
        """Whether a `read` goes on whose caller has left. The next `read` returns its samples."""
        return self._reading is not None

    async def read(self, count: int) -> tuple[int, Samples]:
        """Return a status and samples as `Decoder.read` does; after the end there are none.

        Raises the errors of `Decoder.read`, `UndecodableAudio` for audio that used up its CPU time, or `DecoderLost`, after
        which only `restart` and `close` may follow.
        """
        if self._reading is None:
            if self.over:
                return END, np.zeros(0, np.float32)
            # A client that leaves must not cost a decoder: a read is short and bounded, and goes on to its end.
            self._reading = self._pool.track(self._read(count))
        try:
            answer = await asyncio.shield(self._reading)
        except (ServeError, DecoderLost):
            self._reading = None
            raise
        self._reading = None
        return answer

    async def restart(self) -> None:
        """Go on with a fresh decoder, in which nothing is open. Raises `DecoderLost`."""
        try:
            self.decoder = await self._pool.start_decoder()
        except ChildFailed:
            raise DecoderLost(crashed=False) from None

    def close(self) -> None:
        """Give the decoder back, as soon as it has answered what it was asked."""
        if self.over:
            return
        self.over = True
        if self._reading is None:
            self.decoder.close()
            self._release()
        else:
            self._pool.track(self._close_after(self._reading))

    async def _close_after(self, reading: asyncio.Task[tuple[int, Samples]]) -> None:
        await asyncio.wait([reading])
        if not self._released:
            self.decoder.close()
            self._release()

    async def _read(self, count: int) -> tuple[int, Samples]:
        try:
            status, samples = await self.decoder.read(count)
        except ServeError:
            self._release()
            raise
        except (ChildFailed, struct.error) as error:
            ending = await self._pool.discard_broken(self.decoder)
            logger.warning("A decode process was replaced: %s; %s.", error, ending)
            if self.decoder.process.reached_cpu_limit:
                self._release()
                message = "The audio could not be decoded: it takes too long for what it holds."
                raise UndecodableAudio(message, param="audio") from None
            raise DecoderLost(self.decoder.process.crashed) from None
        self.channels = self.decoder.channels
        if status == END:
            self.warnings = self.decoder.warnings
            self._release()
        return status, samples

    def _release(self) -> None:
        self.over = self._released = True
        self._pool.release(self)
