"""A vocabulary that lacks merges gets them back, and only those that it lacks."""

import json
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from export.importers.byte_level_bpe import restore_merges

TEXT = ["to the town, to the tower", "a tea at ten, then the test", "hello world, hello there"] * 4


@pytest.fixture
def definition() -> dict[str, Any]:
    tokeniser = Tokenizer(models.BPE())
    tokeniser.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokeniser.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokeniser.train_from_iterator(TEXT, trainers.BpeTrainer(vocab_size=290, initial_alphabet=alphabet, show_progress=False))
    result: dict[str, Any] = json.loads(tokeniser.to_str())
    return result


def encode(definition: dict[str, Any], text: str) -> list[int]:
    ids: list[int] = Tokenizer.from_str(json.dumps(definition)).encode(text).ids
    return ids


@pytest.mark.parametrize("lost", [[0], [0, 3], [5], [-1]])
def test_lost_merges_come_back_in_their_places(definition: dict[str, Any], lost: list[int]) -> None:
    whole = json.loads(json.dumps(definition))
    merges = definition["model"]["merges"]
    names = ["".join(merges[place]) for place in lost]
    for place in sorted((place % len(merges) for place in lost), reverse=True):
        del merges[place]
    assert any(encode(definition, text) != encode(whole, text) for text in TEXT)
    assert restore_merges(definition) == names
    assert definition == whole


def test_a_whole_vocabulary_stays_as_it_is(definition: dict[str, Any]) -> None:
    whole = json.loads(json.dumps(definition))
    assert restore_merges(definition) == []
    assert definition == whole


def test_merges_as_text_stay_text(definition: dict[str, Any]) -> None:
    merges = [" ".join(pair) for pair in definition["model"]["merges"]]
    definition["model"]["merges"] = merges[1:]
    restore_merges(definition)
    assert definition["model"]["merges"] == merges


def test_a_token_that_no_two_earlier_ones_make_is_refused(definition: dict[str, Any]) -> None:
    definition["model"]["vocab"]["zqzqz"] = max(definition["model"]["vocab"].values()) + 1
    with pytest.raises(ValueError, match="zqzqz"):
        restore_merges(definition)
