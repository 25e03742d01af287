"""The training stages' parts: the loss is CTC, labels keep exact words, data resumes, one utterance can be learned."""

import json
import random
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from torch.nn import functional

from models.assemble import load_models
from models.bundle.io import open_bundle
from tests.support.tiny.tiny_bundle import write_transcribing_bundle
from training import cache_states, train_stage2
from training.adapter import Adapter, AdapterConfig
from training.bridge import ctc_runs
from training.cache_states import INDEX, STATES, WIDTH, CachedUtterance, open_cache, open_states, read_index
from training.cache_whisper import ServedWhisper
from training.checkpoint import load_adapter, resume, save_checkpoint
from training.ctc import Sample, ctc_loss, greedy_tokens, sample_vocabulary
from training.data import StateCorpus
from training.llm import FrozenLlm
from training.manifest import Utterance, write_manifest
from training.modality_gap import agreement, token_f1
from training.spelling import restore_case
from training.synthesise import sentence_case
from training.targets import LlmTokens
from training.train_ctc import learning_rate, mask, stretch
from training.train_stage2 import blur, garble
from training.word_errors import word_error_rate

VOCABULARY = 40


def test_loss_over_the_whole_vocabulary_is_ctc_of_the_factorised_distribution() -> None:
    torch.manual_seed(0)
    queries, blank, table = torch.randn(2, 12, 8), torch.randn(2, 12), torch.randn(VOCABULARY, 8)
    targets, frames, lengths = torch.tensor([[3, 3, 9], [5, 1, 0]]), torch.tensor([12, 9]), torch.tensor([3, 2])
    # The textbook form: one distribution over blank and tokens, blank last.
    tokens = functional.log_softmax(queries @ table.T, -1) + functional.logsigmoid(-blank)[..., None]
    whole = torch.cat([tokens, functional.logsigmoid(blank)[..., None]], -1)
    assert torch.allclose(whole.exp().sum(-1), torch.ones(2, 12), atol=1e-5)
    expected = functional.ctc_loss(whole.transpose(0, 1), targets, frames, lengths, blank=VOCABULARY, reduction="none") / lengths
    assert torch.allclose(
        ctc_loss(queries, blank, frames, table, reordered(targets), targets, lengths), expected.mean(), atol=1e-4
    )


def reordered(targets: torch.Tensor) -> Sample:
    """The whole vocabulary in the order that the loss expects: targets first."""
    wanted = torch.unique(targets)
    others = torch.tensor([token for token in range(VOCABULARY) if token not in wanted])
    return Sample(torch.cat([wanted, others]), torch.zeros(VOCABULARY))


def test_sampled_vocabulary_estimates_the_normaliser_without_bias() -> None:
    torch.manual_seed(0)
    logits, targets = torch.randn(2000), torch.arange(50)
    generator = torch.Generator().manual_seed(0)
    estimates = []
    for _ in range(200):
        sample = sample_vocabulary(targets, 2000, 300, generator)
        assert torch.equal(sample.tokens[:50], targets)
        assert not torch.isin(sample.tokens[50:], targets).any()
        estimates.append((logits[sample.tokens] + sample.correction).exp().sum())
    assert torch.stack(estimates).mean() == pytest.approx(logits.exp().sum().item(), rel=0.02)


def test_greedy_decoding_drops_blanks_and_merges_runs_but_not_across_a_blank() -> None:
    table = torch.eye(4)
    tokens, blank = [1, 1, 2, 2, 2, 3], torch.tensor([-1.0, -1, -1, 1, -1, -1])
    assert greedy_tokens(table[tokens], blank, table) == [1, 2, 2, 3]
    assert greedy_tokens(table[tokens], torch.ones(6), table) == []


