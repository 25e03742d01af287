"""The whole server on the device beside the whole server on the CPU: the same bundle, the same questions."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from export.gpu_check.report import Findings, Table
from export.gpu_check.server_process import Answer, Question, Server, serve
from export.gpu_check.workbench import ROOT, Workbench

CLIENTS = 8
INSTRUCTIONS = (
    "Transcribe the speech to text.",
    "Which language is spoken? Answer in one word.",
    "Summarise what is said in one sentence.",
)
"""The first is what latencies are measured with."""


@dataclass(frozen=True)
class Run:
    """What one server did: answers by question, seconds of each clip's transcript and of its first text, and under load."""

    answers: dict[Question, str]
    alone_s: Sequence[float]
    first_text_s: Sequence[float]
    crowded: Sequence[tuple[Question, Answer]]
    crowd_s: float


def check_server(bench: Workbench) -> Findings:
    """Transcripts have to be the CPU's, alone and under load."""
    questions = [Question(clip.file, instruction) for instruction in INSTRUCTIONS for clip in bench.clips]
    runs = {}
    for device in ("cpu", bench.kind):
        with serve(ROOT, bench.folder, device, bench.scratch / f"server-{device}.log") as server:
            runs[device] = exercise(server, questions, len(bench.clips), bench.scale.rounds)
    return server_findings(runs["cpu"], runs[bench.kind], bench.kind)


def exercise(server: Server, questions: Sequence[Question], clips: int, rounds: int) -> Run:
    """Every question once; then the first `clips` of them again: alone, streamed, and by many clients at once."""
    answers = {question: server.ask(question).text for question in questions}
    transcripts = questions[:clips]
    alone_s = [server.ask(question).seconds for _ in range(rounds) for question in transcripts]
    first_text_s = [server.first_text_s(question) for _ in range(rounds) for question in transcripts]
    crowd = [*transcripts] * (2 * rounds)
    crowded, crowd_s = server.ask_at_once(crowd, CLIENTS)
    return Run(answers, alone_s, first_text_s, list(zip(crowd, crowded, strict=True)), crowd_s)


def server_findings(cpu: Run, gpu: Run, kind: str) -> Findings:
    """A transcript that is not the CPU's is a failure; another instruction's answer may part at a near-tie, and is shown."""
    texts, failures = [], []
    for question, text in gpu.answers.items():
        same = text == cpu.answers[question]
        texts.append(
            (question.audio.stem, question.instruction, "yes" if same else "no", text, "" if same else cpu.answers[question])
        )
        if not same and question.instruction == INSTRUCTIONS[0]:
            failures.append(f"{question.audio.stem}: the transcript is not the CPU's")
    for run, name in ((cpu, "cpu"), (gpu, kind)):
        changed = {question.audio.stem for question, answer in run.crowded if answer.text != run.answers[question]}
        failures += [f"{clip}: another transcript under load on {name}" for clip in sorted(changed)]
    times = [(name, *_figures(run)) for run, name in ((cpu, "cpu"), (gpu, kind))]
    heading = ("device", "p50 ms", "p95 ms", "first text p50 ms", "p95 ms", f"{CLIENTS} clients: requests a second", "p95 ms")
    answers = Table("Answers", ("clip", "instruction", "as on the CPU", "answer", "the CPU's"), tuple(texts))
    note = (
        f"Over HTTP, from the request to the whole answer: {len(gpu.alone_s)} transcripts one after the other, as many streamed, "
        f"and {len(gpu.crowded)} by {CLIENTS} clients at once."
    )
    return Findings((Table("Times of transcripts", heading, tuple(times)), answers), (note,), tuple(failures))


def _figures(run: Run) -> list[str]:
    crowded_s = [answer.seconds for _, answer in run.crowded]
    percentiles = [*_percentiles(run.alone_s), *_percentiles(run.first_text_s)]
    return [*percentiles, f"{len(crowded_s) / run.crowd_s:.1f}", _percentiles(crowded_s)[1]]


def _percentiles(seconds: Sequence[float]) -> list[str]:
    return [f"{1e3 * value:.1f}" for value in np.percentile(seconds, [50, 95])]
