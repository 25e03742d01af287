"""Judge an answer to a spoken request: whether it is right, and what went wrong if not.

Numbers may be written in words or digits. Rules by kind, after which an answer is right:

- `fact`, `question`: the expected words stand in it, and it is not the speech over again.
- `topic`, `intent`: of the options it names the right one alone.
- `yes_no`: the right one is its first word.
- `list`: it has every item, and at most `MOST_OTHER_WORDS` content words that are neither items nor in the instruction.
- `summary`: it has one of the words of every fact, is no longer than the speech and `MOST_SUMMARY_WORDS_MORE`, is not the
  speech over again, and invents nothing.
- `slots`: its JSON has every slot with the expected value, and `MOST_SLOT_WORDS_MORE` words more in each at most.
- `translation`: its token F1 against the reference is at least `LEAST_TRANSLATION_F1`.
"""

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from loadtest.support.words import words_of

Outcome = Literal["right", "wrong", "invented", "refusal", "wrong language", "repeats the speech"]
OUTCOMES: tuple[Outcome, ...] = ("right", "wrong", "invented", "refusal", "wrong language", "repeats the speech")

LEAST_TRANSLATION_F1 = 0.5
MOST_OTHER_WORDS = 2
MOST_SLOT_WORDS_MORE = 2
MOST_SUMMARY_WORDS_MORE = 4
"""For a beginning such as "The speaker says that"."""
REPEATED_F1 = 0.9
INVENTED_SHARE, INVENTED_WORDS = 0.4, 3
"""An answer whose content words are to so large a part, and so many, neither in the speech nor in the instruction is invented."""

REFUSAL = re.compile(
    r"\b(i'?m sorry|i am sorry|i can'?t|i cannot|as an ai|unable to|don'?t have (access|enough|any information)|no information|"
    r"not (possible|able) to|cannot (be determined|determine|provide|answer)|i don'?t know|please provide)\b"
)
_UNITS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
)
NUMBERS = {word: number for number, word in enumerate(_UNITS.split())}
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
TENS = {word: 10 * number for number, word in enumerate(_TENS.split(), start=2)}
SPELLINGS = {"colors": "colours", "color": "colour", "summarize": "summarise", "neighbor": "neighbour", "center": "centre"}
_FUNCTION_WORDS = (
    "a an the and or but if of to in on at by for with from as is are was were be been being am do does did has have had it its "
    "this that these those there here he she they we i you his her their our my your him them us me not no yes so than then "
    "which who whom whose what when where why how will would can could should may might must about into over after before also "
    "because while during very more most some any all both each other such only just one speaker speech said says mentioned "
    "mention mentions mentioning list names following answer according"
)
FUNCTION_WORDS = frozenset(_FUNCTION_WORDS.split())
_FOREIGN_WORDS = (
    "el la los las una que por para con del está los usted le les des une est dans vous pour avec sur pas il lo gli che non per "
    "della sono der die das und ist nicht ein eine wir sie auf mit"
)
FOREIGN_WORDS = frozenset(_FOREIGN_WORDS.split())


@dataclass(frozen=True)
class Case:
    """The part of a request's line in the manifest that says which answer is right."""

    kind: str
    text: str
    instruction: str
    expected: list[list[str]]
    options: list[str]
    slots: dict[str, str]

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> "Case":
        return cls(*(row[name] for name in cls.__dataclass_fields__))


