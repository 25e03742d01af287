"""The adapter's kernels beside their plain twins, on the device."""

from contextlib import nullcontext

import torch

from export.gpu_check.report import Findings, Table
from export.gpu_check.workbench import Workbench
from kernels.parity.cases import TOLERANCES, all_cases, error
from kernels.parity.interpreter import interpreted
from kernels.parity.tables import ErrorTables


def check_kernels(bench: Workbench) -> Findings:
    """Every case of `kernels.parity`. Its tiles are an H100's: another card may refuse some, which then fail by themselves."""
    is_simulated = bench.kind == "simulated"
    largest = ErrorTables()
    failures = []
    place = torch.device(*bench.device.binding_device)
    with interpreted() if is_simulated else nullcontext(), bench.device.current(), place:
        for case in all_cases():
            try:
                found = [(error(*pair), TOLERANCES[pair[0].dtype]) for pair in case.compare()]
            except Exception as problem:  # of Triton, of its compiler or of the driver; the other cases are worth running
                failures.append(f"{case}: {problem}")
                continue
            largest.add(case.kernel, case.dtype, case.shape, [size for size, _ in found])
            failures += [f"{case}: an error of {size:.0e}, {limit:.0e} is allowed" for size, limit in found if not size <= limit]
    title = "Largest difference, as a part of the twin's largest value"
    tables = tuple(Table(title, *each) for each in largest)
    where = "in Triton's interpreter, whose memory is poisoned" if is_simulated else "compiled"
    return Findings(tables, (f"The kernels are {where}.",), tuple(failures))
