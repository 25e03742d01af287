"""`python -m kernels.compile_checks`: compile every kernel for every architecture and check the result; no GPU is needed.

`--write` makes the result the new baseline first. `--unaligned` compiles one kernel with rows that are not aligned, to see the
checks fail. Exits with 1 if a check fails.
"""

import argparse
import os
import sys

from kernels.compile_checks.check import (
    all_groups,
    measure,
    measure_unaligned,
    read_baseline,
    sample_groups,
    violations,
    write_baseline,
)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m kernels.compile_checks", description=__doc__)
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument("--write", action="store_true", help="replace the baseline")
    chosen.add_argument("--sample", action="store_true", help="compile a third of the cases")
    chosen.add_argument("--unaligned", action="store_true", help="see the checks fail")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), metavar="N")
    options = parser.parse_args()
    groups = sample_groups() if options.sample else all_groups()
    measured = measure_unaligned() if options.unaligned else measure(groups, options.workers)
    if options.write:
        write_baseline(measured)
    for each in measured:
        for key, kernel in each.by_key():
            print(f"{key}: {kernel.registers} registers, {kernel.shared_bytes} bytes shared, {kernel.instructions} instructions")
    wrong = violations(measured, read_baseline()["kernels"])
    print(*wrong, sep="\n", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
