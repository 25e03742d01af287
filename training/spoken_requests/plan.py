"""Plan the benchmark of spoken requests: what is said, asked and expected.

    python -m training.spoken_requests.plan --data DATA_DIR --out training/spoken_requests/requests.jsonl

Sentences are made from templates, or come from CLINC150, Banking77, Tatoeba and the recordings of `eval.jsonl`, whose answers are
known. The two halves share no template, no sentence and no recording. `python -m training.spoken_requests.speak` makes the audio.
"""

import argparse
import json
import re
import string
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any, get_args

from training.spoken_requests.request import Half, SpokenRequest, write_requests
from training.spoken_requests.sentences import (
    ABSENT,
    BANKING_INTENTS,
    COMMANDS,
    FACTS,
    FACTS_IN_RECORDINGS,
    FILLINGS,
    LISTS,
    MENTIONED_IN_RECORDINGS,
    QUESTIONS,
    SUMMARIES,
    TOPICS,
    Sentence,
    Story,
)
from training.synthesise import sentence_case

VOICES = {
    "en": ("af_bella", "am_michael", "bf_emma", "bm_george", "af_nova", "am_fenrir", "bf_lily", "bm_daniel"),
    "es": ("ef_dora", "em_alex"),
    "fr": ("ff_siwis",),
    "it": ("if_sara", "im_nicola"),
}
"""Voices of Kokoro that are kept for this benchmark: nothing may be trained on them."""
SPEEDS = (0.9, 1.0, 1.1)
SUMMARISE = "Summarise the speech in one short sentence."
ANSWER = "Answer the speaker's question in a few words."
TRANSLATE = "Translate the speech into English."
LONGEST_CHARACTERS = 85
TOPICS_EACH_HALF, INTENTS_EACH_HALF, TRANSLATIONS_EACH, RECORDINGS_EACH = 30, 20, 4, 4
OPTIONS = 4
RECORDED_SETS = ("libri_other", "vctk", "common_voice_en")
QUESTION_WORDS = r"(what|how|when|where|who|why|which|is|are|do|does|did|can|could|will|would|should|am|have|has)\b"
HALVES: tuple[Half, ...] = get_args(Half)


