"""The paper's experiments: batches know no setting, a run goes on bit for bit, the frozen encoder's last layers are Whisper's."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from training.cache_states import WIDTH, CachedUtterance, open_cache
from training.experiments.corpus import LETTERS, Spoken, SpokenCorpus, group_by_length, read_letters, spell
from training.experiments.encoder_top import EncoderTop
from training.experiments.plan import COMMON, FAMILIES, FROZEN_ENCODER, TUNED_ENCODER, Setting, plan_runs
from training.experiments.report import read_runs, write_report
from training.experiments.train import Schedule, Speller, count_parameters, run_setting
from training.whisper_encoder import WhisperEncoder

SCHEDULE = Schedule(
    steps=4, states_per_batch=160, evaluate_every=2, held_out_meanwhile=2, held_out=3, width=16, heads=2, warm_up=1
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("experiments") / "cache"
    rng = np.random.default_rng(0)
    with open_cache(folder) as writer:
        for number in range(60):
            states = rng.standard_normal((40 + number % 50, WIDTH)).astype(np.float16)
            writer.append(CachedUtterance(f"clip-{number}", "A cat sat.", "cats", 0, 0), states)
        writer.append(CachedUtterance("far-too-long", "A cat sat.", "cats", 0, 0), np.zeros((650, WIDTH), np.float16))
        others = {"too-fast": "Said much too fast to be true.", "with-a-number": "It was 5."}
        for id, text in others.items():
            writer.append(CachedUtterance(id, text, "cats", 0, 0), np.zeros((16, WIDTH), np.float16))
    return folder


@pytest.fixture(scope="module")
def corpus(cache: Path) -> SpokenCorpus:
    return SpokenCorpus([cache], held_out=3)


def test_letters_are_those_of_the_words_alone() -> None:
    assert read_letters(spell("It's twenty-one, Doctor!")) == "it's twenty one doctor"
    assert max(spell("zoo")) == len(LETTERS) - 1


def test_corpus_leaves_out_what_is_too_long_too_fast_or_not_spelt(corpus: SpokenCorpus) -> None:
    ids = {each.id for each in (*corpus.train, *corpus.held_out)}
    assert not ids & {"far-too-long", "too-fast", "with-a-number"}
    assert "clip-7" in ids
    assert {each.id for each in corpus.train}.isdisjoint(each.id for each in corpus.held_out)
    assert all(each.states % 16 == 0 for each in corpus.train)


@given(st.lists(st.integers(1, 37), min_size=1, max_size=60), st.integers(16, 1200))
def test_batches_hold_everything_once_within_their_size(lengths: list[int], size: int) -> None:
    utterances = [Spoken(str(number), "", 0, 0, 16 * length, (1,)) for number, length in enumerate(lengths)]
    batches = group_by_length(utterances, size)
    assert sorted(each.id for batch in batches for each in batch) == sorted(each.id for each in utterances)
    assert all(len(batch) == 1 or len(batch) * max(each.states for each in batch) <= size for batch in batches)


def test_steps_of_a_seed_see_the_same_recordings(corpus: SpokenCorpus) -> None:
    assert corpus.plan_batches(50, 160, 0) == corpus.plan_batches(60, 160, 0)[:50]
    assert corpus.plan_batches(50, 160, 0) != corpus.plan_batches(50, 160, 1)


@pytest.mark.parametrize("setting", [*FAMILIES["stacking"], *FAMILIES["uniform"]], ids=lambda each: each.name)
def test_each_reduction_has_a_symbol_for_every_state(setting: Setting, corpus: SpokenCorpus) -> None:
    batch = corpus.batch(corpus.train[:3])
    queries, blank, outputs = Speller(setting, SCHEDULE, None)(batch)
    assert queries.shape == (3, batch.states.shape[1], len(LETTERS))
    assert blank.shape == queries.shape[:2]
    assert torch.equal(outputs, batch.lengths)


def test_a_run_goes_on_where_it_stopped(corpus: SpokenCorpus, tmp_path: Path) -> None:
    whole = run_setting(COMMON, SCHEDULE, corpus, None, tmp_path / "whole.pt")
    # Two steps of the same schedule, then the process ends.
    planned = corpus.plan_batches

    def break_off(steps: int, states_per_batch: int, seed: int) -> list[list[Spoken]]:
        return planned(steps, states_per_batch, seed)[:2]

    with pytest.raises(IndexError):
        run_setting(COMMON, SCHEDULE, stand_in(corpus, break_off), None, tmp_path / "half.pt")
    resumed = run_setting(COMMON, SCHEDULE, corpus, None, tmp_path / "half.pt")
    for one, other in zip(whole["history"], resumed["history"], strict=True):
        assert {**one, "processor_s": 0} == {**other, "processor_s": 0}


def stand_in(corpus: SpokenCorpus, plan_batches: object) -> SpokenCorpus:
    """The corpus with other batches."""
    copy: object = SimpleNamespace(batch=corpus.batch, held_out=corpus.held_out, plan_batches=plan_batches)
    return copy  # type: ignore[return-value]


def test_training_lowers_the_loss(corpus: SpokenCorpus, tmp_path: Path) -> None:
    schedule = replace(SCHEDULE, steps=20, evaluate_every=10, rate=5e-3)
    history = run_setting(replace(COMMON, layers=1), schedule, corpus, None, tmp_path / "run.pt")["history"]
    assert history[-1]["loss"] < 0.95 * history[0]["loss"]


def random_encoder() -> WhisperEncoder:
    """An encoder of two layers in the width of the caches, without weights from a file."""
    rng = np.random.default_rng(1)
    encoder = object.__new__(WhisperEncoder)
    encoder.dtype, encoder.heads, encoder.layers = torch.float32, 8, 2
    shapes = {"conv1/weight": (WIDTH, 80, 3), "conv1/bias": (WIDTH,), "conv2/weight": (WIDTH, WIDTH, 3), "conv2/bias": (WIDTH,)}
    shapes |= {"position_encodings/encodings": (1500, WIDTH), "layer_norm/gamma": (WIDTH,), "layer_norm/beta": (WIDTH,)}
    for layer in range(2):
        for part, (inner, outer) in {
            "self_attention/linear_0": (WIDTH, 3 * WIDTH),
            "self_attention/linear_1": (WIDTH, WIDTH),
            "ffn/linear_0": (WIDTH, 4 * WIDTH),
            "ffn/linear_1": (4 * WIDTH, WIDTH),
        }.items():
            shapes |= {f"layer_{layer}/{part}/weight": (outer, inner), f"layer_{layer}/{part}/bias": (outer,)}
        for part in ("self_attention", "ffn"):
            shapes |= {f"layer_{layer}/{part}/layer_norm/{name}": (WIDTH,) for name in ("gamma", "beta")}
    encoder.weights = {
        name: torch.from_numpy(rng.standard_normal(shape).astype(np.float32) * 0.03 + ("gamma" in name))
        for name, shape in shapes.items()
    }
    encoder.cast = encoder.weights
    return encoder


def test_frozen_last_layers_give_the_encoders_own_states() -> None:
    encoder, features = random_encoder(), torch.randn(80, 120)
    below = encoder.lower_states(features, 1)
    top = EncoderTop(encoder, 1)
    padded = torch.zeros(2, 70, WIDTH)
    padded[0, :60], padded[1] = below, torch.randn(70, WIDTH)
    finished = top(padded, torch.tensor([60, 70]))
    assert torch.allclose(finished[0, :60], encoder(features), atol=1e-4)
    assert not finished[0, 60:].any()


def test_the_encoder_learns_only_where_it_is_tuned(corpus: SpokenCorpus, tmp_path: Path) -> None:
    encoder = random_encoder()
    for setting, learns in ((FROZEN_ENCODER, False), (TUNED_ENCODER, True)):
        torch.manual_seed(setting.seed)
        before = Speller(setting, SCHEDULE, encoder)
        path = tmp_path / f"{setting.name}.pt"
        run_setting(setting, replace(SCHEDULE, steps=1), corpus, encoder, path)
        after = torch.load(path, weights_only=True)["speller"]
        changed = [name for name, weight in before.top_state() if not torch.equal(weight, after[name])]
        assert bool(changed) is learns
    assert count_parameters(Speller(TUNED_ENCODER, SCHEDULE, encoder)) > count_parameters(
        Speller(FROZEN_ENCODER, SCHEDULE, encoder)
    )


def test_every_setting_is_planned_once_and_has_a_name_of_its_own() -> None:
    runs = plan_runs(tuple(FAMILIES))
    assert len({each.name for each in runs}) == len(runs) == len(set(runs))
    assert {setting for family in FAMILIES.values() for setting in family} == set(runs)


def test_the_report_tells_every_run_that_is_there(tmp_path: Path) -> None:
    for setting in FAMILIES["seeds"]:
        final = {"loss": 1.25 + setting.seed / 8, "letter_error_rate": 40.0, "word_error_rate": 90.0}
        result = {"setting": asdict(setting), "trained_parameters": 2_000_000, "final": final, "history": [{"processor_s": 21.0}]}
        (tmp_path / f"{setting.name}.json").write_text(json.dumps(result))
    runs = read_runs(tmp_path)
    assert set(runs) == set(FAMILIES["seeds"])
    text = write_report(runs, tmp_path).read_text()
    assert "| seed 1 | 2.00 M | 1.375 | 40.0 % | 90.0 % | 21 s |" in text
    assert "8 layers" not in text
