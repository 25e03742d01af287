"""The first steps: what the machine is, the bundle, and its plans."""

import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import onnxruntime
import torch
import triton

from export.gpu_check.report import Findings, Table
from export.gpu_check.workbench import Workbench
from export.tensorrt_inspect import inspect_plan
from export.tensorrt_parts import Part, adapter_part, encoder_part, llm_part, read_fitting_llama
from export.tensorrt_plans import build_into_bundle, describe_plan, timing_cache_file
from export.tensorrt_profiles import Limits
from export.tensorrt_weights import float_type_of
from models.bundle.io import open_bundle
from models.bundle.plans import PlanError, find_plan
from models.runtimes.cuda.device import Device, plan_key
from models.runtimes.cuda.tensorrt_library import TensorRTError
from models.runtimes.onnx.machine import available_memory_bytes

PACKAGES = ("torch", "triton", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx-cu12-bindings", "numpy")
DRIVER_VERSION = Path("/proc/driver/nvidia/version")


def versions() -> dict[str, str]:
    """Of what computes here; of what is not installed, that."""
    return {"Python": platform.python_version(), **{name: _version(name) for name in PACKAGES}}


def check_machine(bench: Workbench) -> Findings:
    """Fails where the libraries are not those of the device."""
    device = bench.device
    driver = DRIVER_VERSION.read_text().splitlines()[0] if DRIVER_VERSION.exists() else "none"
    facts = [
        ("GPU", f"{device.gpu.name}, {device.gpu.architecture}"),
        ("its memory", _gigabytes(device.gpu.memory_bytes)),
        ("of it free", _gigabytes(device.free_memory_bytes())),
        ("NVIDIA driver", driver),
        ("CUDA of torch", torch.version.cuda or "none"),
        ("plans", str(plan_key(device))),
        ("ONNX Runtime's providers", ", ".join(onnxruntime.get_available_providers())),
        ("Triton", "interpreted" if triton.knobs.runtime.interpret else "compiled"),
        ("processor", f"{platform.machine()}, {_gigabytes(available_memory_bytes())} of memory free"),
    ]
    return Findings((Table("Machine", ("", ""), tuple(facts)),), (), tuple(_problems(bench.kind == "simulated", device)))


def _problems(is_simulated: bool, device: Device) -> Iterator[str]:
    if triton.knobs.runtime.interpret != is_simulated:
        wanted = "has to be set for the simulated device" if is_simulated else "must not be set"
        yield f"TRITON_INTERPRET=1 {wanted}"
    if device.execution_provider not in onnxruntime.get_available_providers():
        yield f"this ONNX Runtime has no {device.execution_provider}: see the comment at the extra `gpu` in pyproject.toml"


def check_bundle(bench: Workbench) -> Findings:
    """Builds the default bundle in float32 where it is not there."""
    manifest = bench.bundle.manifest
    rows = tuple((name, f"{entry.bytes / 1e6:.1f}") for name, entry in manifest.files.items() if not name.startswith("plans/"))
    precisions = [f"{name} {getattr(manifest, name).precision}" for name in ("encoder", "adapter", "llm")]
    # Not the folder: the report is for others.
    note = f"{manifest.name}: {', '.join(precisions)}."
    return Findings((Table("Files, without plans", ("file", "MB"), rows),), (note,))


def check_plans(bench: Workbench) -> Findings:
    """Builds the plans that are not there yet. Where a part cannot be built, the others are built all the same."""
    library, gpu = bench.device.tensorrt, bench.device.gpu.architecture
    timing_cache = timing_cache_file(bench.cache_dir, library, gpu)
    rows, failures = [], []
    for part in _parts(bench):
        try:
            plan = find_plan(bench.bundle, part.name, plan_key(bench.device), positions=part.max_positions)
            size = bench.bundle.manifest.files[plan.file].bytes
            rows.append((part.name, plan.precision, "was there", f"{size / 1e6:.1f}", "", "", ""))
        except PlanError:
            try:
                built = build_into_bundle(library, part, gpu, bench.folder, timing_cache)
            except TensorRTError as error:
                failures.append(f"{part.name}: {error}")
                continue
            times = f"{built.build_s:.1f}", f"{built.peak_memory_bytes / 1e9:.1f}"
            rows.append((part.name, part.precision, "built", f"{len(built.content) / 1e6:.1f}", *times, _kernels(bench, part)))
            bench.bundle = open_bundle(bench.folder)
    heading = ("part", "precision", "plan", "MB", "build s", "process's peak memory so far GB", "kernels a step by profile")
    return Findings((Table("Plans", heading, tuple(rows)),), (), tuple(failures))


def _parts(bench: Workbench) -> list[Part]:
    """In the precision that this device's plans have by default."""
    limits, precision = Limits(), "fp32" if bench.device.tensorrt.builder == "simulated" else "bf16"
    float_type = float_type_of(precision)
    llama = read_fitting_llama(bench.weights.gguf, bench.bundle)
    return [
        encoder_part(bench.weights, limits, float_type),
        adapter_part(bench.bundle, limits, float_type),
        llm_part(lambda: llama, precision, bench.bundle.manifest.llm.max_positions, limits),
    ]


def _kernels(bench: Workbench, part: Part) -> str:
    """As the builder's own list has it."""
    library = bench.device.tensorrt
    if library.builder == "simulated":
        return "none: ONNX Runtime runs it"
    content = (bench.folder / describe_plan(library, part, bench.device.gpu.architecture).file).read_bytes()
    try:
        return " and ".join(str(profile.kernels) for profile in inspect_plan(library, content).profiles)
    except TensorRTError as error:
        return f"unknown ({error})"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _gigabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:.1f} GB"
