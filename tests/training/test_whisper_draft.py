"""Drafts for Whisper's decoder: realignment goes on word by word, and the adapter learns the tokens that are served."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from models.assemble import load_models
from models.bundle.io import open_bundle
from models.protocols import CtcDraft
from models.text.prefix_draft import PrefixDraft
from models.text.realignment import Draft
from tests.support.fakes.fake_models import sure_output
from tests.support.tiny.tiny_bundle import write_transcribing_bundle
from training.adapter import Adapter, AdapterConfig
from training.cache_states import CachedUtterance, is_held_out, open_cache
from training.cache_whisper import Recording, ServedWhisper, join, plan
from training.checkpoint import load_exported
from training.ctc import ctc_loss, greedy_tokens, sample_vocabulary
from training.data import StateCorpus, is_plausible
from training.evaluate_draft import Drafted, count_passes, summarise, table
from training.greedy_writer import write_greedily
from training.targets import Characters, LlmTokens, WhisperTokens, open_targets
from training.train_ctc import Head, parameters_of, share_layers, start_from, train_step

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


def output_of(*frames: int) -> CtcDraft:
    """An output that is sure of these tokens, with two blanks behind each."""
    path = np.array([label for frame in frames for label in (frame, -1, -1)], np.int64)
    return sure_output(np.empty((0, 8), np.float32), path).require_draft()


def test_passes_are_one_for_a_right_draft_and_one_more_for_each_wrong_word() -> None:
    tokens, said = [10, 11, 12, 13, 14, 15], 16
    assert count_passes(PrefixDraft(output_of(*tokens)).propose, tokens) == (1, 6)
    assert count_passes(PrefixDraft(output_of(*tokens[:2], *tokens[3:])).propose, tokens) == (2, 5)
    assert count_passes(PrefixDraft(output_of(*tokens[:2], *tokens[3:], said)).propose, tokens) == (2, 5)
    assert count_passes(PrefixDraft(output_of(-1, -1)).propose, tokens) == (7, 0)


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
    both = list(join([Recording("a", ["a"], "nonnative", "A", 5.0), Recording("b", ["b"], "nonnative", "B", 6.0)]))
    assert both == [Recording("a+b", ["a", "b"], "nonnative", "A B", 11.4)]
    dutch = [Recording(name, [name], "dutch", "Ja", 1.0, "nl") for name in "ab"]
    assert [each.language for each in join(dutch)] == ["nl"]


def test_the_cache_has_the_states_and_the_tokens_that_are_served(tmp_path: Path) -> None:
    write_transcribing_bundle(tmp_path)
    models = load_models(open_bundle(tmp_path), 1, 1)
    audio = np.random.default_rng(0).normal(0, 0.1, 24_000).astype(np.float32)
    heard = ServedWhisper(models)(audio, "en")
    (states,) = models.encoder.encode([models.features(models.pad_audio(audio))])
    assert np.array_equal(heard.states, states[: 4 * (19 + 2)])
    written = write_greedily(models.require_speech(), states, lambda _written: (), "en")
    assert heard.tokens == written.tokens
    assert heard.mean_log_probability == pytest.approx(written.mean_logprob, abs=1e-4)


def test_loops_and_guesses_of_the_teacher_are_left_out() -> None:
    assert is_plausible(utterance("the cat sat", (1, 2, 3), -0.3))
    assert not is_plausible(utterance("the cat sat", (1, 2, 3), -1.3))
    assert not is_plausible(utterance("and so on and so on and so on and so on and", (1, 2, 3), -0.1))


def test_an_llms_draft_learns_what_was_said_and_whispers_what_its_decoder_wrote(tmp_path: Path) -> None:
    with open_cache(tmp_path) as cache:
        for reference, score in (("THE CAT SAT ON A MAT", -1.3), ("", -1.3), ("", -0.1)):
            heard = CachedUtterance("one", "The hat sat on a mat.", "set", 0, 0, (1, 2), reference, score)
            cache.append(heard, np.zeros((80, 512), np.float16))
    llm = StateCorpus([tmp_path], LlmTokens(torch.zeros(300, 4), TOKENISER))
    assert [each.text for each in llm.train] == ["The cat sat on a mat.", "The hat sat on a mat."]
    assert [each.tokens for each in llm.train] == [encode(each.text) for each in llm.train]
    whisper = StateCorpus([tmp_path], WhisperTokens(torch.zeros(300, 4), TOKENISER))
    assert [(each.text, each.tokens) for each in whisper.train] == [("The hat sat on a mat.", [1, 2])]
    assert [whisper.has(each) for each in llm.train] == [False, True]


def test_figures_are_summed_up_per_set() -> None:
    results = [
        Drafted("a", "the cat sat", "the hat sat", "the cat sat", 3, 2, 2, 4),
        Drafted("a", "", "on a mat", "on a mat", 3, 3, 1, 4),
    ]
    summary = summarise(results)
    assert summary["a"] == {
        "recordings": 2, "draft_wer": pytest.approx(1 / 3, abs=1e-4), "transcript_wer": 0.0,
        "draft_wer_to_transcript": pytest.approx(1 / 6, abs=1e-4), "passes": 1.5, "passes_undrafted": 4.0,
        "accepted_per_pass": pytest.approx(5 / 3, abs=1e-4), "tokens_accepted": pytest.approx(5 / 6, abs=1e-4),
    }  # fmt: skip
    assert "| a | 2 | 33.3 % |" in table(summary)


def test_two_targets_are_learnt_by_the_same_layers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    targets = [WhisperTokens(torch.randn(300, 24), TOKENISER), LlmTokens(torch.randn(300, 16), TOKENISER)]
    states = np.random.default_rng(0).standard_normal((40, 512)).astype(np.float16)
    with open_cache(tmp_path) as cache:
        cache.append(CachedUtterance("one", "the cat sat", "set", 0, 0, tuple(encode(" the cat sat"))), states)
    corpora = [StateCorpus([tmp_path], each) for each in targets]
    config = AdapterConfig(width=32, layers=1, heads=4, feed_forward=32, subsampling="stack", dropout=0.0)
    sizes = [each.table.shape[1] for each in targets]
    adapters = [Adapter(replace(config, embedding_size=size)) for size in sizes]
    heads = [Head(*parts) for parts in zip(adapters, targets, corpora, strict=True)]
    share_layers([head.adapter for head in heads])
    optimizer = torch.optim.AdamW(parameters_of(heads), lr=1e-2)
    batch, generator = corpora[0].batch(corpora[0].train), torch.Generator().manual_seed(0)
    losses = []
    monkeypatch.setattr(LlmTokens, "encode", None)  # the corpora have encoded all there is
    monkeypatch.setattr(WhisperTokens, "encode", None)
    for _ in range(40):
        each = torch.stack(train_step(heads, batch, 4096, generator, torch.float32))
        optimizer.zero_grad()
        each.sum().backward()
        optimizer.step()
        losses.append(each.detach())
    assert (losses[-1] < 0.5 * losses[0]).all()
    assert torch.equal(heads[0].adapter.input.weight, heads[1].adapter.input.weight)
    assert heads[1].adapter.output.weight.shape == (16, 32)
