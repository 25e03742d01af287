"""The part of `bundle.json` about an LLM that reads its prompt with an encoder of its own (T5's kind)."""

from pydantic import NonNegativeInt, PositiveInt

from models.bundle.schema import FileName, GraphValues, LlmSection, Shapes


class EncoderDecoderSection(LlmSection):
    """An LLM of encoder and decoder: `memory_graph` reads a prompt of at most `max_states` positions, `graph` attends to that.

    An answer begins behind `start_token` at position 0 of its slot, so `max_positions` are those of the answer alone.
    """

    memory_graph: FileName
    max_states: PositiveInt
    start_token: NonNegativeInt

    def memory_values(self, shapes: Shapes) -> GraphValues:
        """Return the memory graph's own values, as `graph_values` does the graph's."""
        raise NotImplementedError

    def named_files(self) -> set[str]:
        return super().named_files() | {self.memory_graph}
