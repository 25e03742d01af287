"""Answers to spoken requests, checked, beside the same LLM's answers to the true text.

    python -m loadtest.answers --url http://127.0.0.1:8000 --data SPOKEN --beside 'true text=texts.json' --out loadtest/results

`--data` holds `manifest.jsonl` and the audio (`training.spoken_requests.speak` makes it). Every request is sent once. `--beside`
names a file of answers by request id, which `training.text_answers` makes: of the true text, which the thin gap is measured
against where it is named so, or of another recogniser's transcripts, the plain cascade. Without `--url` files alone are judged.
The rules are those of `loadtest/support/judging.py`. Writes `answers.json` and `answers.md`.
"""

import json
import threading
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any

import httpx
from tqdm import tqdm

from loadtest.support.asking import open_client
from loadtest.support.judging import OUTCOMES, Case, Outcome, judge, normal_words, token_f1
from loadtest.support.markdown import table
from loadtest.support.options import new_parser
from loadtest.support.plots import open_plot
from loadtest.support.recordings import read_rows
from loadtest.support.results import write_results

MAX_TOKENS = "64"
BUSY = (429, 503, 504)
TRIES, PAUSE_S = 10, 5.0
SPEECH, TRUE_TEXT = "speech", "true text"
BY_SPEECH_DECODER = {"translation"}
"""Kinds that the speech decoder answers, so that there is no LLM's answer from speech to compare."""
THIN_F1 = 0.8
TOLD_FAILURES = 30


@dataclass(frozen=True)
class Judged:
    """One system's answer to one request."""

    id: str
    kind: str
    spoken_by: str
    answer: str
    outcome: Outcome
    elapsed_ms: float | None = None


@dataclass(frozen=True)
class Gap:
    """How far answers from speech are from those of the true text: counts, and the mean token F1."""

    requests: int
    equal: int
    thin: int
    f1: float


def spoken_by(row: Mapping[str, Any]) -> str:
    return "recording" if row["recording"] else "synthesis"


def ask(client: httpx.Client, row: Mapping[str, Any], audio: bytes) -> tuple[str, float]:
    """Return the answer from speech and its time in ms. A busy server is asked again. Raises `httpx.HTTPError`."""
    fields = {"instruction": row["instruction"], "max_tokens": MAX_TOKENS}
    if row["json_schema"] is not None:
        fields["json_schema"] = json.dumps(row["json_schema"])
    if row["is_choice"]:
        fields["choice"] = json.dumps(row["options"])
    for _ in range(TRIES):
        started_s = time.perf_counter()
        reply = client.post("/v1/instruct", files={"audio": audio}, data=fields)
        if reply.status_code not in BUSY:
            break
        time.sleep(PAUSE_S)
    reply.raise_for_status()
    return reply.json()["text"], 1000 * (time.perf_counter() - started_s)


def ask_all(url: str, rows: Sequence[Mapping[str, Any]], data: Path, told: Path, parallel: int = 1) -> list[Judged]:
    """Return the server's answers in the order of `rows`, asked for `parallel` at a time. Raises `httpx.HTTPError`.

    Each is written to the file `told` as it comes; the requests whose answers that has already are not asked again.
    """
    known = {each["id"]: each for each in map(json.loads, told.read_text().splitlines())} if told.exists() else {}
    lock = threading.Lock()
    with open_client(url) as client, ThreadPoolExecutor(parallel) as pool:

        def judge_row(row: Mapping[str, Any]) -> Judged:
            if row["id"] not in known:
                answer, elapsed_ms = ask(client, row, (data / row["audio"]).read_bytes())
                known[row["id"]] = {"id": row["id"], "answer": answer, "elapsed_ms": round(elapsed_ms, 1)}
                with lock, told.open("a", encoding="utf-8") as file:
                    print(json.dumps(known[row["id"]], ensure_ascii=False), file=file)
            found = known[row["id"]]
            outcome = judge(Case.from_row(dict(row)), found["answer"])
            return Judged(row["id"], row["kind"], spoken_by(row), found["answer"], outcome, found["elapsed_ms"])

        return list(tqdm(pool.map(judge_row, rows), total=len(rows), desc="requests"))


def judge_file(rows: Iterable[Mapping[str, Any]], answers: Mapping[str, str]) -> list[Judged]:
    """Return the answers of a file, as far as it has them."""
    return [
        Judged(row["id"], row["kind"], spoken_by(row), answers[row["id"]], judge(Case.from_row(dict(row)), answers[row["id"]]))
        for row in rows
        if row["id"] in answers
    ]


def measure_gap(speech: Sequence[Judged], texts: Sequence[Judged]) -> Gap:
    """Compare the answers to the same requests."""
    by_id = {each.id: normal_words(each.answer) for each in texts}
    pairs = [(normal_words(each.answer), by_id[each.id]) for each in speech if each.id in by_id]
    scores = [token_f1(text, heard) for heard, text in pairs]
    equal = sum(heard == text for heard, text in pairs)
    return Gap(len(pairs), equal, sum(score >= THIN_F1 for score in scores), mean(scores) if scores else 0.0)


def share(part: int, whole: int) -> str:
    """Return a part of a whole in percent."""
    return f"{100 * part / whole:.0f} %" if whole else "-"


