"""The memory that a bundle's models take on a CPU, estimated from its manifest."""

from models.bundle.schema import Manifest
from models.bundle.sections import EncoderDecoderSection

FLOAT32_BYTES = 4
# The process with its libraries, and what a request computes with.
BASE_BYTES = 300 * 2**20


def slot_bytes(manifest: Manifest) -> int:
    """Return the memory of one request's keys and values, in every decoder, on a CPU."""
    total = 0
    if llm := manifest.llm:
        positions = llm.max_positions + (llm.max_states if isinstance(llm, EncoderDecoderSection) else 0)
        total += 2 * llm.layers * llm.key_value_heads * llm.head_size * positions * FLOAT32_BYTES
    if speech := manifest.speech_decoder:
        total += 2 * speech.layers * speech.embedding_size * (speech.max_positions + speech.max_states) * FLOAT32_BYTES
    return total


def loaded_bytes(manifest: Manifest, slots: int) -> int:
    """Return an estimate of the memory that the models take, in a process of their own with `slots` slots.

    A search has slots of its own.
    """
    search = manifest.projector.search if manifest.projector else None
    slots += search.hypotheses if search else 0
    return BASE_BYTES + sum(entry.bytes for entry in manifest.files.values()) + slots * slot_bytes(manifest)
