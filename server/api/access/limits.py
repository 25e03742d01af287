"""The limits of one API key: requests in a minute, requests at a time, seconds of audio in a minute."""

import contextlib
import math
import time
from collections import Counter
from collections.abc import Iterator

from server.api.access.keys import ApiKey
from server.errors import RateLimited

MINUTE_S = 60.0


class Allowance:
    """An amount that comes back evenly within a minute. May be overdrawn once, and is then empty until the debt is paid."""

    def __init__(self, per_minute: float, now_s: float) -> None:
        self._per_minute = per_minute
        self._left = per_minute
        self._updated_s = now_s

    def take(self, amount: float, now_s: float) -> None:
        """Take an amount, even if less is left."""
        self._refill(now_s)
        self._left -= amount

    def wait_s(self, amount: float, now_s: float) -> float:
        """Return the seconds until `amount` is left; 0 if it is."""
        self._refill(now_s)
        return max(0.0, (amount - self._left) / self._per_minute * MINUTE_S)

    def _refill(self, now_s: float) -> None:
        self._left = min(self._per_minute, self._left + (now_s - self._updated_s) / MINUTE_S * self._per_minute)
        self._updated_s = now_s


class KeyUsage:
    """Counts the requests and the audio of keys, by their names."""

    def __init__(self) -> None:
        self._requests: dict[str, Allowance] = {}
        self._audio: dict[str, Allowance] = {}
        self._running: Counter[str] = Counter()

    @contextlib.contextmanager
    def request(self, key: ApiKey) -> Iterator[None]:
        """Count a request, or a WebSocket, from its start to its end. Raises `RateLimited`."""
        limits, now_s = key.limits, time.monotonic()
        if limits.audio_s_per_minute is not None:
            audio = self._audio.setdefault(key.name, Allowance(limits.audio_s_per_minute, now_s))
            if wait_s := audio.wait_s(0, now_s):
                raise _refusal(f"{limits.audio_s_per_minute:g} seconds of audio in a minute", wait_s)
        if limits.concurrent_requests is not None and self._running[key.name] >= limits.concurrent_requests:
            raise _refusal(f"{limits.concurrent_requests} requests at a time", 1)
        if limits.requests_per_minute is not None:
            requests = self._requests.setdefault(key.name, Allowance(limits.requests_per_minute, now_s))
            if wait_s := requests.wait_s(1, now_s):
                raise _refusal(f"{limits.requests_per_minute:g} requests in a minute", wait_s)
            requests.take(1, now_s)
        self._running[key.name] += 1
        try:
            yield
        finally:
            self._running[key.name] -= 1

    def add_audio(self, client: str, audio_s: float) -> None:
        """Count audio of the client with this name, once it is known how much there is."""
        if (allowance := self._audio.get(client)) is not None:
            allowance.take(audio_s, time.monotonic())


def _refusal(limit: str, wait_s: float) -> RateLimited:
    return RateLimited(f"This API key may be used for {limit}.", retry_after_s=math.ceil(wait_s))
