"""The whole server on the device beside the whole server on the CPU, and on several GPUs beside one: the same bundle, the same
questions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

import numpy as np
import torch

from export.gpu_check.report import Findings, Table
from export.gpu_check.server_process import Answer, Question, Server, serve
from export.gpu_check.steps import ROOT
from export.gpu_check.workbench import Workbench

CLIENTS = 8
INSTRUCTIONS = (
    "Transcribe the speech to text.",
    "Which language is spoken? Answer in one word.",
    "Summarise what is said in one sentence.",
)
"""The first is what latencies are measured with."""
SMALLEST_LIKENESS = 0.5
"""Of two transcripts, as difflib counts equal words, where one was computed in bfloat16: near-ties fall otherwise, and greedy
decoding goes on from there. Chosen, not measured: a chain that is wrong has hardly a word in common with one that is right."""


@dataclass(frozen=True)
class Run:
    """What one server did: answers by question, seconds of each clip's transcript and of its first text, and under load."""

    answers: dict[Question, str]
    alone_s: Sequence[float]
    first_text_s: Sequence[float]
    crowded: Sequence[tuple[Question, Answer]]
    crowd_s: float


def check_server(bench: Workbench) -> Findings:
    """Transcripts have to be the CPU's, alone and under load: where the device computes in float32, word for word."""
    questions = [Question(clip.file, instruction) for instruction in INSTRUCTIONS for clip in bench.clips]
    runs = {}
    for device in ("cpu", bench.kind):
        with serve(ROOT, bench.folder, device, bench.scratch / f"server-{device}.log") as server:
            runs[device] = exercise(server, questions, len(bench.clips), bench.scale.rounds)
    return server_findings(runs, {"cpu": 1.0, bench.kind: _least_likeness(bench)})


def check_several_gpus(bench: Workbench) -> Findings:
    """Transcripts have to be those of one GPU, whichever of them answers."""
    if bench.gpus < 2:
        return Findings(notes=("There is one GPU: nothing to compare it with.",))
    questions = [Question(clip.file, INSTRUCTIONS[0]) for clip in bench.clips]
    numbers = ",".join(map(str, range(bench.gpus)))
    runs = {}
    for name, chosen in (("one GPU", "0"), (f"{bench.gpus} GPUs", numbers)):
        with serve(ROOT, bench.folder, bench.kind, bench.scratch / f"server-gpus-{chosen}.log", "--gpus", chosen) as server:
            runs[name] = exercise(server, questions, len(questions), bench.scale.rounds)
    return server_findings(runs, dict.fromkeys(runs, _least_likeness(bench)))


def exercise(server: Server, questions: Sequence[Question], clips: int, rounds: int) -> Run:
    """Every question once; then the first `clips` of them again: alone, streamed, and by many clients at once."""
    answers = {question: server.ask(question).text for question in questions}
    transcripts = questions[:clips]
    alone_s = [server.ask(question).seconds for _ in range(rounds) for question in transcripts]
    first_text_s = [server.first_text_s(question) for _ in range(rounds) for question in transcripts]
    crowd = [*transcripts] * (2 * rounds)
    crowded, crowd_s = server.ask_at_once(crowd, CLIENTS)
    return Run(answers, alone_s, first_text_s, list(zip(crowd, crowded, strict=True)), crowd_s)


def server_findings(runs: Mapping[str, Run], likeness: Mapping[str, float]) -> Findings:
    """The second of two runs beside the first. Transcripts that are less alike than a run's `likeness` (1: the same words) are
    failures: the second's beside the first's, and those of either under load beside those alone. Other instructions' answers are
    shown.
    """
    (first, oracle), (name, run) = runs.items()
    texts, failures = [], []
    for question, text in run.answers.items():
        theirs = oracle.answers[question]
        same = text == theirs
        texts.append((question.audio.stem, question.instruction, "yes" if same else "no", text, "" if same else theirs))
        if question.instruction == INSTRUCTIONS[0] and _likeness(text, theirs) < likeness[name]:
            failures.append(f"{question.audio.stem}: the transcript is not that of {first}")
    times = []
    for device, each in runs.items():
        pairs = [(question, answer.text, each.answers[question]) for question, answer in each.crowded]
        changed = {question.audio.stem for question, crowded, alone in pairs if _likeness(crowded, alone) < likeness[device]}
        failures += [f"{clip}: another transcript under load on {device}" for clip in sorted(changed)]
        equal = sum(crowded == alone for _, crowded, alone in pairs)
        times.append((device, *_figures(each), f"{equal} of {len(pairs)}"))
    heading = (
        "device", "p50 ms", "p95 ms", "first text p50 ms", "p95 ms", f"{CLIENTS} clients: requests a second", "p95 ms",
        "of their texts the same as alone",
    )  # fmt: skip
    answers = Table(
        "Answers", ("clip", "instruction", f"as on {first}", f"on {name}", f"on {first}, where another"), tuple(texts)
    )
    note = (
        f"Over HTTP, from the request to the whole answer: {len(run.alone_s)} transcripts one after the other, as many streamed, "
        f"and {len(run.crowded)} by {CLIENTS} clients at once."
    )
    return Findings((Table("Times of transcripts", heading, tuple(times)), answers), (note,), tuple(failures))


def _least_likeness(bench: Workbench) -> float:
    return 1.0 if bench.device.float_type == torch.float32 else SMALLEST_LIKENESS


def _likeness(text: str, other: str) -> float:
    return SequenceMatcher(None, text.split(), other.split(), autojunk=False).ratio()


def _figures(run: Run) -> list[str]:
    crowded_s = [answer.seconds for _, answer in run.crowded]
    percentiles = [*_percentiles(run.alone_s), *_percentiles(run.first_text_s)]
    return [*percentiles, f"{len(crowded_s) / run.crowd_s:.1f}", _percentiles(crowded_s)[1]]


def _percentiles(seconds: Sequence[float]) -> list[str]:
    return [f"{1e3 * value:.1f}" for value in np.percentile(seconds, [50, 95])]
