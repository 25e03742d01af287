"""Drafts for Whisper's decoder: the decoder is Whisper's, a draft changes no token, and realignment goes on word by word."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import WhisperForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput

from models.text.realignment import Draft, count_passes
from tests.support.tiny.tiny_whisper import decoder_arrays, random_whisper
from training.adapter import Adapter, AdapterConfig
from training.cache_states import CachedUtterance
from training.cache_whisper import Recording, join, own_states, pad_for_whisper, plan
from training.checkpoint import load_exported
from training.ctc import ctc_loss, greedy_tokens, sample_vocabulary
from training.data import is_held_out, is_plausible
from training.evaluate_draft import Drafted, summarise, table
from training.targets import Characters, WhisperTokens, open_targets
from training.train_ctc import start_from
from training.whisper_decoder import Decoding, Rules, WhisperDecoder, transcribe

WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "hat", "hall", "of", "ern", "ness", "said", ",", ".", "Hol", "o", "er"]


def tokeniser() -> Tokenizer:
    """Byte-level, as Whisper's: a word with its space where the list has it, else its letters."""
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    vocabulary = {symbol: number for number, symbol in enumerate(sorted(alphabet))}
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        for whole in (word, f"Ġ{word}"):
            built = whole[0]
            for letter in whole[1:]:
                merges.append((built, letter))
                built += letter
                vocabulary.setdefault(built, len(vocabulary))
    result = Tokenizer(models.BPE(vocabulary, list(dict.fromkeys(merges))))
    result.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    result.decoder = decoders.ByteLevel()
    return result


TOKENISER = tokeniser()


def encode(text: str) -> list[int]:
    return list(TOKENISER.encode(text).ids)


def draft_of(text: str) -> Draft:
    return Draft(text, encode, TOKENISER.decode)


@pytest.fixture(scope="module")
def oracle() -> WhisperForConditionalGeneration:
    return random_whisper(0)


@pytest.fixture(scope="module")
def decoder(oracle: WhisperForConditionalGeneration) -> WhisperDecoder:
    return WhisperDecoder(decoder_arrays(oracle))


RULES = Rules(prompt=[1, 5], end=2, never=[0, 1], never_first=[2], max_tokens=24)


def test_the_decoder_computes_what_transformers_does(oracle: WhisperForConditionalGeneration, decoder: WhisperDecoder) -> None:
    states, tokens = torch.randn(30, 32), [1, 5, 17, 250, 9, 9, 33]
    with torch.no_grad():
        expected = oracle(encoder_outputs=BaseModelOutput(states[None]), decoder_input_ids=torch.tensor([tokens])).logits[0]
    decoding = Decoding(decoder, states)
    pieces = [decoding.extend(tokens[:3]), decoding.extend(tokens[3:4])]
    decoding.extend([77, 78])
    decoding.forget(4)
    pieces.append(decoding.extend(tokens[4:]))
    assert torch.allclose(torch.cat(pieces), expected, atol=1e-4)


@pytest.mark.parametrize("seed", range(6))
def test_a_draft_changes_the_passes_and_no_token(decoder: WhisperDecoder, seed: int) -> None:
    torch.manual_seed(seed)
    states, rng = torch.randn(int(torch.randint(4, 40, ())), 32), np.random.default_rng(seed)
    alone = transcribe(decoder, RULES, states)
    assert RULES.never_first[0] not in alone.tokens[:1]
    assert alone.passes == min(len(alone.tokens) + 1, alone.passes)

    class Fixed(Draft):
        def __init__(self, tokens: list[int]) -> None:
            self.tokens = tokens

        def propose(self, written: list[int]) -> list[int]:  # type: ignore[override]
            return self.tokens[len(written) :]

    right = transcribe(decoder, RULES, states, Fixed(alone.tokens))
    garbled = [token if rng.random() < 0.7 else int(rng.integers(3, 300)) for token in alone.tokens]
    wrong = transcribe(decoder, RULES, states, Fixed(garbled))
    assert right.tokens == wrong.tokens == alone.tokens
    assert right.passes <= 2 <= wrong.passes + 1 <= alone.passes + 1
    assert right.accepted == right.drafted == len(alone.tokens) - (len(alone.tokens) == RULES.max_tokens)


