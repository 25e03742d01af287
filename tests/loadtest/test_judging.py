"""Answers are judged by the rules of their kind, and failures are told apart."""

import pytest

from loadtest.support.judging import Case, contains, judge, normal_words, token_f1

SPEECH = "My aunt works as a teacher in Seattle."


def case(kind: str, *expected: list[str], text: str = SPEECH, instruction: str = "", **other: object) -> Case:
    fields: dict[str, object] = {"options": [], "slots": {}} | other
    return Case(kind=kind, text=text, instruction=instruction, expected=list(expected), **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Twenty-four horses", ["24", "horses"]),
        ("twenty fifty", ["20", "50"]),
        ("at 08:00", ["at", "8", "0"]),
        ("Tom’s $20", ["tom", "20"]),  # noqa: RUF001 - a typographic apostrophe
        ("ten five", ["10", "5"]),
    ],
)
def test_numbers_and_apostrophes_are_made_alike(text: str, words: list[str]) -> None:
    assert normal_words(text) == words


def test_phrases_are_found_together_and_in_both_numbers() -> None:
    assert contains(normal_words("two cows in New York"), "cow")
    assert contains(normal_words("in New York"), "New York")
    assert not contains(normal_words("York is new"), "New York")


def test_the_f1_of_tokens_counts_repetitions() -> None:
    assert token_f1(["a", "b"], ["a", "b"]) == 1
    assert token_f1(["a", "b"], ["a", "a"]) == 0.5
    assert token_f1([], []) == 1
    assert token_f1(["a"], []) == 0


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        ("She works in Seattle.", "right"),
        ("In Boston.", "wrong"),
        ("I'm sorry, but I can't say.", "refusal"),
        ("La tía de la persona es una maestra.", "wrong language"),
        ("我不知道", "wrong language"),
        (SPEECH, "repeats the speech"),
        ("The captain sailed his huge vessel through stormy waters.", "invented"),
        ("", "wrong"),
    ],
)
def test_a_fact_is_looked_for_and_failures_are_told_apart(answer: str, outcome: str) -> None:
    assert judge(case("fact", ["Seattle"]), answer) == outcome


def test_of_options_the_right_one_alone_is_named() -> None:
    topic = case("topic", ["cars"], options=["cars", "music"])
    assert judge(topic, "Cars.") == "right"
    assert judge(topic, "Cars or music.") == "wrong"
    assert judge(topic, "Music.") == "wrong"


def test_yes_or_no_comes_first() -> None:
    mention = case("yes_no", ["no"], options=["yes", "no"])
    assert judge(mention, "No, the speaker does not.") == "right"
    assert judge(mention, "Yes.") == "wrong"
    assert judge(mention, "The answer is no.") == "wrong"


def test_a_list_is_complete_and_has_little_else() -> None:
    names = case("list", ["Tom"], ["Eve"], text="Tom and Eve are coming with wine and bread.", instruction="List the names.")
    assert judge(names, "- Tom\n- Eve") == "right"
    assert judge(names, "Tom") == "wrong"
    assert judge(names, "Tom, Eve, wine, bread, coming") == "wrong"


def test_a_summary_is_short_has_the_facts_and_invents_nothing() -> None:
    text = "The bakery on our street will close in March. The owner is moving to Rome."
    bakery = case("summary", ["bakery"], ["close", "closing"], text=text)
    assert judge(bakery, "The bakery is closing.") == "right"
    assert judge(bakery, text) == "repeats the speech"
    assert judge(bakery, "The owner is moving.") == "wrong"
    assert judge(bakery, f"The bakery is closing in {'March ' * 20}.") == "wrong"
    invented = "The bakery is closing after customers complained about terrible pastries."
    assert judge(bakery, invented) == "invented"


def test_slots_are_compared_as_words() -> None:
    alarm = case("slots", slots={"day": "Friday", "hour": "eight"})
    assert judge(alarm, '{"day": "friday", "hour": "8 o\'clock"}') == "right"
    assert judge(alarm, '{"day": "Friday", "hour": "nine"}') == "wrong"
    assert judge(alarm, '{"day": "Friday"}') == "wrong"
    assert judge(alarm, '{"day": "Friday", "hour": "wake me up at eight on Friday"}') == "wrong"
    assert judge(alarm, "Friday at eight") == "wrong"
    assert judge(case("slots", slots={"milk": "soy milk"}), '{"milk": "soy"}') == "right"


def test_a_translation_is_near_its_reference() -> None:
    translation = case("translation", ["Half of the apple was rotten."], text="Metà mela era marcia.")
    assert judge(translation, "Half the apple was rotten") == "right"
    assert judge(translation, "The pear is ripe.") == "wrong"
