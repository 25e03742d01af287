"""How much of a GPU's memory some public models and their slots take: a table of docs/gpu.md, reckoned and not measured.

python -m export.gpu_memory_table
"""

from collections.abc import Iterator
from dataclasses import dataclass

from kernels.markdown import table
from models.gpu_memory import slot_bytes

POSITIONS = (1024, 4096, 8192)
SLOTS = (8, 32, 128)
WEIGHT_BYTES = 2


@dataclass(frozen=True)
class PublicModel:
    """A Llama-like model's shape, as its public configuration has it."""

    name: str
    layers: int
    embedding_size: int
    heads: int
    key_value_heads: int
    head_size: int
    feed_forward_size: int
    vocabulary_size: int

    @property
    def weight_bytes(self) -> int:
        """Of the layers and the head in bfloat16; input embeddings are read on the host."""
        attention = (2 * self.heads + 2 * self.key_value_heads) * self.head_size
        layer = self.embedding_size * (attention + 3 * self.feed_forward_size)
        return WEIGHT_BYTES * (self.layers * layer + self.vocabulary_size * self.embedding_size)

    def slot_bytes(self, positions: int) -> int:
        return slot_bytes(self.layers, self.key_value_heads, self.head_size, positions)


MODELS = (
    PublicModel("SmolLM2-135M", 30, 576, 9, 3, 64, 1536, 49152),
    PublicModel("Qwen2.5-0.5B", 24, 896, 14, 2, 64, 4864, 151936),
    PublicModel("Llama-3.2-1B", 16, 2048, 32, 8, 64, 8192, 128256),
    PublicModel("Llama-3.1-8B", 32, 4096, 32, 8, 128, 14336, 128256),
)


def rows() -> Iterator[list[str]]:
    for model in MODELS:
        for positions in POSITIONS:
            one = model.slot_bytes(positions)
            together = [f"{slots * one / 1e9:.2f}" for slots in SLOTS]
            yield [model.name, f"{model.weight_bytes / 1e9:.2f}", f"{positions:,}", f"{one / 1e6:.1f} MB", *together]


def memory_table() -> str:
    heading = ["LLM", "weights, GB", "positions", "a slot", *(f"{slots} slots, GB" for slots in SLOTS)]
    return table(heading, list(rows()))


if __name__ == "__main__":
    print(memory_table())
