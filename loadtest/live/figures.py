"""The waits of a speaker at `/v1/stream`: the events of a session against what was really said when."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from loadtest.clients.stream import Arrival, StreamRun


@dataclass(frozen=True)
class Spoken:
    """A recording within a session's audio: where its speech truly begins and ends, and its words."""

    name: str
    text: str
    start_s: float
    end_s: float


@dataclass(frozen=True)
class Heard:
    """The events that belong to one spoken recording. Times are seconds that the speaker waited.

    `final_s` counts from the true end of the speech to the last final that has some of it, `first_partial_s` from the true onset
    to the first text. `end_off_s` is how much later than in truth that final says that the utterance ended. None where there was
    none. Speech with pauses may give several utterances. `cut_off`: the last final came before the speech had ended.
    """

    spoken: Spoken
    utterances: int
    final_s: float | None
    first_partial_s: float | None
    end_off_s: float | None

    @property
    def cut_off(self) -> bool:
        return self.final_s is not None and self.final_s < 0


def match(run: StreamRun, spoken: Sequence[Spoken]) -> list[Heard]:
    """Return the events of each recording of a session that was paced in real time."""
    return [_match_one(run, each) for each in spoken]


def _match_one(run: StreamRun, spoken: Spoken) -> Heard:
    finals = [arrival for arrival in run.of_type("final") if _overlaps(arrival, spoken)]
    numbers = {arrival.event["utterance"] for arrival in finals}
    texts = [
        arrival
        for arrival in run.of_type("partial")
        if arrival.event["utterance"] in numbers and _overlaps(arrival, spoken) and _text(arrival).strip()
    ]
    if not finals:
        return Heard(spoken, 0, None, None, None)
    return Heard(
        spoken,
        utterances=len(finals),
        final_s=finals[-1].at_s - spoken.end_s,
        first_partial_s=texts[0].at_s - spoken.start_s if texts else None,
        end_off_s=finals[-1].event["end_s"] - spoken.end_s,
    )


def _overlaps(arrival: Arrival, spoken: Spoken) -> bool:
    return bool(arrival.event["start_s"] < spoken.end_s and spoken.start_s < arrival.event["end_s"])


def _text(arrival: Arrival) -> str:
    return str(arrival.event["stable"]) + str(arrival.event["tail"])


@dataclass(frozen=True)
class Revisions:
    """How partial text changed: words shown at first, and how many of all shown words were replaced or taken back later."""

    partials: int
    words: int
    revised: int


def count_revisions(run: StreamRun) -> Revisions:
    """Over all utterances of a session. A last word that only grew is not revised."""
    by_utterance: dict[int, list[str]] = {}
    for arrival in run.of_type("partial"):
        by_utterance.setdefault(arrival.event["utterance"], []).append(_text(arrival))
    words = revised = 0
    for texts in by_utterance.values():
        taken_back = sum(_taken_back(before.split(), after.split()) for before, after in pairwise(texts))
        words += len(texts[-1].split()) + taken_back
        revised += taken_back
    return Revisions(len(run.of_type("partial")), words, revised)


def _taken_back(before: Sequence[str], after: Sequence[str]) -> int:
    """Return how many words of `before` are not in the same place of `after`; its last may have grown."""
    kept = sum(old == new for old, new in zip(before, after, strict=False))
    last = slice(len(before) - 1, len(before))
    grown = sum(old != new and new.startswith(old) for old, new in zip(before[last], after[last], strict=False))
    return len(before) - kept - grown


def final_text(run: StreamRun) -> str:
    """Return the texts of all finals, joined as the answer about a whole file is."""
    return " ".join(text for arrival in run.of_type("final") if (text := str(arrival.event["text"]).strip()))
