"""The GPU check finds what is wrong, says so in its report, and goes on: on the simulated device, with tiny models.

The whole of it, on the default models, is `make gpu-check DEVICE=simulated`.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch

from export.gpu_check.alignment import (
    Compared,
    Oracles,
    alignment_findings,
    compare,
    errors_between,
    random_passages,
    text_passages,
)
from export.gpu_check.alignment_step import check_attention
from export.gpu_check.end_to_end import INSTRUCTIONS, Run, exercise, server_findings
from export.gpu_check.graphs import check_graphs, graph_findings
from export.gpu_check.kernel_times import check_kernel_times
from export.gpu_check.llm_times import check_llm_times, check_memory
from export.gpu_check.machine import check_bundle, check_machine
from export.gpu_check.operators import predictions
from export.gpu_check.report import SIMULATED, Findings, Head, Table, exit_status, markdown, write_report
from export.gpu_check.server_process import Answer, Question, Server, ServerError
from export.gpu_check.speech import check_adapter, check_encoder
from export.gpu_check.steps import ROOT, Step, choose, run_steps
from export.gpu_check.workbench import Clip, Scale, Workbench
from models.protocols import LLM, Float32, ProjectorOutput
from models.runtimes.cuda.device import Result, Stream
from models.runtimes.cuda.simulated import SimulatedDevice
from models.runtimes.cuda.simulated_stream import SimulatedGraph
from models.runtimes.onnx.projector import OnnxProjector
from server.errors import InvalidRequest
from tests.support.clients.live_server import live_server
from tests.support.fakes.fake_engine import FakeEngine
from tests.support.inputs.clip_files import CLIPS, clip_path
from tests.support.tiny.tiny_bundle import add_simulated_plans, write_speaking_bundle
from tests.support.tiny.tiny_llama import MAX_POSITIONS, tiny_llama
from tests.support.tiny.tiny_whisper import MEL_BINS

HEAD = Head("an H100", False, "0123456789ab", "python -m export.gpu_check", {"torch": "2.13.0"})
FOUND = Findings((Table("Times", ("rows", "ms"), (("1", "0.5"),)),), ("Worth a look.",))


def fine(_subject: str) -> Findings:
    return FOUND


def wrong(_subject: str) -> Findings:
    return replace(FOUND, failures=("1 of 2 is wrong",))


def broken(subject: str) -> Findings:
    raise RuntimeError(f"no {subject} | here")


STEPS = [
    Step("first", "The first.", fine),
    Step("second", "The second.", broken),
    Step("third", "The third.", fine, needs=("first",)),
    Step("fourth", "The fourth.", fine, needs=("first", "second")),
    Step("fifth", "The fifth.", wrong, needs=("third",)),
    Step("sixth", "The sixth.", fine, needs=("fourth", "fifth")),
]


def test_a_step_that_fails_stops_those_that_need_it_and_no_other() -> None:
    results = list(run_steps(STEPS, "GPU"))
    assert [(each.name, each.verdict, each.reason) for each in results] == [
        ("first", "passed", ""),
        ("second", "failed", "RuntimeError: no GPU | here"),
        ("third", "passed", ""),
        ("fourth", "not run", "needs second"),
        ("fifth", "failed", "1 of 2 is wrong"),
        ("sixth", "not run", "needs fourth, fifth"),
    ]
    assert "in broken" in results[1].findings.notes[0]
    assert exit_status(results) == 1
    assert exit_status(results[:1]) == 0


def test_a_step_is_run_with_what_it_needs() -> None:
    assert [step.name for step in choose(STEPS, ["fifth"])] == ["first", "third", "fifth"]
    assert choose(STEPS, []) == STEPS
    with pytest.raises(ValueError, match="there is no step seventh, only first, second"):
        choose(STEPS, ["seventh"])


def test_the_report_has_every_step_first_in_short_then_with_its_figures(tmp_path: Path) -> None:
    page = tmp_path / "folder" / "report.md"
    results = list(run_steps(STEPS, "GPU"))
    write_report(page, HEAD, results)
    text = page.read_text()
    summary, *details = text.split("\n## ")[1:]
    assert "| second | failed | 0.0 | RuntimeError: no GPU \\| here |" in summary
    assert "| fourth | not run | 0.0 | needs second |" in summary
    assert [each.splitlines()[0] for each in details] == [step.name for step in STEPS]
    assert "The first. **Passed.**\n\nWorth a look.\n\nTimes:\n\n| rows | ms |\n| --- | --- |\n| 1 | 0.5 |" in details[0]
    assert "> needs second" in details[3]
    content = json.loads(page.with_suffix(".json").read_text())
    assert content["commit"] == HEAD.commit
    assert content["steps"][4]["findings"]["tables"] == [{"title": "Times", "heading": ["rows", "ms"], "rows": [["1", "0.5"]]}]


def test_a_simulated_device_is_said_to_be_one() -> None:
    now = datetime.now(UTC)
    assert SIMULATED not in markdown(HEAD, [], now)
    assert SIMULATED in markdown(replace(HEAD, is_simulated=True), [], now)


@pytest.fixture(scope="module")
def oracles(tmp_path_factory: pytest.TempPathFactory) -> Oracles:
    return Oracles(tiny_llama()[0], MAX_POSITIONS, tmp_path_factory.mktemp("oracles"), threads=1)


def compared(llm: LLM, oracles: Oracles) -> list[Compared]:
    sources = {"noise": random_passages(llm), "text": text_passages(llm, range(llm.vocabulary_size))}
    return list(compare(llm, oracles.right(), oracles.wrong(), sources))


def test_a_right_mask_passes(oracles: Oracles) -> None:
    assert alignment_findings(compared(oracles.right(), oracles)).failures == ()


@pytest.mark.parametrize(
    ("mask", "unseen"),
    [
        ("one position too many", set()),
        ("a triangle from the slot's first position", {"one row", "rows of different lengths, padded"}),
    ],
)
def test_a_wrong_mask_is_found(mask: str, unseen: set[str], oracles: Oracles) -> None:
    """But for rows that begin with their slot, to which a triangle is the right mask."""
    cases = compared(oracles.wrong()[mask], oracles)
    assert {each.name for each in cases if each.holds} == unseen
    failures = alignment_findings(cases).failures
    assert len(failures) == sum(not each.holds for each in cases)
    assert "decode steps at different positions: the logits' mean error is" in " ".join(failures)


def test_what_is_not_finite_is_an_error_without_end() -> None:
    expected = np.ones((2, 3), np.float32)
    broken_logits = expected.copy()
    broken_logits[0, 1] = np.nan
    assert errors_between([broken_logits], [expected]).mean == np.inf


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Workbench:
    """The tiny bundle with its plans, in place of the default one."""
    folder = tmp_path_factory.mktemp("bench")
    tiny = write_speaking_bundle(folder / "bundle")
    bundle = add_simulated_plans(folder / "bundle", tiny)
    bench = Workbench("simulated", bundle.folder, folder, threads=1)
    bench.scale = Scale(
        repeats=1,
        slots=4,
        prefill_tokens=(8, 500),
        adapter_utterances=((2, 2),),
        vocabulary=16,
        calls_in_graph=1,
        rounds=1,
    )
    bench.llama = tiny.llama
    bench.text = list(range(bundle.manifest.llm.vocabulary_size))
    features = np.random.default_rng(0).standard_normal((MEL_BINS, 64)).astype(np.float32)
    bench.clips = [Clip(Path(f"{frames}.flac"), "", features[:, :frames]) for frames in (64, 8, 40)]
    return bench


CheapStep = Callable[[Workbench], Findings]


@pytest.mark.parametrize(
    "step",
    [
        check_machine,
        check_bundle,
        check_memory,
        check_attention,
        check_graphs,
        check_encoder,
        check_adapter,
        check_llm_times,
    ],
)
def test_each_step_passes_on_the_simulated_device(step: CheapStep, bench: Workbench) -> None:
    findings = step(bench)
    assert findings.failures == ()
    assert findings.tables
    for table in findings.tables:
        assert table.rows
        assert {len(row) for row in table.rows} == {len(table.heading)}


def test_every_contender_runs(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    # It takes half a minute.
    monkeypatch.setattr(torch, "compile", lambda work: work)
    passes, operators = check_kernel_times(bench).tables
    assert [row for row in passes.rows if "could not" in row[2]] == []
    assert [row[0] for row in operators.rows][:2] == ["input", "qkv"]


class IdleGraph:
    def replay(self) -> None: ...


class Forgetful(SimulatedDevice):
    """What it captures it does not do again."""

    def capture(self, work: Callable[[], Result], stream: Stream) -> tuple[Result, SimulatedGraph]:
        results, _ = super().capture(work, stream)
        return results, cast(SimulatedGraph, IdleGraph())


def test_a_graph_that_does_something_else_is_found(bench: Workbench) -> None:
    device = Forgetful(2**28, threads=1)
    other = Workbench("simulated", bench.folder, bench.scratch, threads=1)
    other.device, other.bundle = device, bench.bundle
    failures = graph_findings(device, other.plan("llm"), slots=2).failures
    assert "2 rows of 1: logits of the first replays differ from the step without a graph" in failures
    assert "2 rows of 1: slots of the first replays differ from the step without a graph" in failures


def test_another_models_states_and_drafts_are_found(bench: Workbench) -> None:
    other = Workbench("simulated", bench.folder, bench.scratch, threads=1)
    other.clips, other.cpu_states = bench.clips, [np.roll(each, 1, axis=0) for each in bench.cpu_states]
    assert any(failure.startswith("TensorRT, 64: states are off by") for failure in check_encoder(other).failures)

    class Backwards(OnnxProjector):
        def __init__(self) -> None: ...

        def project(self, states: Sequence[Float32]) -> list[ProjectorOutput]:
            return bench.cpu_adapter.project([each[::-1].copy() for each in states])

    other.cpu_adapter = Backwards()
    assert any(failure.startswith("TensorRT, 64: P(blank) is off by") for failure in check_adapter(other).failures)


def test_what_was_predicted_is_read_from_the_kernels_page() -> None:
    predicted = predictions((ROOT / "kernels" / "README.md").read_text())
    assert float(predicted["whole pass, 125 rows"]) > float(predicted["qkv, 125 rows"]) > 0


QUESTIONS = [Question(clip_path(clip), instruction) for instruction in INSTRUCTIONS[:2] for clip in CLIPS[:2]]


def test_a_server_is_asked_alone_streamed_and_by_many_at_once() -> None:
    engine = FakeEngine()
    with live_server(engine) as running:
        run = exercise(Server(running.client), QUESTIONS, clips=2, rounds=3)
        engine.text = ""
        assert Server(running.client).first_text_s(QUESTIONS[0]) > 0
        engine.failure = InvalidRequest("cannot")
        with pytest.raises(ServerError, match=r"status 400.*cannot"):
            Server(running.client).ask(QUESTIONS[0])
    assert run.answers == dict.fromkeys(QUESTIONS, "hello world")
    assert (len(run.alone_s), len(run.first_text_s), len(run.crowded)) == (6, 6, 12)
    assert server_findings({"cpu": run, "cuda": run}, {"cpu": 1.0, "cuda": 1.0}).failures == ()


def test_a_transcript_that_is_not_the_cpus_or_changes_under_load_is_found() -> None:
    text, other = "in being comparatively modern", "in being comparatively moderate"
    crowded = [(QUESTIONS[0], Answer(text, 0.1))]
    cpu = Run(dict.fromkeys(QUESTIONS, text), [0.1], [0.1], crowded, 0.1)
    # Other answers than transcripts may part where two tokens are all but equally likely.
    gpu = replace(cpu, answers={**cpu.answers, QUESTIONS[1]: other, QUESTIONS[2]: "English"})
    strict, lenient = {"cpu": 1.0, "cuda": 1.0}, {"cpu": 1.0, "cuda": 0.5}
    is_another = f"{QUESTIONS[1].audio.stem}: the transcript is not that of cpu"
    assert server_findings({"cpu": cpu, "cuda": gpu}, strict).failures == (is_another,)
    assert server_findings({"cpu": cpu, "cuda": gpu}, lenient).failures == ()
    changed = replace(cpu, crowded=[(QUESTIONS[0], Answer("or is it", 0.1))])
    failure = f"{QUESTIONS[0].audio.stem}: another transcript under load on"
    assert server_findings({"cpu": cpu, "cuda": changed}, lenient).failures == (f"{failure} cuda",)
    assert server_findings({"cpu": changed, "cuda": cpu}, lenient).failures == (f"{failure} cpu",)
