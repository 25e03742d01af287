"""How much of a GPU's memory some public models and their slots take: a table of docs/gpu.md, reckoned and not measured.

python -m export.gpu_memory_table
"""

from collections.abc import Iterator
from dataclasses import replace

from export.random_models import QWEN2_500M, SMOLLM2_135M
from kernels.markdown import table
from models.llms.llama import LlamaConfig
from models.runtimes.cuda.gpu_memory import slot_bytes

POSITIONS = (1024, 4096, 8192)
SLOTS = (8, 32, 128)
WEIGHT_BYTES = 2


LLAMA_1B = replace(
    SMOLLM2_135M,
    layers=16,
    embedding_size=2048,
    heads=32,
    key_value_heads=8,
    feed_forward_size=8192,
    vocabulary_size=128_256,
)
LLAMA_8B = replace(LLAMA_1B, layers=32, embedding_size=4096, head_size=128, feed_forward_size=14_336)
MODELS = {"SmolLM2-135M": SMOLLM2_135M, "Qwen2.5-0.5B": QWEN2_500M, "Llama-3.2-1B": LLAMA_1B, "Llama-3.1-8B": LLAMA_8B}
"""By their sizes, as public configurations have them; nothing else of a shape counts here."""


def weight_bytes(model: LlamaConfig) -> int:
    """Of the layers and the head in bfloat16; input embeddings are read on the host."""
    attention = (2 * model.heads + 2 * model.key_value_heads) * model.head_size
    layer = model.embedding_size * (attention + 3 * model.feed_forward_size)
    return WEIGHT_BYTES * (model.layers * layer + model.vocabulary_size * model.embedding_size)


def rows() -> Iterator[list[str]]:
    for name, model in MODELS.items():
        for positions in POSITIONS:
            one = slot_bytes(model.layers, model.key_value_heads, model.head_size, positions)
            together = [f"{slots * one / 1e9:.2f}" for slots in SLOTS]
            yield [name, f"{weight_bytes(model) / 1e9:.2f}", f"{positions:,}", f"{one / 1e6:.1f} MB", *together]


def memory_table() -> str:
    heading = ["LLM", "weights, GB", "positions", "a slot", *(f"{slots} slots, GB" for slots in SLOTS)]
    return table(heading, list(rows()))


if __name__ == "__main__":
    print(memory_table())
