"""How long a speaker would wait for text on a quiet machine, in virtual time: for comparing changes on a busy one.

    python -m loadtest.played --data DATA --seconds 35 --streams 2 --silence-ms 100 [--rest]

The streams are those of `python -m loadtest.live`, but the engine runs in this process, on one thread: real models and texts,
while each stage takes what `loadtest.played.engine.Costs` says. HTTP, processes and the network cost nothing. Runs of the same
code give the same figures.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from loadtest.clients.stream import Arrival, Script, StreamRun
from loadtest.live.audio import StreamAudio, clear_speech, make_stream
from loadtest.live.figures import count_revisions, final_text, match
from loadtest.live.levels import STAGGER_S
from loadtest.played.engine import Costs, PlayedEngine, VirtualClock
from loadtest.support.instructions import TRANSCRIBE
from loadtest.support.options import add_data_flag, new_parser
from loadtest.support.recordings import RATE_HZ, Recording, read_recordings
from loadtest.support.statistics import percentile
from models.bundle.io import open_bundle
from models.chain import Models
from models.text.realignment import letters
from server.cli import get_bundle
from server.engine.factory import load_on_device
from server.engine.types.events import Delta, Ended, Event, LiveEvent, Partial, SpeechStarted, UtteranceDone
from server.engine.types.options import SamplingOptions, VoiceOptions
from server.engine.types.requests import Audio, EndOfAudio, InstructRequest, LiveRequest, SpeechTask
from server.settings import Settings

CLIPS = Path(__file__).parents[2] / "tests" / "clips" / "clips.json"
MAX_RECORDINGS, MAX_RECORDING_S = 150, 5.0
PIECE_SAMPLES = round(0.04 * RATE_HZ)


@dataclass(frozen=True)
class Play:
    """Streams side by side, the silence that ends their utterances, and files that are posted beside them."""

    audios: Sequence[StreamAudio]
    silence_s: float
    files: Sequence[Recording] = ()


class Player:
    """Plays sessions into an engine, and writes down their events as a client would see them."""

    def __init__(self, models: Models, play: Play, costs: Costs) -> None:
        self.clock = VirtualClock()
        self.engine = PlayedEngine(models, self.clock, costs)
        self.runs = [StreamRun(Script(audio.pcm), STAGGER_S * number) for number, audio in enumerate(play.audios)]
        self.play = play
        self.posted = 0
        self._talking = len(self.runs)

    def run(self) -> None:
        """Play everything to its end."""
        with self.clock.shown():
            for number, audio in enumerate(self.play.audios):
                voice = VoiceOptions(silence_s=self.play.silence_s)
                request = LiveRequest(
                    f"stream-{number}", SpeechTask(TRANSCRIBE, word_times="required"), client=f"{number}", voice=voice
                )
                self.engine.open_live(request, partial(self._take_event, number))
                self._plan_pieces(request.id, audio, self.runs[number].origin_s)
            if self.play.files:
                self.clock.add_event(0.0, self._post_file)
            self.engine.run_until_idle()

    def _plan_pieces(self, id: str, audio: StreamAudio, origin_s: float) -> None:
        samples = audio.samples.astype(np.float32) / np.float32(32768)
        for start in range(0, len(samples), PIECE_SAMPLES):
            piece = samples[start : start + PIECE_SAMPLES]
            spoken_s = origin_s + (start + len(piece)) / RATE_HZ
            self.clock.add_event(spoken_s, partial(self.engine.push, id, Audio(piece)))
        self.clock.add_event(origin_s + len(samples) / RATE_HZ, partial(self.engine.push, id, EndOfAudio()))

    def _take_event(self, number: int, event: LiveEvent) -> None:
        run = self.runs[number]
        at_s = self.clock.now_s - run.origin_s
        match event:
            case SpeechStarted(_, utterance, start_s):
                run.arrivals.append(Arrival(at_s, {"type": "speech_started", "utterance": utterance, "start_s": start_s}))
            case Partial():
                run.arrivals.append(Arrival(at_s, {"type": "partial", **asdict(event)}))
            case UtteranceDone(_, utterance, start_s, end_s, done):
                final = {"utterance": utterance, "start_s": start_s, "end_s": end_s, "text": done.text}
                words = [(word.text, word.end_s) for word in done.words or ()]
                run.arrivals.append(Arrival(at_s, {"type": "final", **final, "words": words}))
            case Ended():
                self._talking -= 1
            case _:
                pass

    def _post_file(self) -> None:
        recording = self.play.files[self.posted % len(self.play.files)]
        self.posted += 1
        request = InstructRequest(
            f"file-{self.posted}", recording.samples, SpeechTask(TRANSCRIBE, SamplingOptions()), client="files"
        )
        self.engine.submit(request, self._take_file_event)

    def _take_file_event(self, event: Event) -> None:
        if not isinstance(event, Delta) and self._talking:
            self.clock.add_event(self.clock.now_s, self._post_file)


def word_delays(run: StreamRun) -> list[float]:
    """Return how long after its end each word of the finals was shown for good: in its place, whatever its case."""
    delays = []
    for final in run.of_type("final"):
        shown: list[tuple[float, list[str]]] = [
            (arrival.at_s, (arrival.event["stable"] + arrival.event["tail"]).split())
            for arrival in run.of_type("partial")
            if arrival.event["utterance"] == final.event["utterance"]
        ]
        for place, (word, end_s) in enumerate(final.event["words"]):
            at_s = final.at_s
            for moment_s, words in reversed(shown):
                if list(map(letters, words[place : place + 1])) != [letters(word)]:
                    break
                at_s = moment_s
            delays.append(at_s - end_s)
    return delays


def describe(player: Player) -> dict[str, Any]:
    """Return the figures of a play; times in ms."""
    runs = player.runs
    heard = [each for audio, run in zip(player.play.audios, runs, strict=True) for each in match(run, audio.spoken)]
    revisions = [count_revisions(run) for run in runs]
    finals = [arrival for run in runs for arrival in run.of_type("final")]
    return {
        "said": len(heard),
        "utterances": len(finals),
        "final_ms": spread([each.final_s for each in heard if each.final_s is not None and not each.cut_off]),
        "first_text_ms": spread([each.first_partial_s for each in heard if each.first_partial_s is not None]),
        "without_partial": sum(each.first_partial_s is None for each in heard),
        "word_delay_ms": spread([delay for run in runs for delay in word_delays(run)]),
        "partials": sum(each.partials for each in revisions),
        "words": sum(each.words for each in revisions),
        "taken_back": sum(each.revised for each in revisions),
        "gap_ms": spread(gaps(runs)),
        "interrupted": player.engine.interrupted,
        "files": player.posted,
        "texts": [final_text(run) for run in runs],
    }


def gaps(runs: Sequence[StreamRun]) -> list[float]:
    """Return the times between partials of the same utterance."""
    partials = [arrival for run in runs for arrival in run.of_type("partial")]
    return [b.at_s - a.at_s for a, b in pairwise(partials) if a.event["utterance"] == b.event["utterance"]]


def spread(seconds: Sequence[float]) -> dict[str, int]:
    """Return median, 95th percentile and largest value in ms."""
    return (
        {name: round(1000 * percentile(seconds, at)) for name, at in (("p50", 50), ("p95", 95), ("max", 100))} if seconds else {}
    )


def main() -> int:
    parser = new_parser(__doc__)
    add_data_flag(parser)
    parser.add_argument("--seconds", type=float, default=35.0, help="audio of a stream (default: %(default)g)")
    parser.add_argument("--streams", type=int, default=2, help="streams side by side (default: %(default)d)")
    parser.add_argument("--silence-ms", type=int, default=100, help="silence that ends an utterance (default: %(default)d)")
    parser.add_argument("--rest", action="store_true", help="files are posted beside the streams, without a pause")
    parser.add_argument("--bundle", type=Path, help="the models (default: the default bundle)")
    arguments = parser.parse_args()
    settings = Settings() if arguments.bundle is None else Settings(bundle=arguments.bundle)
    models = load_on_device(open_bundle(get_bundle(settings)), settings)
    recordings = read_recordings(arguments.data, CLIPS, MAX_RECORDINGS)
    speeches = clear_speech([recording for recording in recordings if recording.seconds <= MAX_RECORDING_S])
    audios = [make_stream(speeches, arguments.seconds, seed=number) for number in range(arguments.streams)]
    files = [speech.recording for speech in speeches] if arguments.rest else []
    play = Play(audios, arguments.silence_ms / 1000, files)
    player = Player(models, play, Costs())
    player.run()
    print(json.dumps(describe(player), indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
