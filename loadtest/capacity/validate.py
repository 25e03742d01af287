"""Predicted against measured: six mixes are simulated, and then played against a real server on this machine."""

import asyncio
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from loadtest.capacity.costs import StageCosts, WorkProfile
from loadtest.capacity.simulation import MixOutcome, TrafficMix, draw_arrivals, simulate_mix
from loadtest.capacity.traced_engine import QUESTION, QUESTION_TOKENS
from loadtest.clients.load import Question, measure_load
from loadtest.clients.server import REQUEST_TIMEOUT_S, BenchServer, make_body
from loadtest.live.audio import StreamAudio
from loadtest.live.levels import Level, run_level
from loadtest.support.process import OthersWatch
from loadtest.support.recordings import Recording, write_clip
from loadtest.support.statistics import percentile_ms

SEEDS = 5
ARRIVALS_SEED = 0
WARM_UP_S = 2.0
SILENCE_MS = 500
# Of the rate at which the simulated server is busy all the time.
OPEN_LOOP_SHARE = 0.6


@dataclass(frozen=True)
class Trial:
    """A mix, and the run that plays it against a server."""

    mix: TrafficMix
    play: Callable[[BenchServer], MixOutcome]


def validate(
    root: Path,
    costs: StageCosts,
    recordings: Sequence[Recording],
    streams: Sequence[StreamAudio],
    seconds: float,
    options: list[str],
) -> dict[str, Any]:
    """Play and simulate all mixes; return the rows, and how much of the processors others took."""
    with tempfile.TemporaryDirectory() as folder, BenchServer(root, options) as server:
        others = OthersWatch()
        rows = [
            compare(trial.mix, predict(costs, trial.mix, seconds), trial.play(server))
            for trial in make_trials(costs, recordings, streams, seconds, Path(folder))
        ]
        other_cpu_share = others.share()
    return {"rows": rows, "other_cpu_share": round(other_cpu_share, 4), "seconds": seconds, "costs": costs.conditions}


def make_trials(
    costs: StageCosts, recordings: Sequence[Recording], streams: Sequence[StreamAudio], seconds: float, folder: Path
) -> list[Trial]:
    """Return the six mixes with their plays."""
    files = [find_work(costs, f"file/{each.name}") for each in recordings]
    questions = [find_work(costs, f"question/{each.name}") for each in recordings if has_work(costs, f"question/{each.name}")]
    clips = [write_clip(folder, each.name, each.samples) for each in recordings]
    posts = [Question(make_body(clip.audio), clip.seconds, "") for clip in clips]
    asked = [
        Question(make_body(clip.audio, QUESTION, max_tokens=QUESTION_TOKENS), clip.seconds, "")
        for clip in clips
        if has_work(costs, f"question/{clip.name}")
    ]
    rate_hz = round(OPEN_LOOP_SHARE * saturated_rate_hz(costs, files), 2)
    # The same for both: what a queue holds at 60 % load depends on when its files come.
    arrivals = draw_arrivals(rate_hz, len(files), WARM_UP_S + seconds, ARRIVALS_SEED)

    def closed(name: str, clients: int, works: list[WorkProfile], bodies: list[Question]) -> Trial:
        mix = TrafficMix(name, clients=clients, works=tuple(works))
        return Trial(mix, lambda server: play_closed(server, bodies, clients, seconds))

    def live(name: str, sessions: int, *, beside: bool) -> Trial:
        profiles = costs.streams[:sessions]
        mix = TrafficMix(name, int(beside), 0.0, sessions, (files[0],) if beside else (), profiles)
        level = Level(sessions, beside, SILENCE_MS)
        return Trial(mix, lambda server: play_live(server, level, streams[:sessions], posts[0]))

    trials = [
        closed("1 client, files", 1, files, posts),
        closed("4 clients, files", 4, files, posts),
        closed("24 clients, files", 24, files, posts),
        Trial(
            TrafficMix(f"{rate_hz:g} files per second, Poisson", rate_hz=rate_hz, works=tuple(files), arrivals=arrivals),
            lambda server: play_open(server, posts, arrivals, seconds),
        ),
        live("2 live sessions", 2, beside=False),
        live("1 live session beside 1 client", 1, beside=True),
    ]
    if questions:
        trials[1] = closed("2 clients, questions to the LLM", 2, questions, asked)
    return trials


def predict(costs: StageCosts, mix: TrafficMix, seconds: float) -> MixOutcome:
    """Return what the simulator says, over several seeds."""
    if mix.sessions:
        seconds = max(profile.audio_s for profile in mix.streams)
    whole = MixOutcome(SEEDS * seconds)
    for seed in range(SEEDS):
        outcome = simulate_mix(costs, mix, seconds, seed=seed, warm_up_s=0.0 if mix.sessions else WARM_UP_S)
        whole.file_waits_s += outcome.file_waits_s
        whole.final_waits_s += outcome.final_waits_s
        whole.refused += outcome.refused
        whole.partials += outcome.partials
        whole.utilisation += outcome.utilisation / SEEDS
    return whole


