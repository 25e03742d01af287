"""Which settings of the endpointer lose words, and how late it is: `server/engine/live/endpointing.py` over joined recordings.

    python -m training.endpointing_study --bundle BUNDLE --data DATA_DIR --out training/results

Clips of the train manifest, those held out from training first, are joined with 0.3 to 1 s of faint noise between them, cut by
the voice detector and the endpointer, and transcribed utterance by utterance with the bundle. One setting at a time is moved away
from the defaults. How long an utterance may well be shows in clips of one set by their length. Writes `endpointing.json` and
`endpointing.md`.
"""

import argparse
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from export.markdown import table
from models.assemble import load_models
from models.bundle.io import open_bundle
from models.protocols import Float32
from server.engine.live.endpointing import DEFAULT_TUNING, Endpointer, SpeechOver, SpeechPaused, SpeechResumed, Tuning
from server.engine.types.options import VoiceOptions
from training.evaluate import TRANSCRIBE, Chain
from training.recordings import held_out_rank, read_audio, read_rows
from training.word_errors import word_error_rate

RATE_HZ = 16_000
MINUTES = {"libri_clean": 6.0, "nonnative": 3.0}
LENGTHS_S = range(4, 18, 2)
CLIPS_PER_LENGTH = 30
GAP_S = (0.3, 1.0)
NOISE_DB = -65.0
FRAME_SAMPLES = 160
QUIET_DB = -30.0
"""Speech ends, as far as lag is concerned, with the last 10 ms that are no further below a clip's loudest."""

KINDS = ("LLM", "draft")
DEFAULT = VoiceOptions()


@dataclass(frozen=True)
class Setting:
    name: str
    options: VoiceOptions = DEFAULT
    tuning: Tuning = DEFAULT_TUNING


def settings() -> list[Setting]:
    """Return the defaults, and settings in which one value at a time is another."""
    chosen = [Setting("default")]
    chosen += [Setting(f"silence {value} s", replace(DEFAULT, silence_s=value)) for value in (0.2, 0.3, 0.8)]
    chosen += [Setting(f"pause {value} s", tuning=replace(DEFAULT_TUNING, pause_s=value)) for value in (0.03, 0.1, 0.2, 0.3)]
    chosen += [Setting(f"at most {value:.0f} s", replace(DEFAULT, max_utterance_s=value)) for value in (8.0, 12.0, 25.0)]
    long = [replace(DEFAULT, silence_s=0.8, max_utterance_s=value) for value in (8.0, 12.0, 25.0)]
    chosen += [Setting(f"silence 0.8 s, at most {each.max_utterance_s:.0f} s", each) for each in long]
    chosen += [Setting(f"padding {value} s", replace(DEFAULT, prefix_padding_s=value)) for value in (0.1, 0.2, 0.5)]
    chosen += [Setting(f"threshold {value}", replace(DEFAULT, threshold=value)) for value in (0.3, 0.7)]
    chosen += [Setting(f"onset {value} s", tuning=replace(DEFAULT_TUNING, onset_s=value)) for value in (0.03, 0.09)]
    chosen += [Setting("no hysteresis", tuning=replace(DEFAULT_TUNING, hysteresis=0.0))]
    return chosen


