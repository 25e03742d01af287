"""Compare ways to hear the silence behind short audio, with Whisper in float32 on held-out training recordings.

    python -m training.silence_study --data DATA_DIR --whisper CTRANSLATE2_DIR --sets nonnative,kathleen --clips 48

Transcripts are greedy and have no draft. Each way is compared with 30 s in all, as Whisper was trained: how many states the
encoder computes, how often the decoder's next token behind the other's text is the same, the word error rate, and how often
English is the likeliest language.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor
from tqdm import tqdm

from export import markdown
from models.features.log_mel import SAMPLE_RATE_HZ, Float32, log_mel
from models.graph.silent_rest import SilentRest
from training.cache_states import is_held_out, load_audio
from training.whisper_decoder import Decoding, Rules, WhisperDecoder, open_decoder
from training.whisper_encoder import WhisperEncoder
from training.word_errors import word_error_rate

WINDOW_S, STATES_PER_S, LONGEST_S = 30.0, 50, 24.0
LONGEST_TRANSCRIPT = 120
LANGUAGES = range(50259, 50358)


@dataclass(frozen=True)
class Hearing:
    """A way to hear the silence: `floor_s` in all, and `behind_s` at least; condensed, the rest of the window as well."""

    name: str
    floor_s: float
    behind_s: float
    condensed: bool = False

    def encode(self, encoder: WhisperEncoder, audio: Float32) -> tuple[Tensor, Tensor]:
        """Return the states [S, width] and what is added to their scores [S]."""
        audio_s = len(audio) / SAMPLE_RATE_HZ
        padded_s = min(WINDOW_S, max(self.floor_s, audio_s + self.behind_s))
        heard = np.pad(audio, (0, round(padded_s * SAMPLE_RATE_HZ) - len(audio)))
        features = torch.from_numpy(log_mel(heard, hop_multiple=2, silent_frames=2))
        own = features.shape[1] // 2 - 1
        rest = SilentRest(round(WINDOW_S * STATES_PER_S)) if self.condensed else None
        groups = [] if rest is None else rest.groups_behind(own)
        places = [*range(own), *(own + group[len(group) // 2] for group in groups)]
        bias = torch.tensor([0.0] * own + [float(np.log(len(group))) for group in groups])
        return encoder.at_places(features, torch.tensor(places), bias), bias


WAYS = (
    Hearing("30 s", WINDOW_S, 0.0),
    Hearing("at least 10 s, and 3 s behind the audio", 10.0, 3.0),
    Hearing("0.5 s behind the audio, and no more", 0.0, 0.5),
    Hearing("0.5 s behind the audio, and the rest of 30 s condensed", 0.0, 0.5, condensed=True),
)


@dataclass(frozen=True)
class Heard:
    """The outcome of one recording, heard in one way."""

    states: int
    tokens: list[int]
    next_tokens: list[int]
    english: bool


class Reader:
    """Whisper's decoder over states of which some count several times."""

    def __init__(self, decoder: WhisperDecoder, rules: Rules) -> None:
        self.decoder, self.rules = decoder, rules

    def write(self, states: Tensor, bias: Tensor) -> list[int]:
        """Return the greedy transcript."""
        decoding, written, fed = Decoding(self.decoder, states, bias), list[int](), list(self.rules.prompt)
        while len(written) < LONGEST_TRANSCRIPT:
            (token,) = self.rules.choose(decoding.extend(fed)[-1:], len(written))
            if token == self.rules.end:
                break
            written.append(token)
            fed = [token]
        return written

    def next_tokens(self, states: Tensor, bias: Tensor, text: list[int]) -> list[int]:
        """Return the best token behind the prompt and behind each token of a text."""
        logits = Decoding(self.decoder, states, bias).extend([*self.rules.prompt, *text])
        return self.rules.choose(logits[len(self.rules.prompt) - 1 :], 0)

    def names_english(self, states: Tensor, bias: Tensor) -> bool:
        logits = Decoding(self.decoder, states, bias).extend(self.rules.prompt[:1])[-1]
        return int(logits[list(LANGUAGES)].argmax()) == 0


def recordings(data: Path, sets: list[str], clips: int) -> Iterator[tuple[str, str, Float32]]:
    """Yield set, text and audio of the first held-out recordings of each set."""
    counts: dict[str, int] = defaultdict(int)
    for row in map(json.loads, (data / "train.jsonl").read_text().splitlines()):
        chosen = row["set"] in sets and row["text"] and row["duration_s"] < LONGEST_S and is_held_out(Path(row["file"]).stem)
        if chosen and counts[row["set"]] < clips:
            counts[row["set"]] += 1
            yield row["set"], row["text"], load_audio(data / row["file"])


def study(encoder: WhisperEncoder, reader: Reader, audio: Float32) -> list[Heard]:
    """Hear one recording in all ways; the first is the reference of next tokens."""
    heard: list[Heard] = []
    for way in WAYS:
        states, bias = way.encode(encoder, audio)
        tokens = reader.write(states, bias)
        reference = heard[0].tokens if heard else tokens
        next_tokens = reader.next_tokens(states, bias, reference)
        heard.append(Heard(len(states), tokens, next_tokens, reader.names_english(states, bias)))
    return heard


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with train.jsonl")
    parser.add_argument("--whisper", type=Path, required=True, help="Whisper in CTranslate2's format")
    parser.add_argument("--sets", default="nonnative,kathleen,libri_clean_5")
    parser.add_argument("--clips", type=int, default=48, help="of each set; default: %(default)s")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    encoder = WhisperEncoder(arguments.whisper / "model.bin")
    reader = Reader(open_decoder(arguments.whisper), Rules.of_folder(arguments.whisper))
    tokeniser = Tokenizer.from_file(str(arguments.whisper / "tokenizer.json"))
    results: dict[str, list[tuple[str, list[Heard]]]] = defaultdict(list)
    with torch.inference_mode():
        for name, text, audio in tqdm(list(recordings(arguments.data, arguments.sets.split(","), arguments.clips)), unit="clip"):
            results[name].append((text, study(encoder, reader, audio)))
    rows = []
    for number, way in enumerate(WAYS):
        for name, clips in results.items():
            ours, theirs = [heard[number] for _, heard in clips], [heard[0] for _, heard in clips]
            pairs = [pair for a, b in zip(ours, theirs, strict=True) for pair in zip(a.next_tokens, b.next_tokens, strict=True)]
            errors = word_error_rate([text for text, _ in clips], [tokeniser.decode(each.tokens) for each in ours])
            rows.append(
                [
                    way.name,
                    f"{len(clips)} of {name}",
                    f"{np.mean([each.states for each in ours]):.0f}",
                    f"{sum(a == b for a, b in pairs)} of {len(pairs)}",
                    str(sum(a.tokens == b.tokens for a, b in zip(ours, theirs, strict=True))),
                    f"{100 * errors:.1f} %",
                    str(sum(each.english for each in ours)),
                ]
            )
    header = ["heard", "recordings", "states", "same next token as with 30 s", "same transcript", "WER", "English named"]
    print(markdown.table(header, rows))


if __name__ == "__main__":
    main()
