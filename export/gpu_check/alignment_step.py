"""The step that compares the plan's attention, on the bundle's LLM."""

from pathlib import Path
from tempfile import TemporaryDirectory

from export.gpu_check.alignment import Oracles, alignment_findings, compare, random_passages, text_passages
from export.gpu_check.report import Findings
from export.gpu_check.workbench import Workbench


def check_attention(bench: Workbench) -> Findings:
    """On noise, and on text."""
    llm = bench.loaded_llm.llm
    sources = {"noise": random_passages(llm), "text": text_passages(llm, bench.text)}
    with TemporaryDirectory(dir=bench.scratch) as folder:
        oracles = Oracles(bench.llama, llm.max_positions + 1, Path(folder), bench.threads)
        return alignment_findings(list(compare(llm, oracles.right(), oracles.wrong(), sources)))
