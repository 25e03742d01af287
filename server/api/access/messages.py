"""Messages of WebSockets on their way: together they may hold so much memory, shared between clients, and each has to get on."""

from server.api.access.shares import Shares
from server.api.access.uploads import LEAST_PROGRESS_BYTES

# Shorter messages are not counted: they are many, and the limit on connections bounds them.
SMALL_MESSAGE_BYTES = 64 * 1024
MEMORY_BYTES = 64 * 2**20


class MessageMemory:
    """The memory for the unfinished messages of all WebSockets of one server.

    A message gets on if 4 KiB of it come in `timeout_s`, as a body of an upload does.
    """

    def __init__(self, timeout_s: float) -> None:
        self.shares = Shares(MEMORY_BYTES)
        self.timeout_s = timeout_s


class UnfinishedMessage:
    """The bytes that one WebSocket of a client has received of a message whose end is missing."""

    def __init__(self, memory: MessageMemory, client: str) -> None:
        self._memory = memory
        self._client = client
        self._held_bytes = 0
        self._bytes = self._marked_bytes = 0
        self._marked_s = 0.0

    def hold(self, count: int, now_s: float) -> bool:
        """Take note of how many bytes there are at this moment; return whether there is room for them."""
        if not self._bytes or count < self._bytes or count - self._marked_bytes >= LEAST_PROGRESS_BYTES:
            self._marked_bytes, self._marked_s = count, now_s
        self._bytes = count
        more = max(0, count - SMALL_MESSAGE_BYTES) - self._held_bytes
        if more > 0 and not self._memory.shares.take(self._client, more):
            return False
        if more < 0:
            self._memory.shares.give_back(self._client, -more)
        self._held_bytes += more
        return True

    def wait(self, now_s: float) -> None:
        """Take note that at this moment the server was behind, and not the peer."""
        self._marked_s = now_s

    def has_stalled(self, now_s: float) -> bool:
        """Return whether the message has not got on for too long."""
        return self._held_bytes > 0 and now_s - self._marked_s >= self._memory.timeout_s

    def close(self) -> None:
        """Give the room back."""
        self.hold(0, 0.0)
