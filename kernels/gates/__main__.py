"""`python -m kernels.gates`: compile every kernel for every architecture and hold it to the gates; no GPU is needed.

`--write` makes what was found the new baseline first. `--unaligned` compiles one kernel as if its rows were not aligned, to
see the gates fail. Exits with 1 where a gate fails.
"""

import argparse
import os
import sys

from kernels.gates.check import measure, measure_unaligned, read_baseline, violations, write_baseline
from kernels.gates.tables import gate_table


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m kernels.gates", description=__doc__)
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument("--write", action="store_true", help="replace the baseline")
    chosen.add_argument("--unaligned", action="store_true", help="see the gates fail")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), metavar="N")
    options = parser.parse_args()
    measured = measure_unaligned() if options.unaligned else measure(options.workers)
    if options.write:
        write_baseline(measured)
    print(gate_table(measured))
    wrong = violations(measured, read_baseline()["kernels"])
    print(*wrong, sep="\n", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
