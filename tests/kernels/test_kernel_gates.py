"""The kernels compile for every architecture within their gates, and the gates close on what they are there for."""

import os
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import triton

from kernels.cards import CARDS, programs_at_once
from kernels.gates import check
from kernels.gates.check import BASELINE, Measured, numbers, read_baseline, violations
from kernels.gates.compile import Compiled
from kernels.gates.report import README, replace_section
from kernels.tiles import ARCHITECTURES

GOOD = Compiled("linear_kernel", 96, 4, 96, 0, 57344, Counter({"HGMMA": 8, "LDGSTS": 36, "IADD3": 1000}))
MEASURED = Measured(90, "qkv, 125 rows", 1.0, 1.0, 1, None, (GOOD,))
GOOD_BASELINE = {"sm_90, qkv, 125 rows: linear_kernel": numbers(GOOD)}


def run_gates(*options: str) -> subprocess.CompletedProcess[str]:
    """In a process that compiles: this one interprets."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "kernels.gates", *options]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def test_every_kernel_holds_its_gates_on_every_architecture() -> None:
    result = run_gates()
    assert result.returncode == 0, result.stderr
    for architecture in ARCHITECTURES:
        assert f"| sm_{architecture} | best tokens, 4000 rows |" in result.stdout


def test_a_forgotten_alignment_does_not_pass() -> None:
    result = run_gates("--unaligned")
    assert result.returncode == 1, result.stderr
    assert "spill registers" in result.stderr
    for architecture in ARCHITECTURES:
        found = "\n".join(line for line in result.stderr.splitlines() if line.startswith(f"sm_{architecture}, "))
        assert "nothing is copied while it multiplies" in found
        assert "registers, " in found
        assert "instructions, " in found


@pytest.mark.parametrize(
    ("kernel", "complaint"),
    [
        (replace(GOOD, opcodes=GOOD.opcodes + Counter(STL=1)), "spill"),
        (replace(GOOD, stack_bytes=8), "8 bytes of stack"),
        (replace(GOOD, opcodes=Counter({"HMMA": 32, "LDGSTS": 36})), "no HGMMA"),
        (replace(GOOD, opcodes=Counter({"HGMMA": 8, "LDG": 36})), "no LDGSTS or UTMALDG"),
        (replace(GOOD, shared_bytes=240_000), "do not fit"),
        (replace(GOOD, registers=97), "97 registers, 96 in the baseline"),
        (replace(GOOD, shared_bytes=57345), "57345 shared_bytes, 57344 in the baseline"),
        (replace(GOOD, opcodes=GOOD.opcodes + Counter(IADD3=60)), "1104 instructions, 1044 in the baseline"),
        (replace(GOOD, kernel="new_kernel"), "not in the baseline"),
    ],
)
def test_each_gate_closes(kernel: Compiled, complaint: str) -> None:
    assert violations([MEASURED], GOOD_BASELINE) == []
    found = violations([replace(MEASURED, kernels=(kernel,))], GOOD_BASELINE)
    assert any(complaint in line for line in found)


def test_a_little_more_code_is_let_through() -> None:
    grown = replace(GOOD, opcodes=GOOD.opcodes + Counter(IADD3=50))
    assert violations([replace(MEASURED, kernels=(grown,))], GOOD_BASELINE) == []


def test_a_baseline_of_another_compiler_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert read_baseline()["triton"] == triton.__version__
    monkeypatch.setattr(check, "BASELINE", tmp_path / "baseline.json")
    (tmp_path / "baseline.json").write_text(BASELINE.read_text().replace(triton.__version__, "1.0.0", 1))
    with pytest.raises(ValueError, match=r"triton 1\.0\.0"):
        read_baseline()


def test_programs_a_multiprocessor_are_bounded_by_what_is_scarce() -> None:
    h100 = CARDS[90]
    assert programs_at_once(h100, warps=4, registers=128, shared_bytes=0) == 4
    assert programs_at_once(h100, warps=4, registers=32, shared_bytes=64 * 1024) == 3
    assert programs_at_once(h100, warps=8, registers=32, shared_bytes=0) == 8
    assert programs_at_once(h100, warps=4, registers=32, shared_bytes=228 * 1024) == 0


def test_the_page_shows_the_baseline() -> None:
    row = re.compile(r"\| (sm_\d+) \| ([^|]+) \| `(\w+)` \| \d+ \| \d+ \| (\d+) \| 0 \| \d+ \| [^|]*\| [^|]*\| (\d+) \|")
    gates = README.read_text().partition("<!-- gates -->")[2].partition("<!-- /gates -->")[0]
    shown = {f"{target}, {case}: {kernel}": (int(regs), int(size)) for target, case, kernel, regs, size in row.findall(gates)}
    kernels = read_baseline()["kernels"]
    assert shown == {key: (entry["registers"], entry["instructions"]) for key, entry in kernels.items()}


def test_a_section_is_replaced_and_nothing_else() -> None:
    page = "a\n<!-- x -->\nold\n<!-- /x -->\nb\n"
    assert replace_section(page, "x", "new \\1") == "a\n<!-- x -->\nnew \\1\n<!-- /x -->\nb\n"
    with pytest.raises(ValueError, match="one section"):
        replace_section(page, "y", "new")
