"""What there is to find out on the first GPU, in steps, as one report.

    python -m export.gpu_check                              on the machine with the GPU
    python -m export.gpu_check --only attention             one step, and what it needs
    python -m export.gpu_check --device simulated           every step on a CPU: no times of a GPU, but all of the code

Exits with 1 where a step failed.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import triton

from export.gpu_check.all_steps import STEPS
from export.gpu_check.machine import versions
from export.gpu_check.report import Head, StepResult, exit_status, write_report
from export.gpu_check.steps import choose, run_steps
from export.gpu_check.workbench import Workbench, commit, workbench


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line. Raises `SystemExit` with a usage message."""
    parser = argparse.ArgumentParser(
        prog="python -m export.gpu_check", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [step.name for step in STEPS]
    parser.add_argument("--device", choices=("cuda", "simulated"), default="cuda", help="default: %(default)s")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("docs/gpu_check.md"),
        metavar="FILE",
        help="the report, and beside it .json; default: %(default)s",
    )
    parser.add_argument(
        "--bundle",
        type=Path,
        metavar="FOLDER",
        help="a bundle of the default models in fp32, into which the plans go; default: a copy of the default one",
    )
    parser.add_argument("--only", nargs="+", choices=names, default=[], metavar="STEP", help=f"of {', '.join(names)}")
    return parser.parse_args(arguments)


def main() -> int:
    options = parse()
    if options.device == "simulated" and not triton.knobs.runtime.interpret:
        # Triton interprets or compiles, and decides at its import.
        command = ["env", "TRITON_INTERPRET=1", sys.executable, "-m", "export.gpu_check", *sys.argv[1:]]
        return subprocess.run(command, check=False).returncode
    threads = len(os.sched_getaffinity(0))
    results: list[StepResult] = []
    # The report is in the checkout, too: writing it makes that differ from its commit.
    checkout = commit()
    with (
        tempfile.TemporaryDirectory(prefix="gpu-check-") as scratch,
        workbench(options.device, options.bundle, Path(scratch), threads) as bench,
    ):
        for result in run_steps(choose(STEPS, options.only), bench):
            results.append(result)
            # After each step, so that a crash leaves what was found.
            write_report(options.out, _head(bench, options, checkout), results)
    print(options.out)
    return exit_status(results)


def _head(bench: Workbench, options: argparse.Namespace, checkout: str) -> Head:
    chosen = f" --only {' '.join(options.only)}" if options.only else ""
    command = f"python -m export.gpu_check --device {options.device}{chosen}"
    try:
        device = f"{bench.device.gpu.name}, {bench.device.gpu.architecture}"
    except Exception as error:  # the step `machine` tells of it
        device = f"none: {error}"
    return Head(device, options.device == "simulated", checkout, command, versions())


if __name__ == "__main__":
    sys.exit(main())
