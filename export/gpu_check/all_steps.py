"""The steps in their order."""

from export.gpu_check.alignment_step import check_attention
from export.gpu_check.end_to_end import check_server, check_several_gpus
from export.gpu_check.graphs import check_graphs
from export.gpu_check.kernel_parity import check_kernels
from export.gpu_check.kernel_times import check_kernel_times
from export.gpu_check.llm_times import check_llm_times, check_memory
from export.gpu_check.machine import check_bundle, check_machine, check_plans
from export.gpu_check.packed import check_packed_attention
from export.gpu_check.speech import check_adapter, check_encoder
from export.gpu_check.steps import Step
from export.gpu_check.workbench import Workbench

STEPS: tuple[Step[Workbench], ...] = (
    Step("machine", "What computes here, and whether the libraries are those of the device.", check_machine),
    Step("bundle", "The default bundle in float32, verified.", check_bundle),
    Step("plans", "Plans of encoder, adapter and LLM build for this device.", check_plans, ("machine", "bundle")),
    Step("kernels", "Each of the adapter's kernels gives what its plain twin gives.", check_kernels, ("machine",)),
    Step("memory", "The LLM loads; the memory that it takes, beside the sizes of its parts.", check_memory, ("plans",)),
    Step(
        "attention",
        "Queries see the positions of their slot that they should, however a row was cut, padded and placed.",
        check_attention,
        ("memory",),
    ),
    Step(
        "packed-attention",
        "Whether attention over rows without padding can be built: nothing depends on it yet.",
        check_packed_attention,
        ("machine",),
    ),
    Step("graphs", "Captured steps over slots updated in place do what steps without a graph do.", check_graphs, ("memory",)),
    Step("encoder", "The encoder's states are the CPU's, by either runtime.", check_encoder, ("plans",)),
    Step("adapter", "The adapter's drafts and frames are the CPU's, by either runtime.", check_adapter, ("plans",)),
    Step(
        "kernel-times",
        "What the adapter takes by our kernels, and by what they have to beat.",
        check_kernel_times,
        ("plans",),
    ),
    Step("llm-times", "What steps of the LLM take.", check_llm_times, ("memory",)),
    Step("server", "The server answers as it does on the CPU, alone and under load; its times.", check_server, ("plans",)),
    Step("several-gpus", "Several GPUs, an engine process each, answer as one does.", check_several_gpus, ("plans",)),
)