def test_without_a_word_written_the_whole_draft_is_proposed() -> None:
    assert draft_of("the cat sat").propose([]) == encode(" the cat sat")
    assert draft_of("").propose([]) == []


@pytest.mark.parametrize(
    ("drafted", "written", "follows"),
    [
        ("the cat sat on a mat", " the hat", " sat on a mat"),  # another word in its place
        ("the cat sat on a mat", " the cat and sat", " on a mat"),  # a word more
        ("the cat sat on a mat", " the cat on a", " mat"),  # a word less, once the next word says so
        ("the cat sat on a mat", " The cat,", " sat on a mat"),  # case and punctuation
        ("the cat, said a", " the cat", ", said a"),  # the rest of a word
        ("the hallofernes said", " the Hol", "lofernes said"),  # a beginning that is alike
        ("the cat sat", " the cat sat", ""),
        ("the cat sat", " the cat sat on a", ""),
    ],
)
def test_the_draft_goes_on_behind_what_was_written(drafted: str, written: str, follows: str) -> None:
    assert TOKENISER.decode(draft_of(drafted).propose(encode(written))) == follows


def test_passes_are_one_for_a_right_draft_and_one_more_for_each_wrong_word() -> None:
    tokens = encode(" the cat sat on a mat and a hat.")
    assert count_passes(draft_of("the cat sat on a mat and a hat."), tokens) == (1, len(tokens))
    assert count_passes(draft_of("the cat sat on a mat and a hat. said"), tokens) == (1, len(tokens))
    assert count_passes(draft_of("the hat sat on a mat and a hat."), tokens)[0] == 2
    assert count_passes(draft_of("the hat sat on a mat said a hat."), tokens)[0] == 3
    assert count_passes(draft_of(""), tokens) == (len(tokens) + 1, 0)


def test_passes_are_counted_as_the_decoder_makes_them(decoder: WhisperDecoder) -> None:
    torch.manual_seed(3)
    states = torch.randn(20, 32)
    rules = Rules(prompt=[1, 5], end=2, never=[0, 1, *range(len(TOKENISER.get_vocab()), 300)], never_first=[2], max_tokens=24)
    tokens = transcribe(decoder, rules, states).tokens
    draft = draft_of(TOKENISER.decode(tokens[:3]) + " and a hat")
    result = transcribe(decoder, rules, states, draft)
    assert result.tokens == tokens
    if len(tokens) < rules.max_tokens:
        assert (result.passes, result.accepted) == count_passes(draft, tokens)


def utterance(text: str, tokens: tuple[int, ...] = (), score: float = 0.0) -> CachedUtterance:
    return CachedUtterance("id", text, "set", 0, 40, tokens, "", score)


def test_characters_spell_what_ascii_can_and_whisper_tokens_are_the_decoders_own() -> None:
    characters = open_targets("characters")
    assert characters.decode(characters.encode(utterance("Café, naïve — “yes”!"))) == "Cafe, naive yes!"
    targets = WhisperTokens(torch.eye(3), TOKENISER)
    assert targets.encode(utterance("the cat", (7, 8))) == [7, 8]
    assert targets.decode(targets.encode(utterance("the cat"))) == "the cat"
    with pytest.raises(ValueError, match="need the weights"):
        open_targets("whisper")