def compare(mix: TrafficMix, predicted: MixOutcome, measured: MixOutcome) -> dict[str, Any]:
    """Return the row of one mix: each figure predicted, measured, and the ratio."""
    row: dict[str, Any] = {"mix": mix.name, "utilisation_predicted": round(predicted.utilisation, 3)}
    figures: list[tuple[str, float | None, float | None]] = []
    if mix.works:
        figures.append(("files_per_s", predicted.files_per_s, measured.files_per_s))
    for name in ("file", "final"):
        expected_s, found_s = getattr(predicted, f"{name}_waits_s"), getattr(measured, f"{name}_waits_s")
        figures += [
            (f"{name}_p{percent}_ms", percentile_ms(expected_s, percent), percentile_ms(found_s, percent)) for percent in (50, 95)
        ]
    row["figures"] = {
        name: {
            "predicted": _round(expected),
            "measured": _round(found),
            "ratio": round(expected / found, 3) if expected and found else None,
        }
        for name, expected, found in figures
        if expected is not None or found is not None
    }
    row["partials"] = {"predicted": round(predicted.partials / SEEDS, 1), "measured": measured.partials}
    row["refused"] = {
        "predicted_per_s": round(predicted.refused / predicted.seconds, 2),
        "measured_per_s": round(measured.refused / measured.seconds, 2),
    }
    return row


def play_closed(server: BenchServer, questions: Sequence[Question], clients: int, seconds: float) -> MixOutcome:
    """Have so many clients post files, each the next one as soon as it has its answer."""
    load = measure_load(server.url, questions, clients, WARM_UP_S, seconds)
    return MixOutcome(load.window_s, load.latencies_s, refused=load.refused)


def play_open(
    server: BenchServer, questions: Sequence[Question], arrivals: Sequence[tuple[float, int]], seconds: float
) -> MixOutcome:
    """Post files at the moments of `arrivals`, which also say which; those answered within `seconds` after the warm-up count."""
    return asyncio.run(_play_open(server.url, questions, arrivals, seconds))


def play_live(server: BenchServer, level: Level, streams: Sequence[StreamAudio], question: Question) -> MixOutcome:
    """Play live sessions, beside one client that posts files where the level says so."""
    result = run_level(server.url, server.pid, level, streams, question)
    load = result.load
    seconds = load.window_s if load else max(len(each.samples) / 16_000 for each in streams)
    outcome = MixOutcome(seconds, load.latencies_s if load else [], refused=load.refused if load else 0)
    outcome.final_waits_s = [each.final_s for each in result.heard() if each.final_s is not None]
    outcome.partials = sum(len(run.of_type("partial")) for run in result.runs)
    return outcome


def saturated_rate_hz(costs: StageCosts, works: Sequence[WorkProfile]) -> float:
    """Return the files per second at which the simulated server is busy all the time."""
    mix = TrafficMix("saturation", clients=2 * costs.slots, works=tuple(works))
    return simulate_mix(costs, mix, 60.0, warm_up_s=5.0).files_per_s


def find_work(costs: StageCosts, name: str) -> WorkProfile:
    """Return the measured work of a recording. Raises `ValueError` if it was not measured."""
    for profile in costs.profiles:
        if profile.name == name:
            return profile
    raise ValueError(f"the costs hold no {name}: they were measured with other recordings")


def has_work(costs: StageCosts, name: str) -> bool:
    """Return whether the work of a recording was measured."""
    return any(profile.name == name for profile in costs.profiles)


async def _play_open(
    url: str, questions: Sequence[Question], arrivals: Sequence[tuple[float, int]], seconds: float
) -> MixOutcome:
    outcome = MixOutcome(seconds)
    started_s = time.perf_counter()
    begin_s = started_s + WARM_UP_S
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=REQUEST_TIMEOUT_S, limits=limits, trust_env=False) as client:

        async def post(question: Question, due_s: float) -> None:
            headers = {"content-type": question.body.content_type}
            response = await client.post("/v1/instruct", content=question.body.content, headers=headers)
            answered_s = time.perf_counter()
            if response.status_code == 429:
                outcome.refused += 1
            elif response.status_code == 200 and begin_s <= answered_s <= begin_s + seconds:
                outcome.file_waits_s.append(answered_s - due_s)

        async with asyncio.TaskGroup() as under_way:
            for at_s, number in arrivals:
                await asyncio.sleep(max(0.0, started_s + at_s - time.perf_counter()))
                under_way.create_task(post(questions[number], started_s + at_s))
    return outcome


def _round(value: float | None) -> float | None:
    return None if value is None else round(value, 2)