def right_table(systems: Mapping[str, Sequence[Judged]]) -> list[str]:
    """Return how many answers of each kind are right, and how near those from speech are to those from the true text."""
    kinds = list(dict.fromkeys(each.kind for each in next(iter(systems.values()))))
    gaps = SPEECH in systems and TRUE_TEXT in systems
    head = ["kind", "requests", *(f"right: {name}" for name in systems)]
    head += ["equal to true text", f"equal or F1 ≥ {THIN_F1}", "mean F1"] if gaps else []
    rows = []
    groups = {kind: {kind} for kind in kinds}
    groups |= {"**all by the LLM**": set(kinds) - BY_SPEECH_DECODER, "**all**": set(kinds)}
    for name, members in groups.items():
        own = {system: [each for each in judged if each.kind in members] for system, judged in systems.items()}
        first = next(iter(own.values()))
        cells: list[Any] = [name, len(first)]
        cells += [share(sum(each.outcome == "right" for each in judged), len(judged)) for judged in own.values()]
        if gaps:
            gap = measure_gap(own[SPEECH], own[TRUE_TEXT])
            cells += [share(gap.equal, gap.requests), share(gap.thin, gap.requests), f"{gap.f1:.2f}"]
        rows.append(cells)
    return table(head, rows)


def failure_table(systems: Mapping[str, Sequence[Judged]]) -> list[str]:
    """Return how often each outcome occurs."""
    counts = {name: Counter(each.outcome for each in judged) for name, judged in systems.items()}
    return table(["outcome", *systems], [[outcome, *(each[outcome] for each in counts.values())] for outcome in OUTCOMES])


def source_table(systems: Mapping[str, Sequence[Judged]]) -> list[str]:
    """Return how many answers are right about synthesised speech and about recordings."""
    rows = []
    for source in ("synthesis", "recording"):
        own = [[each for each in judged if each.spoken_by == source] for judged in systems.values()]
        rows.append([source, len(own[0]), *(share(sum(each.outcome == "right" for each in of), len(of)) for of in own)])
    return table(["spoken by", "requests", *(f"right: {name}" for name in systems)], rows)


def failures(rows: Sequence[Mapping[str, Any]], judged: Sequence[Judged]) -> list[str]:
    """Return some answers that are not right, evenly over the kinds, as a table."""
    by_id = {row["id"]: row for row in rows}
    wrong = [each for each in judged if each.outcome != "right"]
    told = wrong[:: max(1, -(-len(wrong) // TOLD_FAILURES))]
    lines = []
    for each in told:
        row = by_id[each.id]
        expected = row["slots"] or " + ".join("/".join(fact) for fact in row["expected"])
        lines.append([each.outcome, *(_cell(str(text)) for text in (row["text"], row["instruction"], expected, each.answer))])
    return table(["outcome", "said", "instruction", "expected", "answer"], lines)


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "/").split())


def report(rows: Sequence[Mapping[str, Any]], systems: Mapping[str, Sequence[Judged]]) -> list[str]:
    """Return the whole report as lines of Markdown."""
    told = next(iter(systems))
    times = [each.elapsed_ms for each in systems[told] if each.elapsed_ms is not None]
    lines = [*right_table(systems), "", *failure_table(systems), "", *source_table(systems), ""]
    if times:
        lines += [f"Time from request to answer from speech: p50 {median(times):.0f} ms.", ""]
    return [
        *lines,
        f"Answers of {told} that are not right, every one of {TOLD_FAILURES} spread over all:",
        "",
        *failures(rows, systems[told]),
    ]


def plot(systems: Mapping[str, Sequence[Judged]], path: Path) -> None:
    """Draw the share of right answers by kind."""
    kinds = list(dict.fromkeys(each.kind for each in next(iter(systems.values()))))
    width = 0.8 / len(systems)
    with open_plot(path, size=(9, 3.6)) as axes:
        for number, (name, judged) in enumerate(systems.items()):
            of_kind = [[each.outcome == "right" for each in judged if each.kind == kind] for kind in kinds]
            heights = [100 * mean(each) if each else 0.0 for each in of_kind]
            places = [place + (number - (len(systems) - 1) / 2) * width for place in range(len(kinds))]
            axes.bar(places, heights, width, label=name)
        axes.set_xticks(range(len(kinds)), kinds)
        axes.set(ylabel="right answers, %", ylim=(0, 100))
        axes.legend()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--url", help="a server to ask; without it files alone are judged")
    parser.add_argument("--data", type=Path, required=True, metavar="FOLDER", help="with manifest.jsonl and the audio")
    parser.add_argument("--beside", action="append", default=[], metavar="NAME=FILE", help="answers by request id, as JSON")
    parser.add_argument("--parallel", type=int, default=1, help="requests at a time; more than one change no answer, only times")
    parser.add_argument("--told", type=Path, default=Path("answers.jsonl"), help="answers as they come; a second run goes on")
    parser.add_argument("--half", default="reported")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="without it results are printed only")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the share of right answers")
    parsed = parser.parse_args(arguments)
    manifest = parsed.data if parsed.data.is_file() else parsed.data / "manifest.jsonl"
    rows = [row for row in read_rows(manifest) if row["half"] == parsed.half]
    systems = {SPEECH: ask_all(parsed.url, rows, parsed.data, parsed.told, parsed.parallel)} if parsed.url else {}
    for name, file in (beside.split("=", 1) for beside in parsed.beside):
        systems[name] = judge_file(rows, json.loads(Path(file).read_text(encoding="utf-8")))
    if not systems:
        parser.error("there is neither --url nor --beside")
    lines = report(rows, systems)
    print("\n".join(lines))
    if parsed.out is not None:
        told = {name: [asdict(each) for each in judged] for name, judged in systems.items()}
        write_results(parsed.out, "answers", told, "\n".join(lines) + "\n")
    if parsed.plot is not None:
        plot(systems, parsed.plot)


if __name__ == "__main__":
    main()
