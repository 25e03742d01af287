"""`python -m kernels.gates.report`: measure parity and gates anew and write the tables of `kernels/README.md`."""

import re
import subprocess
import sys
from pathlib import Path

import triton

from kernels.cards import CARDS
from kernels.gates.check import measure, measure_unaligned, read_baseline, violations
from kernels.gates.tables import gate_table, roofline_table

README = Path(__file__).parent.parent / "README.md"
PREDICTED_FOR = 90


def replace_section(text: str, name: str, content: str) -> str:
    """`text` with what stands between the marks of section `name` replaced."""
    start, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
    pattern = re.compile(f"({re.escape(start)}).*?({re.escape(end)})", re.DOTALL)
    if len(pattern.findall(text)) != 1:
        raise ValueError(f"{README} must have one section {start.strip()} ... {end}")
    return pattern.sub(lambda match: f"{match[1]}{content.strip()}\n{match[2]}", text)


def parity_tables() -> str:
    """From a process of its own: Triton interprets or compiles, and decides at its import."""
    command = ["env", "TRITON_INTERPRET=1", sys.executable, "-m", "kernels.parity"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def main() -> int:
    measured, baseline = measure(workers=2), read_baseline()["kernels"]
    wrong = violations(measured, baseline)
    if wrong:
        print(*wrong, sep="\n", file=sys.stderr)
        return 1
    unaligned = measure_unaligned()
    failures = "\n".join(violations(unaligned, baseline))
    compiled = sum(len(each.kernels) for each in measured)
    sections = {
        "parity": parity_tables(),
        "prediction": roofline_table(measured, CARDS[PREDICTED_FOR].architecture),
        "gates": f"Triton {triton.__version__}, {compiled} kernels, 0 gates failed.\n\n{gate_table(measured)}",
        "unaligned": f"{gate_table(unaligned)}\n\n```\n{failures}\n```",
    }
    text = README.read_text()
    for name, content in sections.items():
        text = replace_section(text, name, content)
    README.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
