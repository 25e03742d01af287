"""Keep what was computed of an utterance that goes on, for encoders whose windows do not see each other (Qwen3-ASR)."""

from models.encoders.windows import KeptWindows
from models.protocols import Float32, SlotState


class KeptSpeech:
    """The states of an utterance's finished windows, and the LLM's keys and values of the prompt up to the last of these.

    Both are found again only for an input with the same bits, so that nothing is ever computed from anything outdated.
    """

    def __init__(self) -> None:
        self.windows: KeptWindows = {}
        self._prompt = b""
        self._state: SlotState | None = None

    def find(self, prompt: Float32) -> SlotState | None:
        """Return the keys and values of the beginning of a prompt [positions, embedding_size], if they are there."""
        state = self._state
        return state if state and prompt[: state.length].tobytes() == self._prompt else None

    def store(self, prompt: Float32, state: SlotState) -> None:
        """Keep the keys and values of the beginning of a prompt, in place of those that were kept before."""
        self._prompt, self._state = prompt[: state.length].tobytes(), state
