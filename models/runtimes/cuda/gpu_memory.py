"""The GPU memory that a server takes, estimated from its bundle before anything is loaded."""

from collections.abc import Mapping
from dataclasses import dataclass

from models.bundle.io import Bundle
from models.bundle.sections import LlmSection, PlanSection
from models.runtimes.cuda.gpu import aligned

CONTEXT_BYTES = 2 * 2**30
"""Set aside for the CUDA context, the libraries' code and workspaces, captured graphs, and what the encoder and the adapter keep
between their kernels without a plan. A guess: this has not been measured."""
FLOAT_BYTES, INDEX_BYTES = 4, 8


def slot_bytes(layers: int, key_value_heads: int, head_size: int, positions: int, bytes_per_number: int = 2) -> int:
    """Keys and values of one slot, in bfloat16 by default."""
    return 2 * layers * key_value_heads * positions * head_size * bytes_per_number


def step_bytes(llm: LlmSection, plan: PlanSection) -> int:
    """Memory for the inputs and logits of the largest step of the LLM's plan."""
    largest = [{name: sizes[-1] for name, sizes in profile.items()} for profile in plan.profiles]
    logits = max(step["wanted"] for step in largest) * llm.vocabulary_size * FLOAT_BYTES
    return logits + max(_input_bytes(step["rows"], step["tokens"], step["wanted"], llm.embedding_size) for step in largest)


def _input_bytes(rows: int, tokens: int, wanted: int, embedding_size: int) -> int:
    indices = [rows * tokens, rows, rows, 2 * wanted]
    sizes = [rows * tokens * embedding_size * FLOAT_BYTES, *(INDEX_BYTES * count for count in indices)]
    return sum(map(aligned, sizes))


@dataclass(frozen=True)
class MemoryBudget:
    """The bytes that `slots` slots and everything beside them take.

    `activations` are between the LLM's kernels, 0 where its plan does not say. `step` is the inputs and logits of a step.
    `prefixes` are the kept beginnings of prompts, which lie on the GPU too.
    """

    slots: int
    slot_bytes: int
    llm: int
    activations: int
    step: int
    encoder: int
    adapter: int
    prefixes: int
    context: int = CONTEXT_BYTES

    @property
    def beside_slots_bytes(self) -> int:
        return self.llm + self.activations + self.step + self.encoder + self.adapter + self.prefixes + self.context

    @property
    def total_bytes(self) -> int:
        return self.beside_slots_bytes + self.slots * self.slot_bytes

    def fitting_slots(self, memory_bytes: int) -> int:
        """Return how many slots fit into `memory_bytes`."""
        return max(0, memory_bytes - self.beside_slots_bytes) // self.slot_bytes

    def __str__(self) -> str:
        """Return the budget in one line, for the operator."""
        items = {
            f"{self.slots} slots of {gigabytes(self.slot_bytes)}": self.slots * self.slot_bytes,
            "LLM": self.llm,
            "its activations": self.activations,
            "a step's inputs and logits": self.step,
            "encoder": self.encoder,
            "adapter": self.adapter,
            "kept prefixes": self.prefixes,
            "CUDA and libraries (a guess)": self.context,
        }
        parts = [f"{name} {gigabytes(size)}" for name, size in items.items() if size]
        unknown = [] if self.activations else ["the LLM's activations, which its plan does not say"]
        return f"{gigabytes(self.total_bytes)}: {', '.join([*parts, *unknown])}"


def estimate_memory(
    bundle: Bundle,
    plans: Mapping[str, PlanSection],
    *,
    slots: int,
    prefix_bytes: int,
    bytes_per_number: int = 2,
) -> MemoryBudget:
    """Return the memory that a server with these plans, by part, takes on a GPU.

    An encoder without a plan is run by ONNX Runtime, an adapter without one by our kernels, which read the LLM's embeddings.
    """
    llm, encoder, adapter = bundle.manifest.require_llm(), bundle.manifest.encoder, bundle.manifest.require_projector()
    plan = plans["llm"]
    without_plan = {
        "encoder": _size(bundle, encoder.graph, f"{encoder.graph}.data"),
        "adapter": _size(bundle, adapter.require_weights()) + llm.vocabulary_size * llm.embedding_size * bytes_per_number,
    }
    with_plan = {part: _size(bundle, each.file) + each.activation_bytes for part, each in plans.items()}
    return MemoryBudget(
        slots=slots,
        slot_bytes=slot_bytes(llm.layers, llm.key_value_heads, llm.head_size, plan.max_positions, bytes_per_number),
        llm=_size(bundle, plan.file),
        activations=plan.activation_bytes,
        step=step_bytes(llm, plan),
        encoder=with_plan.get("encoder", without_plan["encoder"]),
        adapter=with_plan.get("adapter", without_plan["adapter"]),
        prefixes=prefix_bytes,
    )


def gigabytes(size: int) -> str:
    """Return a size for people: in GB, or in MB where that is shorter."""
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def _size(bundle: Bundle, *names: str) -> int:
    """Return the size of those files that the bundle has."""
    files = bundle.manifest.files
    return sum(files[name].bytes for name in names if name in files)
