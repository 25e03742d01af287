"""`TRITON_INTERPRET=1 python -m kernels.parity`: the largest error of every kernel, dtype and class of shapes.

Exits with 1 where one is beyond its tolerance.
"""

import sys

from kernels.markdown import table
from kernels.parity.cases import TOLERANCES, all_cases, error
from kernels.parity.interpreter import interpreted


def main() -> int:
    errors: dict[tuple[str, str], dict[str, str]] = {}
    failed = []
    with interpreted():
        for case in all_cases():
            found = [(error(*pair), TOLERANCES[pair[0].dtype]) for pair in case.compare()]
            errors.setdefault((case.kernel, case.dtype), {})[case.shape] = f"{max(size for size, _ in found):.0e}"
            failed += [str(case) for size, tolerance in found if not size <= tolerance]
    by_shapes: dict[tuple[str, ...], list[list[str]]] = {}
    for (kernel, dtype), row in errors.items():
        by_shapes.setdefault(tuple(row), []).append([kernel, dtype, *row.values()])
    for shapes, rows in by_shapes.items():
        print(table(["kernel", "dtype", *shapes], rows), end="\n\n")
    print(*failed, sep="\n", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