def judge(case: Case, answer: str) -> Outcome:
    """Return the outcome of an answer."""
    words = normal_words(answer)
    if _is_right(case, answer, words):
        return "right"
    if REFUSAL.search(answer.lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")):
        return "refusal"
    if _is_foreign(answer, words):
        return "wrong language"
    if words and token_f1(normal_words(case.text), words) > REPEATED_F1:
        return "repeats the speech"
    return "invented" if _is_invented(case, words) else "wrong"


def normal_words(text: str) -> list[str]:
    """Return the words of a text in lower case, with numbers below a hundred as digits."""
    words = words_of(re.sub(r"(?<=\w)[-_](?=\w)", " ", text.replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")))
    normal: list[str] = []
    after_ten = False
    for word in words:
        plain = SPELLINGS.get(word, word).removesuffix("'s")
        unit = NUMBERS.get(plain)
        if after_ten and unit is not None and 0 < unit < 10:
            normal[-1] = str(int(normal[-1]) + unit)
        elif plain in TENS or unit is not None:
            normal.append(str(TENS.get(plain, unit)))
        else:
            normal.append(str(int(plain)) if plain.isdecimal() else plain)
        after_ten = plain in TENS
    return normal


def token_f1(reference: Sequence[str], words: Sequence[str]) -> float:
    """Return the harmonic mean of precision and recall of words, however ordered; 1 where both have none."""
    if not reference or not words:
        return float(not reference and not words)
    common = sum((Counter(reference) & Counter(words)).values())
    return 2 * common / (len(reference) + len(words))


def contains(words: Sequence[str], phrase: str) -> bool:
    """Return whether the words of a phrase stand together in `words`, in the singular or the plural."""
    wanted = normal_words(phrase)
    starts = range(len(words) - len(wanted) + 1)
    return any(all(_same(a, b) for a, b in zip(words[start : start + len(wanted)], wanted, strict=True)) for start in starts)


def _same(word: str, other: str) -> bool:
    return word == other or word == f"{other}s" or other == f"{word}s"


def _is_right(case: Case, answer: str, words: list[str]) -> bool:
    found = all(any(contains(words, each) for each in fact) for fact in case.expected)
    match case.kind:
        case "fact" | "question":
            return found and words != normal_words(case.text)
        case "yes_no":
            return words[:1] == case.expected[0]
        case "topic" | "intent":
            return found and sum(contains(words, option) for option in case.options) == 1
        case "list":
            allowed = {word for fact in [*case.expected, [case.instruction]] for each in fact for word in normal_words(each)}
            others = [word for word in content_words(words) if not any(_same(word, each) for each in allowed)]
            return found and len(others) <= MOST_OTHER_WORDS
        case "summary":
            said = normal_words(case.text)
            is_short = len(words) <= len(said) + MOST_SUMMARY_WORDS_MORE
            return found and is_short and token_f1(said, words) <= REPEATED_F1 and not _is_invented(case, words)
        case "slots":
            slots = read_slots(answer)
            return all(_is_slot_right(slots.get(name, []), name, value) for name, value in case.slots.items())
        case "translation":
            return token_f1(normal_words(case.expected[0][0]), words) >= LEAST_TRANSLATION_F1
    raise ValueError(f"there is no kind {case.kind!r}")


def read_slots(answer: str) -> dict[str, list[str]]:
    """Return the words of the slots of an answer in JSON; none where it is no JSON object."""
    try:
        slots = json.loads(answer)
    except ValueError:
        return {}
    return {name: normal_words(str(value)) for name, value in slots.items()} if isinstance(slots, dict) else {}


def _is_slot_right(words: Sequence[str], name: str, value: str) -> bool:
    """Return whether a slot has the expected value, with a word or two more at most: "8 o'clock" for "eight".

    The slot's own name may be left out: `milk` is right as "soy" where "soy milk" is expected.
    """
    wanted = value.removesuffix(f" {name}")
    return contains(words, wanted) and len(words) <= len(normal_words(value)) + MOST_SLOT_WORDS_MORE


def content_words(words: Sequence[str]) -> list[str]:
    """Return the words that carry content."""
    return [word for word in words if word not in FUNCTION_WORDS]


def _is_invented(case: Case, words: Sequence[str]) -> bool:
    expected = [*(each for fact in case.expected for each in fact), *case.slots, *case.slots.values()]
    known = {_stem(word) for text in (case.text, case.instruction, *expected) for word in normal_words(text)}
    content = content_words(words)
    new = [word for word in content if _stem(word) not in known]
    return len(new) >= INVENTED_WORDS and len(new) > INVENTED_SHARE * len(content)


def _stem(word: str) -> str:
    """Return the beginning of a word, which its forms share."""
    return word[:5]


def _is_foreign(answer: str, words: Sequence[str]) -> bool:
    letters = [each for each in answer if each.isalpha()]
    outside = sum(each > "\u024f" for each in letters)
    foreign, english = (sum(word in known for word in words) for known in (FOREIGN_WORDS, FUNCTION_WORDS))
    return outside > 0.3 * max(1, len(letters)) or (foreign >= 2 and foreign > english)
