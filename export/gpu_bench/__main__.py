"""Measure what the models take on the GPU of this machine, and write one report with the verdicts of its tests.

    python -m export.gpu_bench                  the tests in tests/gpu, then all times; `make gpu-check` runs this
    python -m export.gpu_bench --without-tests  the times only

The plans that are missing are built first, into a copy of the default bundle. Exits with 1 if a test failed.
"""

import argparse
import platform
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from export.default_bundle import default_cache_dir, ensure_default_bundle
from export.default_recipe import GPU_PRECISION
from export.gpu_bench.adapter import time_adapter
from export.gpu_bench.llm import time_llm
from export.gpu_bench.timing import Scale, Section
from export.tensorrt_parts import adapter_part, encoder_part, llm_part, read_fitting_llama
from export.tensorrt_plans import build_into_bundle, default_weights, timing_cache_file
from export.tensorrt_profiles import Limits
from models.bundle.io import Bundle, open_bundle
from models.bundle.plans import PlanError, find_plan
from models.runtimes.cuda.device import Device, plan_key

ROOT = Path(__file__).parents[2]
PACKAGES = ("torch", "triton", "onnxruntime-gpu", "tensorrt", "numpy")


def prepare_bundle(device: Device) -> Bundle:
    """Return a copy of the default bundle in fp32 with plans of all parts for the device; missing plans are built.

    Raises `FetchError`, `BundleError` or `TensorRTError`.
    """
    cache_dir = default_cache_dir()
    source = ensure_default_bundle(cache_dir, GPU_PRECISION)
    folder = cache_dir / "gpu-check" / source.name
    if not folder.exists():
        unfinished = folder.with_name(folder.name + ".partial")
        shutil.rmtree(unfinished, ignore_errors=True)
        shutil.copytree(source, unfinished)
        unfinished.rename(folder)
    bundle = open_bundle(folder)
    library, gpu, limits = device.tensorrt, device.gpu.architecture, Limits()
    positions = bundle.manifest.require_llm().max_positions
    with default_weights(cache_dir) as weights:
        for part in (
            encoder_part(weights, bundle, limits),
            adapter_part(bundle, limits),
            llm_part(partial(read_fitting_llama, weights.gguf, bundle), "bf16", positions, limits),
        ):
            try:
                find_plan(bundle, part.name, plan_key(device), positions=part.max_positions)
            except PlanError:
                build_into_bundle(library, part, gpu, folder, timing_cache_file(cache_dir, library, gpu))
    return open_bundle(folder)


def describe_machine(device: Device) -> Section:
    """Return what the report was made by: GPU, commit and versions."""
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    rows = [
        ("GPU", f"{device.gpu.name}, {device.gpu.architecture}"),
        ("plans", str(plan_key(device))),
        ("commit", described.stdout.strip() or "unknown: not a git checkout"),
        ("written", f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"),
        ("Python", platform.python_version()),
        *((name, _version(name)) for name in PACKAGES),
    ]
    return Section("Machine", ("", ""), rows)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def run_tests() -> tuple[str, bool]:
    """Run the tests that need a GPU. Return their summary as Markdown, and whether all of them passed."""
    command = ["env", "TRITON_INTERPRET=0", sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-rA", "--tb=short", "tests/gpu"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return f"## Tests\n\n```\n{done.stdout[-20_000:]}```\n", done.returncode == 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu_check.md"), metavar="FILE", help="default: %(default)s")
    parser.add_argument("--without-tests", action="store_true", help="measure times only")
    options = parser.parse_args()
    # The default install has no torch for CUDA.
    from models.runtimes.cuda.torch_device import TorchDevice

    tests, passed = ("", True) if options.without_tests else run_tests()
    parts = ["# GPU check\n", tests]
    device = TorchDevice()
    bundle, scale = prepare_bundle(device), Scale()
    parts.append(describe_machine(device).markdown())
    for measure in (time_llm, time_adapter):
        for section in measure(device, bundle, scale):
            parts.append(section.markdown())
            # After each section, so that a crash leaves what was measured.
            options.out.write_text("\n".join(parts), encoding="utf-8")
    print(options.out)
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
