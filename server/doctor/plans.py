"""Checks of a bundle's plans for a GPU, and of its memory."""

from collections.abc import Callable

from models.bundle.io import Bundle, BundleError
from models.bundle.plans import DECODE_PROFILE, PlanError, PlanKey, find_plan
from models.bundle.sections import PlanSection
from models.protocols import BackendError
from models.runtimes.cuda.gpu import CPU_ONLY_PRECISION, find_gpu
from models.runtimes.cuda.gpu_memory import estimate_memory, gigabytes
from server.doctor.checks import CheckResult
from server.engine.runner.caches import PREFIX_CACHE_BYTES
from server.settings import Settings

FIX_FIRST = "put that right first"


def check_plans(settings: Settings, number: int, bundle: Callable[[], Bundle]) -> CheckResult:
    """Check that the bundle has the plans that the settings need, for this GPU and this TensorRT."""
    name = f"plans for GPU {number}"
    try:
        opened, key = bundle(), _plan_key(settings, number)
    except (BundleError, BackendError) as error:
        return CheckResult(name, f"cannot be looked for: {error}", FIX_FIRST)
    plans, problems = _find_plans(opened, key, settings)
    if problems:
        return CheckResult(name, f"{len(problems)} of {len(problems) + len(plans)} are missing", " ".join(problems))
    encoder = opened.manifest.encoder
    if settings.encoder_runtime == "onnxruntime" and encoder.precision == CPU_ONLY_PRECISION:
        return CheckResult(
            name,
            f"the bundle's encoder is in {encoder.precision}, which ONNX Runtime multiplies on CPUs only",
            "--encoder-runtime tensorrt, or a bundle of `python -m export.default_bundle --precision fp32`",
        )
    rows = plans["llm"].profiles[DECODE_PROFILE]["rows"][-1]
    if rows < settings.slots:
        detail = f"the LLM's decodes {rows} requests at a time, and there are {settings.slots} slots"
        return CheckResult(name, detail, f"--slots {rows} at most, or build it with `--part llm --decode-rows {settings.slots}`")
    return CheckResult(name, f"{', '.join(f'{part} in {plan.precision}' for part, plan in plans.items())}, for {key}")


def check_gpu_memory(settings: Settings, number: int, bundle: Callable[[], Bundle]) -> CheckResult:
    """Check that the models and the slots fit into the GPU."""
    name = f"memory of GPU {number}"
    try:
        opened, memory_bytes = bundle(), find_gpu(number).memory_bytes
        plans, problems = _find_plans(opened, _plan_key(settings, number), settings)
    except (BundleError, BackendError) as error:
        return CheckResult(name, f"cannot be estimated: {error}", FIX_FIRST)
    if problems:
        return CheckResult(name, "cannot be estimated without the plans", FIX_FIRST)
    estimated = estimate_memory(opened, plans, slots=settings.slots, prefix_bytes=PREFIX_CACHE_BYTES)
    fitting = estimated.fitting_slots(memory_bytes)
    detail = f"{gigabytes(memory_bytes)}, of which a server takes {estimated}; {fitting} slots would fit"
    advice = f"--slots {fitting} at most" if fitting else "use a larger GPU"
    return CheckResult(name, detail, advice if fitting < settings.slots else "")


def _plan_key(settings: Settings, number: int) -> PlanKey:
    """Return the key of plans for this GPU. Raises `BackendError` without the GPU or TensorRT."""
    from models.runtimes.cuda.tensorrt_library import TensorRTError, load_tensorrt

    gpu = find_gpu(number)
    try:
        library = load_tensorrt(settings.tensorrt_library)
    except TensorRTError as error:
        raise BackendError(str(error)) from error
    return PlanKey(library.builder, library.version, gpu.architecture)


def _find_plans(bundle: Bundle, key: PlanKey, settings: Settings) -> tuple[dict[str, PlanSection], list[str]]:
    """Return the plans by part, and a sentence for each plan that is missing."""
    runtimes = {"encoder": settings.encoder_runtime, "adapter": settings.adapter_runtime, "llm": "tensorrt"}
    positions = {"llm": settings.slot_positions or bundle.manifest.require_llm().max_positions}
    plans, problems = {}, []
    for part in (part for part, runtime in runtimes.items() if runtime == "tensorrt"):
        try:
            plans[part] = find_plan(bundle, part, key, positions=positions.get(part, 0))
        except PlanError as error:
            problems.append(str(error))
    return plans, problems
