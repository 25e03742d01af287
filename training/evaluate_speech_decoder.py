"""Measure the speech decoder of a bundle, without an engine, on held-out training recordings beside one in another precision.

    python -m training.evaluate_speech_decoder --data DATA_DIR --cache work/cache/whisper-0 --bundle INT8 --reference FP32

Prints how often transcripts and tokens are the same as the other bundle's and as those that the cache holds, the word
error rates, and how often Whisper's own checks of language, silence and loops would be right. Every transcript is greedy. Then
the processor time of a pass, which is its time on an idle machine with `--threads 1`: the least of several.
"""

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import mean

import numpy as np

from export import markdown
from models.assemble import load_models
from models.bundle.io import open_bundle
from models.chain import Models
from models.protocols import EncoderStates, Float32, PrefillRow
from models.speech_decoders.speech_model import LEAST_MEAN_LOGPROB, is_loop
from training.cache_states import CachedUtterance, is_held_out, load_audio, read_index
from training.greedy_writer import GreedyWriter, Written
from training.word_errors import word_error_rate

REPEATS = 15

SURE_OF_LANGUAGE = 0.7
"""How likely a wrong language counts as one that was taken for sure."""


def continue_text(text: Sequence[int], written: Sequence[int]) -> Sequence[int]:
    """Return the tokens of a text behind what is written, as long as that is its beginning."""
    return text[len(written) :] if list(text[: len(written)]) == list(written) else ()


def states_of(models: Models, audio: Float32) -> EncoderStates:
    (states,) = models.encoder.encode([models.features(models.pad_audio(audio))])
    return states


def recordings(data: Path, caches: list[Path], clips: int) -> Iterator[tuple[CachedUtterance, Float32]]:
    """Yield the first held-out recordings of each set with their audio."""
    files = {Path(row["file"]).stem: row["file"] for row in map(json.loads, (data / "train.jsonl").read_text().splitlines())}
    counts: dict[str, int] = defaultdict(int)
    for entry in (entry for cache in caches for entry in read_index(cache)):
        if is_held_out(entry.id) and counts[entry.dataset] < clips:
            counts[entry.dataset] += 1
            yield entry, load_audio(data / files[entry.id])


def measure_agreement(models: Models, reference: Models, clips: list[tuple[CachedUtterance, Float32]]) -> str:
    """Return a table with a line for each set."""
    writer, other = GreedyWriter(models.require_speech()), GreedyWriter(reference.require_speech())
    rows: dict[str, list[tuple[CachedUtterance, Written, Written, list[bool]]]] = defaultdict(list)
    for entry, audio in clips:
        guess = partial(continue_text, entry.tokens)
        other_states = states_of(reference, audio)
        expected, mine = other.write(other_states, guess), writer.write(states_of(models, audio), guess)
        chosen = zip(writer.choose(other_states, expected.tokens), other.choose(other_states, expected.tokens), strict=True)
        rows[entry.dataset].append((entry, mine, expected, [one == another for one, another in chosen]))
    table = []
    for name, group in rows.items():
        said = [(entry.reference, entry.text, mine.text, expected.text) for entry, mine, expected, _ in group if entry.reference]
        errors = (
            [100 * word_error_rate([each[0] for each in said], [each[at] for each in said]) for at in (1, 2, 3)] if said else []
        )
        table.append(
            {
                "set": name,
                "clips": len(group),
                "same transcript": share([mine.tokens == expected.tokens for _, mine, expected, _ in group]),
                "same next token": share([same for *_, sames in group for same in sames]),
                "reference as the cache": share([expected.tokens == tuple(entry.tokens) for entry, _, expected, _ in group]),
                "WER of the cache, this, reference": " / ".join(f"{each:.1f}" for each in errors),
                "language right": share([mine.language == "en" for _, mine, *_ in group]),
                "wrong and sure": sum(
                    mine.language != "en" and mine.language_probability >= SURE_OF_LANGUAGE for _, mine, *_ in group
                ),
                "no speech, mean and most": f"{mean(mine.no_speech_probability for _, mine, *_ in group):.3f}, "
                f"{max(mine.no_speech_probability for _, mine, *_ in group):.3f}",
                "unlikely or a loop": sum(mine.mean_logprob < LEAST_MEAN_LOGPROB or is_loop(mine.text) for _, mine, *_ in group),
            }
        )
    return markdown.table(list(table[0]), [list(row.values()) for row in table])


def share(outcomes: list[bool]) -> str:
    return f"{sum(outcomes)} / {len(outcomes)}"


def measure_silence(models: Models, rate_hz: int) -> str:
    """Return a table of what is written about audio without speech."""
    rng, writer, rows = np.random.default_rng(0), GreedyWriter(models.require_speech()), []
    for name, loudness in (("silence", 0.0), ("faint noise", 0.001), ("noise", 0.03), ("loud noise", 0.3)):
        for duration_s in (2, 6):
            audio = rng.normal(0, loudness, duration_s * rate_hz).astype(np.float32)
            written = writer.write(states_of(models, audio))
            numbers = (f"{number:.2f}" for number in (written.no_speech_probability, written.mean_logprob))
            rows.append([f"{name}, {duration_s} s", *numbers, written.text])
    return markdown.table(["audio", "no speech", "mean log-probability", "text"], rows)


def measure_passes(models: Models) -> str:
    """Return a table of processor time: lines are passes, columns are how much audio the memory holds."""
    decoder, rng = models.require_speech().decoder, np.random.default_rng(0)
    table: dict[str, list[float]] = defaultdict(list)
    width = decoder.embedding_size
    for seconds in (5, 10):
        states = rng.normal(0, 1, (50 * seconds, width)).astype(np.float32)
        table["memory of 1 utterance"].append(least_ms(partial(decoder.write_memory, 0, states)))
        for slot in range(4):
            decoder.write_memory(slot, states)
        for count, tokens in ((1, 1), (1, 4), (1, 8), (1, 16), (1, 34), (4, 1), (4, 8)):
            embeddings = decoder.embed(list(range(1000, 1000 + tokens)))
            batch = [PrefillRow(slot, 0 if tokens == 34 else 30, embeddings, tokens) for slot in range(count)]
            table[f"{count} x {tokens} tokens"].append(least_ms(partial(decoder.prefill, batch)))
    rows = [[name, *(f"{time_ms:.1f}" for time_ms in times)] for name, times in table.items()]
    return markdown.table(["pass, ms of a processor", "5 s of audio", "10 s"], rows)


def least_ms(run: Callable[[], object]) -> float:
    times = []
    for _ in range(REPEATS):
        started_s = time.process_time()
        run()
        times.append(time.process_time() - started_s)
    return 1000 * min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with train.jsonl")
    parser.add_argument("--cache", type=Path, nargs="+", required=True, help="made by training.cache_whisper")
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--reference", type=Path, required=True, help="the bundle in another precision")
    parser.add_argument("--clips", type=int, default=20, help="of each set; default: %(default)s")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    bundle = open_bundle(arguments.bundle)
    models, reference = (
        load_models(each, slots=4, threads=arguments.threads) for each in (bundle, open_bundle(arguments.reference))
    )
    print(
        measure_agreement(models, reference, list(recordings(arguments.data, arguments.cache, arguments.clips))), "\n", flush=True
    )
    print(measure_silence(models, bundle.manifest.sample_rate_hz), "\n", flush=True)
    print(measure_passes(models), flush=True)


if __name__ == "__main__":
    main()