def test_an_adapter_learns_to_spell_several_characters_a_frame() -> None:
    torch.manual_seed(0)
    targets = Characters()
    wanted = torch.tensor([targets.encode(utterance("See it all"))])
    config = AdapterConfig(
        encoder_width=16, width=32, layers=1, heads=4, feed_forward=32, embedding_size=95, dropout=0.0, outputs_per_frame=4
    )
    adapter, states, frames = Adapter(config), torch.randn(1, 20, 16), torch.tensor([5])
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=1e-2)
    sample = sample_vocabulary(wanted, 95, 4096, torch.Generator())
    assert sorted(sample.tokens.tolist()) == list(range(95))
    for _ in range(80):
        hidden, _ = adapter(states, frames)
        queries, blank = adapter.token_queries(hidden), adapter.blank_logits(hidden)
        loss = ctc_loss(queries, blank, frames * 4, targets.table, sample, wanted, torch.tensor([wanted.shape[1]]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert targets.decode(greedy_tokens(queries[0].detach(), blank[0].detach(), targets.table)) == "See it all"


def test_a_run_begins_with_the_layers_of_an_exported_adapter(tmp_path: Path) -> None:
    from dataclasses import asdict

    from safetensors.torch import save_file

    config = AdapterConfig(encoder_width=16, width=32, layers=1, heads=4, feed_forward=32, embedding_size=24)
    stored, path = Adapter(config), tmp_path / "adapter.safetensors"
    save_file(stored.state_dict(), path, metadata={"config": json.dumps({**asdict(config), "blank_threshold": 0.4})})
    loaded = load_exported(path, Adapter)
    assert loaded.config == config
    assert all(torch.equal(a, b) for a, b in zip(loaded.state_dict().values(), stored.state_dict().values(), strict=True))
    other = Adapter(AdapterConfig(encoder_width=16, width=32, layers=1, heads=4, feed_forward=32, embedding_size=95))
    assert {"output.weight", "output.bias"} <= set(start_from(other, path))
    assert torch.equal(other.input.weight, stored.input.weight)


def test_whisper_hears_a_recording_with_zeros_behind_it_and_its_own_states_are_kept() -> None:
    assert len(pad_for_whisper(np.ones(16_000, np.float32))) == 160_000
    long = pad_for_whisper(np.ones(160_000, np.float32))
    assert len(long) == 208_000
    assert not long[160_000:].any()
    assert own_states(16_000) == 4 * (13 + 2)


def test_held_out_recordings_come_first_and_alone_and_short_ones_are_joined() -> None:
    rows = [
        {"file": f"train/{name}-{n}.ogg", "set": name, "text": "A B", "speaker": str(n % 3), "duration_s": 4.0}
        for name in ("nonnative", "libri_clean", "coffee_orders_unlabelled")
        for n in range(60)
    ]
    recordings = plan(rows)
    assert sorted(file for each in recordings for file in each.files) == sorted(row["file"] for row in rows)
    held = [each for each in recordings if is_held_out(each.files[0].split("/")[1].split(".")[0])]
    assert held == recordings[: len(held)]
    assert all(len(each.files) == 1 for each in held)
    joined = [each for each in recordings if len(each.files) > 1]
    assert joined
    assert all(each.dataset == "nonnative" and each.duration_s <= 12 for each in joined)
    assert [each.dataset for each in recordings[len(held) :]].index("nonnative") >= 50
    both = list(join([Recording("a", ["a"], "nonnative", "A", 5.0), Recording("b", ["b"], "nonnative", "B", 6.0)]))
    assert both == [Recording("a+b", ["a", "b"], "nonnative", "A B", 11.4)]


def test_loops_and_guesses_of_the_teacher_are_left_out() -> None:
    assert is_plausible(utterance("the cat sat", (1, 2, 3), -0.3))
    assert not is_plausible(utterance("the cat sat", (1, 2, 3), -1.3))
    assert not is_plausible(utterance("and so on and so on and so on and so on and", (1, 2, 3), -0.1))


def test_figures_are_summed_up_per_set() -> None:
    results = [
        Drafted("a", "the cat sat", "the hat sat", "the cat sat", 3, 2, 2, 4, True),
        Drafted("a", "", "on a mat", "on a mat", 3, 3, 1, 4),
    ]
    summary = summarise(results)
    assert summary["a"] == {
        "recordings": 2, "draft_wer": pytest.approx(1 / 3, abs=1e-4), "transcript_wer": 0.0,
        "draft_wer_to_transcript": pytest.approx(1 / 6, abs=1e-4), "passes": 1.5, "passes_undrafted": 4.0,
        "accepted_per_pass": pytest.approx(5 / 3, abs=1e-4), "tokens_accepted": pytest.approx(5 / 6, abs=1e-4),
        "checked": 1, "identical": 1.0,
    }  # fmt: skip
    assert "| a | 2 | 33.3 % |" in table(summary)