@dataclass(frozen=True)
class Track:
    """Clips of one set in a row. `loud` says of each 10 ms whether there is speech by its energy."""

    name: str
    text: str
    clips: list[Float32]
    audio: Float32
    loud: Any
    probabilities: Float32

    def speech_end_before(self, sample: int) -> int:
        return int(self.loud[: sample // FRAME_SAMPLES].nonzero()[0][-1] + 1) * FRAME_SAMPLES


def loudness(audio: Float32) -> Any:
    frames = audio[: len(audio) // FRAME_SAMPLES * FRAME_SAMPLES].reshape(-1, FRAME_SAMPLES)
    level_db = 10 * np.log10((frames**2).mean(axis=1) + 1e-12)
    return level_db > level_db.max() + QUIET_DB


def read_held_out_first(data: Path, name: str) -> list[dict[str, Any]]:
    """Read the rows of a set, those held out from training first."""
    return sorted(read_rows(data / "train.jsonl", {name}), key=held_out_rank)


def read_whole_frames(path: Path) -> Float32:
    """Read audio, cut to whole frames."""
    audio = read_audio(path)
    return audio[: len(audio) // FRAME_SAMPLES * FRAME_SAMPLES]


def read_track(data: Path, name: str, chain: Chain) -> Track:
    rows = read_held_out_first(data, name)
    random = np.random.default_rng(0)
    clips, texts, parts, loud = list[Float32](), list[str](), list[Float32](), []
    while sum(map(len, parts)) < MINUTES[name] * 60 * RATE_HZ:
        row = rows[len(clips)]
        audio = read_whole_frames(data / row["file"])
        gap = int(random.uniform(*GAP_S) * 100) * FRAME_SAMPLES
        noise = random.normal(0, 10 ** (NOISE_DB / 20), gap).astype(np.float32)
        clips.append(audio)
        texts.append(row["text"])
        parts += [noise, audio]
        loud += [np.zeros(gap // FRAME_SAMPLES, bool), loudness(audio)]
    parts.append(np.zeros(RATE_HZ, np.float32))
    loud.append(np.zeros(RATE_HZ // FRAME_SAMPLES, bool))
    window = chain.models.voice.window_samples
    whole = np.concatenate(parts)
    whole = whole[: len(whole) // window * window]
    return Track(name, " ".join(texts), clips, whole, np.concatenate(loud), chain.models.voice.detect(whole, None)[0])


@dataclass(frozen=True)
class Cuts:
    """The result of an endpointer on a track: utterances, the delay of their ends, and the number of wrong pauses."""

    utterances: list[tuple[int, int]]
    pause_lag_s: list[float]
    over_lag_s: list[float]
    resumed: int


def cut(track: Track, setting: Setting, window: int) -> Cuts:
    endpointer = Endpointer(setting.options, window, RATE_HZ, setting.tuning)
    cuts = Cuts([], [], [], resumed := 0)
    paused_at = None
    for index, probability in enumerate(track.probabilities):
        heard = (index + 1) * window
        for mark in endpointer.push([probability]):
            match mark:
                case SpeechPaused():
                    paused_at = heard
                case SpeechResumed():
                    paused_at = None
                    resumed += 1
                case SpeechOver(start, end):
                    cuts.utterances.append((start, end))
                    if paused_at is not None:
                        speech_end = track.speech_end_before(paused_at)
                        cuts.pause_lag_s.append((paused_at - speech_end) / RATE_HZ)
                        cuts.over_lag_s.append((heard - speech_end) / RATE_HZ)
                    paused_at = None
    return replace(cuts, resumed=resumed)


class Transcriber:
    """The texts, by the LLM and by the CTC draft alone, of pieces of the tracks; each piece is transcribed once."""

    def __init__(self, chain: Chain, tracks: list[Track]) -> None:
        self._chain = chain
        self._tracks = {track.name: track for track in tracks}
        self.text = cache(self._text)

    def _text(self, track: str, start: int, end: int) -> tuple[str, str]:
        return self.clip(self._tracks[track].audio[start:end])

    def clip(self, audio: Float32) -> tuple[str, str]:
        output = self._chain.project(audio)
        draft = self._chain.draft(output)
        return (self._chain.answer_speech(TRANSCRIBE, output), draft) if draft else ("", "")


def error_rates(tracks: list[Track], texts: dict[str, list[tuple[str, str]]]) -> Iterator[tuple[str, float]]:
    for track in tracks:
        for which, kind in enumerate(KINDS):
            joined = " ".join(pair[which] for pair in texts[track.name])
            yield f"{track.name} {kind}", round(word_error_rate([track.text], [joined]), 4)


def ran_on(pairs: Iterable[tuple[str, str]]) -> int:
    """Return how many of the LLM's texts are so much longer than the draft that it must have repeated itself."""
    return sum(len(text.split()) > 1.5 * len(draft.split()) + 5 for text, draft in pairs)


def by_length(data: Path, name: str, transcriber: Transcriber) -> list[dict[str, Any]]:
    """Clips of a set, by the LLM and by the draft, where each length in seconds is a row."""
    rows = []
    every = read_held_out_first(data, name)
    for length_s in LENGTHS_S:
        chosen = [row for row in every if length_s <= row["duration_s"] < length_s + LENGTHS_S.step][:CLIPS_PER_LENGTH]
        pairs = [transcriber.clip(read_whole_frames(data / row["file"])) for row in tqdm(chosen, desc=f"{length_s} s")]
        references = [row["text"] for row in chosen]
        rates = {kind: round(word_error_rate(references, [pair[which] for pair in pairs]), 4) for which, kind in enumerate(KINDS)}
        rows.append({"from_s": length_s, "clips": len(chosen), "word_error_rate": rates, "ran_on": ran_on(pairs)})
    return rows


def measure(tracks: list[Track], setting: Setting, transcriber: Transcriber, window: int) -> dict[str, Any]:
    cuts = {track.name: cut(track, setting, window) for track in tracks}
    texts = {
        name: [transcriber.text(name, *span) for span in tqdm(each.utterances, desc=setting.name)] for name, each in cuts.items()
    }
    lengths_s = [(end - start) / RATE_HZ for each in cuts.values() for start, end in each.utterances]
    pause_lag_s = [lag for each in cuts.values() for lag in each.pause_lag_s]
    over_lag_s = [lag for each in cuts.values() for lag in each.over_lag_s]
    minutes = sum(len(track.audio) for track in tracks) / RATE_HZ / 60
    return {
        "setting": setting.name,
        "word_error_rate": dict(error_rates(tracks, texts)),
        "ran_on": sum(map(ran_on, texts.values())),
        "utterances_per_minute": round(len(lengths_s) / minutes, 1),
        "mean_length_s": round(float(np.mean(lengths_s)), 2),
        "longest_s": round(max(lengths_s), 2),
        "resumed_per_utterance": round(sum(each.resumed for each in cuts.values()) / len(lengths_s), 2),
        "pause_lag_ms": percentiles_ms(pause_lag_s),
        "over_lag_ms": percentiles_ms(over_lag_s),
    }


def percentiles_ms(lags_s: list[float]) -> dict[str, int] | None:
    """None where nothing paused before it was over."""
    return {f"p{each}": round(1000 * float(np.percentile(lags_s, each))) for each in (50, 95)} if lags_s else None


def report(result: dict[str, Any]) -> str:
    alone = result["clips_alone"]
    heads = [
        "setting",
        *alone["word_error_rate"],
        "ran on",
        "per minute",
        "mean s",
        "resumed",
        "paused after ms",
        "over after ms",
    ]

    def percent(row: dict[str, Any]) -> list[str]:
        return [f"{100 * rate:.1f} %" for rate in row["word_error_rate"].values()]

    def lag(values: dict[str, int] | None) -> str:
        return f"{values['p50']} ({values['p95']})" if values else ""

    rows = [["clips alone, uncut", *percent(alone), alone["ran_on"], "", "", "", "", ""]]
    for row in result["settings"]:
        cells = [row["setting"], *percent(row), row["ran_on"], row["utterances_per_minute"], row["mean_length_s"]]
        rows.append([*cells, row["resumed_per_utterance"], lag(row["pause_lag_ms"]), lag(row["over_lag_ms"])])
    lengths = [
        [f"{row['from_s']} to {row['from_s'] + LENGTHS_S.step} s", row["clips"], *percent(row), row["ran_on"]]
        for row in result["by_length"]
    ]
    return f"{table(heads, rows)}\n\n{table(['libri_clean', 'clips', *KINDS, 'ran on'], lengths)}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="folder of train.jsonl")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    chain = Chain(load_models(open_bundle(arguments.bundle), slots=1, threads=arguments.threads))
    tracks = [read_track(arguments.data, name, chain) for name in MINUTES]
    transcriber = Transcriber(chain, tracks)
    texts = {track.name: [transcriber.clip(clip) for clip in tqdm(track.clips, desc=track.name)] for track in tracks}
    result = {
        "bundle": arguments.bundle.name,
        "clips_alone": {"word_error_rate": dict(error_rates(tracks, texts)), "ran_on": sum(map(ran_on, texts.values()))},
        "settings": [measure(tracks, setting, transcriber, chain.models.voice.window_samples) for setting in settings()],
        "by_length": by_length(arguments.data, "libri_clean", transcriber),
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "endpointing.json").write_text(json.dumps(result, indent=1) + "\n")
    (arguments.out / "endpointing.md").write_text(report(result))
    print(report(result))


if __name__ == "__main__":
    main()
