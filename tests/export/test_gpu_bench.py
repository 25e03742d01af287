"""The GPU's bench runs all of its measurements, here on a simulated GPU with tiny models."""

from collections.abc import Callable

import pytest
import torch

from export.gpu_bench import timing
from export.gpu_bench.__main__ import describe_machine
from export.gpu_bench.adapter import time_adapter
from export.gpu_bench.llm import time_llm
from export.gpu_bench.timing import Scale, Section, Timing
from tests.support.gpu.rig import Rig, simulated_rig
from tests.support.kernels.interpreter import interpreted

SCALE = Scale(repeats=1, slots=4, prefill_tokens=(8, 500), batches=((1, 1),), vocabulary=16, calls_in_graph=1)


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Rig:
    return simulated_rig(tmp_path_factory.mktemp("rig") / "tiny")


def assert_filled(section: Section) -> None:
    assert section.rows
    assert {len(row) for row in section.rows} == {len(section.heading)}
    assert section.markdown().startswith(f"## {section.title}\n")


def run_once(work: Callable[[], object], _repeats: int) -> Timing:
    work()
    return Timing(1.0, 1.0)


def test_the_llm_is_measured(rig: Rig) -> None:
    sections = list(time_llm(rig.device, rig.bundle, SCALE))
    for section in sections:
        assert_filled(section)
    assert [row[0] for row in sections[2].rows] == ["8"], "prompts that are longer than a slot are left out"


def test_the_adapter_is_measured_by_every_contender(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    # Compiling takes half a minute, and a pass of the interpreter seconds: here nothing is run twice.
    monkeypatch.setattr(torch, "compile", lambda work: work)
    monkeypatch.setattr(timing, "time_host", run_once)
    with interpreted():
        whole, operators = time_adapter(rig.device, rig.bundle, SCALE)
    assert [row for row in whole.rows if "could not" in row[1]] == []
    assert_filled(whole)
    assert [row[0] for row in operators.rows][:2] == ["input", "qkv"]


def test_the_report_names_the_machine(rig: Rig) -> None:
    assert ("GPU", "simulated GPU, sm_00") in describe_machine(rig.device).rows