def test_an_adapter_learns_one_utterance() -> None:
    torch.manual_seed(0)
    config = AdapterConfig(encoder_width=16, width=32, layers=1, heads=4, feed_forward=32, embedding_size=24, dropout=0.0)
    adapter, table = Adapter(config), torch.randn(VOCABULARY, 24)
    states, targets = torch.randn(1, 40, 16), torch.tensor([[4, 7, 7, 20]])
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=1e-2)
    for _ in range(80):
        hidden, _ = adapter(states, torch.tensor([10]))
        queries, blank = adapter.token_queries(hidden), adapter.blank(hidden)[..., 0]
        loss = ctc_loss(queries, blank, torch.tensor([10]), table, reordered(targets), targets, torch.tensor([4]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert greedy_tokens(queries[0].detach(), blank[0].detach(), table) == [4, 7, 7, 20]


def test_padding_in_a_batch_does_not_change_an_utterance() -> None:
    torch.manual_seed(0)
    adapter = Adapter(AdapterConfig(encoder_width=16, width=32, layers=2, heads=4, feed_forward=32, embedding_size=24)).eval()
    short, long = torch.randn(1, 20, 16), torch.randn(1, 60, 16)
    padded = torch.cat([functional.pad(short, (0, 0, 0, 40)), long])
    together, mask = adapter(padded, torch.tensor([5, 15]))
    alone, _ = adapter(short, torch.tensor([5]))
    assert mask.sum().tolist() == 20
    assert torch.allclose(together[0, :5], alone[0], atol=1e-5)


def test_labels_take_case_from_whisper_and_words_from_the_exact_text() -> None:
    assert restore_case("MISTER SMITH WENT TO PARIS", "Mr. Smith went to Paris.") == "mister Smith went to Paris."
    assert restore_case("I THINK I'M LATE", "") == "I think I'm late"
    assert sentence_case("what do i do") == "What do I do."
    assert sentence_case("Kept As It Is") == "Kept As It Is"


def test_checkpoint_goes_on_where_it_stopped(tmp_path: Path) -> None:
    config = AdapterConfig(encoder_width=16, width=32, layers=1, heads=4, feed_forward=32, embedding_size=24)
    first, second = Adapter(config), Adapter(config)
    optimizer = torch.optim.AdamW(first.parameters())
    assert resume(tmp_path / "none.pt", first, optimizer) == (0, [])
    save_checkpoint(tmp_path / "checkpoint.pt", first, optimizer, 7, [{"step": 7}])
    assert resume(tmp_path / "checkpoint.pt", second, torch.optim.AdamW(second.parameters())) == (7, [{"step": 7}])
    loaded = load_adapter(tmp_path / "checkpoint.pt")
    for a, b, c in zip(first.parameters(), second.parameters(), loaded.parameters(), strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """Fifty cached utterances, and the beginning of a line that was still being written."""
    rng = np.random.default_rng(0)
    entries, frames = [], 0
    with (tmp_path / STATES).open("wb") as states:
        for number in range(50):
            length = int(rng.integers(6, 20)) * 4
            states.write(rng.standard_normal((length, WIDTH)).astype(np.float16).tobytes())
            entries.append(CachedUtterance(f"utterance-{number}", "a b c", "real", frames, length))
            frames += length
    lines = [json.dumps(asdict(entry)) for entry in entries]
    (tmp_path / INDEX).write_text("\n".join(lines) + '\n{"id": "cut')
    return tmp_path


def word_targets() -> LlmTokens:
    tokeniser = Tokenizer(models.WordLevel({"a": 0, "b": 1, "c": 2}, unk_token="a"))
    tokeniser.pre_tokenizer = pre_tokenizers.Whitespace()
    return LlmTokens(torch.eye(3), tokeniser)


def test_corpus_reads_what_is_whole_and_holds_out_the_same_part_each_time(cache: Path) -> None:
    assert len(read_index(cache)) == 50
    corpus, again = StateCorpus([cache], word_targets()), StateCorpus([cache], word_targets())
    assert len(corpus.train) + len(corpus.dev) == 50
    assert corpus.dev
    assert corpus.dev == again.dev
    assert {e.id for e in corpus.train}.isdisjoint(e.id for e in corpus.dev)


def test_batches_hold_the_states_of_their_utterances_within_the_budget(cache: Path) -> None:
    corpus = StateCorpus([cache], word_targets())
    batches = corpus.epochs({}, frames_per_batch=60, seed=3)
    seen: list[str] = []
    while len(seen) < len(corpus.train):
        examples = next(batches)
        batch = corpus.batch(examples)
        assert len(examples) * int(batch.frames.max()) <= 60
        for row, example in enumerate(examples):
            expected = corpus.states[0][example.offset : example.offset + example.frames * 4]
            assert np.array_equal(batch.states[row, : example.frames * 4].numpy(), expected.astype(np.float32))
            assert not batch.states[row, example.frames * 4 :].any()
        seen += [example.id for example in examples]
    assert sorted(seen) == sorted(example.id for example in corpus.train)


def test_masks_keep_most_of_an_utterance_and_the_input_itself() -> None:
    states = torch.ones(3, 80, 64)
    masked = mask(states, torch.tensor([20, 10, 5]), torch.Generator().manual_seed(0))
    assert states.all()
    assert 0.4 < masked.mean() < 1.0


def test_stretching_changes_length_and_nothing_else() -> None:
    ramp = torch.linspace(0, 1, 400)[None, :, None].expand(2, 400, 3)
    stretched, frames = stretch(ramp, torch.tensor([100, 50]), torch.Generator().manual_seed(1))
    assert stretched.shape[1] == 4 * int(frames[0])
    assert 85 <= frames[0] <= 115
    assert frames[1] == frames[0] // 2
    assert torch.allclose(stretched[0, :, 0], torch.linspace(0, 1, stretched.shape[1]), atol=0.01)


def test_learning_rate_warms_up_and_falls_to_its_floor() -> None:
    rates = [learning_rate(step, 1000, 1.0) for step in range(1000)]
    assert rates.index(max(rates)) in range(145, 155)
    assert rates[-1] == pytest.approx(0.02, abs=1e-3)


def test_word_error_rate_ignores_case_punctuation_and_spelling_variants() -> None:
    assert word_error_rate(["Mr. Brown's colour", "one two"], ["mister brown's color", "one three"]) == pytest.approx(1 / 5)


def test_the_draft_that_the_llm_copies_is_the_best_token_of_each_run() -> None:
    table = torch.eye(10)
    tokens, blank = [1, 1, 2, 2, 2, 3, 3], torch.tensor([-1.0, -1, -1, 1, -1, -1, -1])
    assert ctc_runs(9 * table[tokens], blank, table, 0.5).draft() == [1, 2, 2, 3]
    assert ctc_runs(9 * table[tokens], torch.ones(7), table, 0.5).draft() == []


class ListeningLlm(FrozenLlm):
    """Remembers the answers that it is asked to learn."""

    def __init__(self) -> None:
        self.table = torch.randn(10, 8, generator=torch.Generator().manual_seed(0))
        self.asked: list[Sequence[int]] = []

    def answer_loss(
        self, instructions: Sequence[str], speech: Sequence[Tensor], answers: Sequence[Sequence[int]]
    ) -> tuple[Tensor, Tensor]:
        assert len(instructions) == len(speech) == len(answers)
        self.asked += answers
        return torch.zeros(()), torch.zeros(())

    def _logits(self, prompts: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
        raise NotImplementedError

    def _pad(self, rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        raise NotImplementedError


@pytest.mark.parametrize("copies", [True, False])
def test_words_that_a_mask_hides_are_left_out_of_copies_and_never_asked_of_the_llm(
    cache: Path, monkeypatch: pytest.MonkeyPatch, copies: bool
) -> None:
    masked: list[Tensor] = []

    def keep(states: Tensor, _frames: Tensor, _generator: torch.Generator) -> Tensor:
        masked.append(states)
        return states

    monkeypatch.setattr(train_stage2, "mask", keep)
    corpus, llm = StateCorpus([cache], word_targets()), ListeningLlm()
    adapter = Adapter(AdapterConfig(width=32, layers=1, heads=4, feed_forward=32, embedding_size=8, subsampling="stack"))
    tasks = train_stage2.SpeechTasks(corpus, {}, llm, 0.0, random.Random(0))
    train_stage2.speech_step(adapter, llm, corpus, tasks, 1.0, 0.0, float(copies), torch.Generator())
    assert len(llm.asked) == train_stage2.BATCH
    assert bool(masked) == copies
    assert all(list(answer) == [0, 1, 2] for answer in llm.asked) != copies


def test_a_cache_of_a_bundle_has_what_it_hears_and_copies_leave_the_held_out_part_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_transcribing_bundle(tmp_path / "bundle")
    audio = np.random.default_rng(0).normal(0, 0.1, 24_000).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", audio, 16_000, subtype="FLOAT")
    ids = [f"recording {number}" for number in range(60)]
    write_manifest(tmp_path / "manifest.jsonl", [Utterance(audio="a.wav", text="A", id=id) for id in ids])
    command = ["cache_states", "--manifest", str(tmp_path / "manifest.jsonl"), "--bundle", str(tmp_path / "bundle"), "--out"]
    for arguments in ([str(tmp_path / "whole")], [str(tmp_path / "copy"), "--augment-seed", "1"]):
        monkeypatch.setattr("sys.argv", [*command, *arguments])
        cache_states.main()
    index = read_index(tmp_path / "whole")
    assert [each.id for each in index] == ids
    heard = ServedWhisper(load_models(open_bundle(tmp_path / "bundle"), 1, 1))(audio, "en").states
    states = open_states(tmp_path / "whole", sum(each.frames for each in index), heard.shape[1])
    assert np.array_equal(states[: len(heard)], heard.astype(np.float16))
    assert [each.id for each in read_index(tmp_path / "copy")] == [id for id in ids if not cache_states.is_held_out(id)]


def test_agreement_counts_equal_answers_and_shared_words() -> None:
    pairs = [("The cat sat.", "the cat sat"), ("a dog", "a dog"), ("red", "blue")]
    assert agreement(pairs) == {"exact": pytest.approx(1 / 3), "token_f1": pytest.approx(2 / 3)}
    assert token_f1("", "") == 1.0


def test_garbled_text_keeps_most_tokens_in_order() -> None:
    ids = list(range(20, 60))
    garbled = garble(ids, 1000, random.Random(0))
    kept = [token for token in garbled if token in ids]
    assert 0.7 * len(ids) < len(kept) < 1.2 * len(ids)
    assert garbled != ids
    assert garble([7], 1000, random.Random(3))


def test_blurred_embeddings_are_mostly_the_tokens_own() -> None:
    torch.manual_seed(0)
    ids = list(range(20, 60))
    blurred = blur(ids, torch.eye(64))
    assert (blurred.argmax(-1) == torch.tensor(ids)).float().mean() > 0.9
    assert not torch.equal(blurred, torch.eye(64)[ids])


def test_a_cache_goes_on_where_a_killed_process_left_it(tmp_path: Path) -> None:
    states = np.random.default_rng(0).normal(0, 1, (7, WIDTH)).astype(np.float16)
    with open_cache(tmp_path) as cache:
        cache.append(CachedUtterance("a", "one", "set", 0, 0), states[:3])
        with pytest.raises(BlockingIOError), open_cache(tmp_path):
            pass
    with (tmp_path / STATES).open("ab") as unfinished:
        unfinished.write(b"half of the next")
    with open_cache(tmp_path) as cache:
        assert cache.done == {"a"}
        cache.append(CachedUtterance("b", "two", "set", 0, 0), states[3:])
    assert [(entry.id, entry.offset, entry.frames) for entry in read_index(tmp_path)] == [("a", 0, 3), ("b", 3, 4)]
    assert (tmp_path / STATES).stat().st_size == states.nbytes
    np.testing.assert_array_equal(open_states(tmp_path, 7), states)