class Planner:
    """Collects requests; everything random follows from the seed."""

    def __init__(self, data: Path, seed: int) -> None:
        self._random = Random(seed)
        self._seed = seed
        self._text = data / "text"
        self._rows: list[dict[str, Any]] = [
            json.loads(line) for line in (data / "eval.jsonl").read_text(encoding="utf-8").splitlines()
        ]
        self._voices: dict[tuple[str, str], tuple[str, float, int]] = {}
        self.requests: list[SpokenRequest] = []

    def plan(self) -> list[SpokenRequest]:
        """Return all requests of both halves."""
        for number, half in enumerate(HALVES):
            self._add_facts(half, FACTS[number::2])
            self._add_questions(half, QUESTIONS[number::2])
            self._add_lists(half, LISTS[number::2], 4)
            self._add_summaries(half, SUMMARIES[number::2], 2)
            for command in COMMANDS:
                for text in command.texts[number::2]:
                    for _ in range(4):
                        filled = self._fill([text, *command.slots.values()])
                        self._add_slots(half, command.instruction, filled[0], dict(zip(command.slots, filled[1:], strict=True)))
        self._add_topics()
        self._add_intents()
        self._add_translations()
        self._add_recordings()
        return self.requests

    def _add(self, half: Half, kind: Any, text: str, instruction: str, expected: list[list[str]], **other: Any) -> None:
        language = other.get("language", "en")
        if "recording" in other:
            voice, speed, seed, audio = None, 1.0, 0, Path(other["recording"]).name
        else:
            if (half, text) not in self._voices:
                chosen = self._random.choice(VOICES[language]), self._random.choice(SPEEDS), len(self._voices)
                self._voices[half, text] = chosen
            voice, speed, seed = self._voices[half, text]
            audio = f"{half}-{seed:04d}.flac"
        number = sum(request.half == half for request in self.requests)
        fields = {
            "language": language,
            "options": [],
            "is_choice": False,
            "slots": {},
            "json_schema": None,
            "recording": None,
        } | other
        self.requests.append(
            SpokenRequest(
                id=f"{half}-{kind}-{number:03d}",
                half=half,
                kind=kind,
                text=text,
                instruction=instruction,
                expected=expected,
                voice=voice,
                speed=speed,
                seed=seed,
                audio=audio,
                **fields,
            )
        )

    def _fill(self, texts: Sequence[str]) -> list[str]:
        """Fill the gaps of all texts with the same values."""
        gaps = sorted({name for text in texts for _, name, _, _ in string.Formatter().parse(text) if name})
        values: dict[str, str] = {}
        for kind in sorted({gap.rstrip("0123456789") for gap in gaps}):
            same = [gap for gap in gaps if gap.rstrip("0123456789") == kind]
            values |= dict(zip(same, self._random.sample(FILLINGS[kind], len(same)), strict=True))
        return [text.format(**values) for text in texts]

    def _add_facts(self, half: Half, sentences: Sequence[Sentence]) -> None:
        for place, sentence in enumerate(sentences):
            text, *answers = self._fill([sentence.text, *(answer for _, answer in sentence.questions)])
            for (question, _), answer in zip(sentence.questions, answers, strict=True):
                self._add(half, "fact", text, question, [[answer]])
            mentioned = place % 2 == 0
            word = answers[0] if mentioned else self._random.choice([word for word in ABSENT if word not in text])
            self._add_mention(half, text, f'the word "{word}"', mentioned=mentioned)

    def _add_mention(self, half: Half, text: str, what: str, *, mentioned: bool, **other: Any) -> None:
        expected = [["yes" if mentioned else "no"]]
        instruction = f"Does the speaker mention {what}? Answer yes or no."
        self._add(half, "yes_no", text, instruction, expected, options=["yes", "no"], **other)

    def _add_questions(self, half: Half, questions: Sequence[tuple[str, str]]) -> None:
        for question, answer in questions:
            self._add(half, "question", question, ANSWER, [answer.split("|")])

    def _add_lists(self, half: Half, sentences: Sequence[Sentence], count: int) -> None:
        for sentence in sentences:
            for _ in range(count):
                ((question, items),) = sentence.questions
                text, filled = self._fill([sentence.text, items])
                self._add(half, "list", text, question, [[item] for item in filled.split("|")])

    def _add_summaries(self, half: Half, stories: Sequence[Story], count: int) -> None:
        for story in stories:
            for _ in range(count):
                text, *facts = self._fill([story.text, *story.facts])
                self._add(half, "summary", text, SUMMARISE, [fact.split("|") for fact in facts])

    def _add_slots(self, half: Half, instruction: str, text: str, slots: dict[str, str]) -> None:
        properties = {name: {"type": "string", "maxLength": 40} for name in slots}
        schema = {"type": "object", "properties": properties, "required": list(slots), "additionalProperties": False}
        self._add(half, "slots", text, instruction, [], slots=slots, json_schema=schema)

    def _read_pairs(self, file: str) -> list[tuple[str, str]]:
        """Return intent and text of sentences that are neither very short nor long, and hold no digits."""
        rows = [line.split("\t") for line in (self._text / file).read_text(encoding="utf-8").splitlines()]
        kept = [(row[1], re.sub(r"\s+", " ", row[2]).strip()) for row in rows if len(row) == 3]
        return [pair for pair in kept if 25 <= len(pair[1]) <= LONGEST_CHARACTERS and not re.search(r"\d", pair[1])]

    def _options(self, right: str, all_options: Sequence[str]) -> list[str]:
        options = [right, *self._random.sample([each for each in all_options if each != right], OPTIONS - 1)]
        self._random.shuffle(options)
        return options

    def _add_topics(self) -> None:
        pairs, topics = self._read_pairs("clinc150.tsv"), sorted(TOPICS)
        for number in range(2 * TOPICS_EACH_HALF):
            topic = topics[number // 2 % len(topics)]
            _, text = self._random.choice([pair for pair in pairs if pair[0] in TOPICS[topic]])
            options = self._options(topic, topics)
            instruction = f"Is this about {', '.join(options[:-1])} or {options[-1]}? Answer with one word."
            self._add(HALVES[number % 2], "topic", punctuate(text), instruction, [[topic]], options=options)

    def _add_intents(self) -> None:
        pairs, intents = self._read_pairs("banking77.tsv"), sorted(BANKING_INTENTS)
        for number in range(2 * INTENTS_EACH_HALF):
            intent = intents[number // 2 % len(intents)]
            _, text = self._random.choice([pair for pair in pairs if pair[0] == intent])
            options = self._options(BANKING_INTENTS[intent], list(BANKING_INTENTS.values()))
            instruction = f"What does the customer ask about: {', '.join(options[:-1])} or {options[-1]}?"
            right = [[BANKING_INTENTS[intent]]]
            self._add(HALVES[number % 2], "intent", text, instruction, right, options=options, is_choice=True)

    def _add_translations(self) -> None:
        for language in ("es", "fr", "it"):
            lines = (self._text / f"tatoeba.en-{language}.tsv").read_text(encoding="utf-8").splitlines()
            spoken = [line.split("\t") for line in lines if 25 <= len(line.split("\t")[1]) <= 60 and not re.search(r"\d", line)]
            recorded = [row for row in self._rows if row["set"] == f"to_en_{language}" and 2 <= row["duration_s"] <= 8]
            for number, (english, text) in enumerate(self._random.sample(spoken, 2 * TRANSLATIONS_EACH)):
                self._add(HALVES[number % 2], "translation", text, TRANSLATE, [[english]], language=language)
            for number, row in enumerate(self._random.sample(recorded, 2 * RECORDINGS_EACH)):
                self._add(
                    HALVES[number % 2],
                    "translation",
                    row["text"],
                    TRANSLATE,
                    [[row["translation_en"]]],
                    language=language,
                    recording=row["file"],
                )

    def _add_recordings(self) -> None:
        used: dict[str, Half] = {}
        for number, (beginning, mentioned) in enumerate(MENTIONED_IN_RECORDINGS):
            row, half = self._find_recording(beginning), HALVES[number % 2]
            used[row["file"]] = half
            absent = f'the word "{ABSENT[number % len(ABSENT)]}"'
            self._add_mention(half, row["text"], mentioned, mentioned=True, recording=row["file"])
            self._add_mention(half, row["text"], absent, mentioned=False, recording=row["file"])
        for number, (beginning, question, answer) in enumerate(FACTS_IN_RECORDINGS):
            row = self._find_recording(beginning)
            half = used.get(row["file"], HALVES[number % 2])
            self._add(half, "fact", row["text"], question, [answer.split("|")], recording=row["file"])

    def _find_recording(self, beginning: str) -> dict[str, Any]:
        return next(row for row in self._rows if row["set"] in RECORDED_SETS and row["text"].startswith(beginning))


def punctuate(query: str) -> str:
    """Return a query in lower case as a sentence, with a question mark where it begins as a question."""
    sentence = sentence_case(query)
    return sentence[:-1] + "?" if re.match(QUESTION_WORDS, query) and sentence.endswith(".") else sentence


def find_repeats(requests: Sequence[SpokenRequest]) -> Iterator[str]:
    """Yield texts that both halves have."""
    texts = [{request.text for request in requests if request.half == half} for half in HALVES]
    yield from sorted(texts[0] & texts[1])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, metavar="FOLDER", help="with eval.jsonl and text/")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE")
    parser.add_argument("--seed", type=int, default=12)
    parsed = parser.parse_args(arguments)
    requests = Planner(parsed.data, parsed.seed).plan()
    repeats = set(find_repeats(requests))
    kept = [request for request in requests if request.half == HALVES[0] or request.text not in repeats]
    write_requests(parsed.out, kept)
    for half in HALVES:
        print(half, sum(request.half == half for request in kept), "requests")


if __name__ == "__main__":
    main()
