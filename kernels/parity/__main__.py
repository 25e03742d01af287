"""`TRITON_INTERPRET=1 python -m kernels.parity`: the largest error of every kernel, dtype and class of shapes.

Exits with 1 where one is beyond its tolerance.
"""

import sys

from kernels.markdown import table
from kernels.parity.cases import TOLERANCES, all_cases, error
from kernels.parity.interpreter import interpreted
from kernels.parity.tables import ErrorTables


def main() -> int:
    errors = ErrorTables()
    failed = []
    with interpreted():
        for case in all_cases():
            found = [(error(*pair), TOLERANCES[pair[0].dtype]) for pair in case.compare()]
            errors.add(case.kernel, case.dtype, case.shape, [size for size, _ in found])
            failed += [str(case) for size, tolerance in found if not size <= tolerance]
    for heading, rows in errors:
        print(table(heading, rows), end="\n\n")
    print(*failed, sep="\n", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
