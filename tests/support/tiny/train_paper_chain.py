"""Train a whole SLM (arXiv 2310.00230) on tiny sizes: a random frozen Whisper, an mT5 that learns from text, and our adapter.

    python -m tests.support.tiny.train_paper_chain

writes `tests/support/tiny/paper_chain/` in some minutes on a CPU. The speech is synthetic: a word is a quarter of a second of
two tones. The mT5 learns to copy words, to turn them round and to name the last one, from text alone. Then it is frozen, and the
adapter learns by CTC over its tokens, and at last through it.
"""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from torch.nn import functional
from transformers import MT5Config, MT5ForConditionalGeneration, WhisperForConditionalGeneration

from models.features.log_mel import LogMel
from models.protocols import Float32
from models.text.tokeniser import Tokeniser
from tests.support.tiny.tiny_checkpoints import write_whisper
from tests.support.tiny.tiny_mt5 import write_adapter
from tests.support.tiny.tiny_t5 import untie_head
from tests.support.tiny.tiny_whisper import reference_states
from training.adapter import Adapter, AdapterConfig
from training.bridge import bridge, ctc_runs, with_boundaries
from training.ctc import ctc_loss, sample_vocabulary

FOLDER = Path(__file__).parent / "paper_chain"
SEED = 0
WORDS = ("red", "blue", "green", "tea", "milk", "water", "one", "two", "three", "please")
COPY, REVERSE, LAST = "Transcribe the speech to text.", "Say it backwards.", "What is the last word?"
ENCODER_WIDTH, LLM_WIDTH = 32, 64
TEXT_STEPS, CTC_STEPS, JOINT_STEPS, BATCH = 1500, 500, 120, 24


def answer(instruction: str, words: Sequence[str]) -> list[str]:
    """Return the right answer about some words."""
    return {COPY: list(words), REVERSE: list(words)[::-1], LAST: list(words)[-1:]}[instruction]


def draw_words(generator: random.Random) -> list[str]:
    return generator.sample(WORDS, generator.randint(1, 4))


def speak(words: Sequence[str], seed: int) -> Float32:
    """Return the tones of some words at 16 kHz, some louder than others, with a little noise and short gaps."""
    noise = np.random.default_rng(seed)
    places = np.arange(4000) / 16_000
    pieces = [np.zeros(1000)]
    for word in words:
        number = WORDS.index(word)
        tones = sum(np.sin(2 * np.pi * hertz * places) for hertz in (300 + 140 * number, 2100 + 310 * ((number * 7) % 10)))
        pieces += [noise.uniform(0.1, 0.3) * tones * np.hanning(4000) ** 0.25, np.zeros(noise.integers(900, 1600))]
    audio = np.concatenate(pieces)
    return np.asarray(audio + noise.normal(0, 0.003, len(audio)), np.float32)


def write_tokeniser(file: Path) -> None:
    """Write a unigram vocabulary: a piece for each word, and letters for the rest."""
    text = " ".join((*WORDS, COPY, REVERSE, LAST))
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((f"\u2581{word}", -2.0) for word in WORDS)]
    pieces += [(f"\u2581{word}", -3.0) for word in sorted({*COPY.split(), *REVERSE.split(), *LAST.split()})]
    pieces += [(letter, -12.0) for letter in sorted({*text.replace(" ", ""), "\u2581"})]
    tokeniser: Any = Tokenizer(models.Unigram(pieces, unk_id=2))
    tokeniser.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    tokeniser.pre_tokenizer = pre_tokenizers.Metaspace()
    tokeniser.decoder = decoders.Metaspace()
    tokeniser.add_special_tokens(["<pad>", "</s>", "<unk>"])
    tokeniser.save(str(file))


def new_llm(vocabulary: int) -> Any:
    config = MT5Config(
        vocab_size=vocabulary, d_model=LLM_WIDTH, d_kv=16, d_ff=128, num_layers=2, num_decoder_layers=2, num_heads=4,
        decoder_start_token_id=0, eos_token_id=1, pad_token_id=0, dropout_rate=0.0,
    )  # fmt: skip
    llm: Any = MT5ForConditionalGeneration(config)
    untie_head(llm, LLM_WIDTH**-0.5)
    return llm


def answer_loss(llm: Any, read: list[torch.Tensor], answers: list[list[int]]) -> torch.Tensor:
    """Return the mean loss of answers, each with its end, about prompts of embeddings."""
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones(len(each)) for each in read], batch_first=True)
    labels = [torch.tensor([*each, 1]) for each in answers]
    loss: torch.Tensor = llm(
        inputs_embeds=torch.nn.utils.rnn.pad_sequence(read, batch_first=True),
        attention_mask=mask,
        labels=torch.nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=-100),
    ).loss
    return loss


def train_llm(llm: Any, tokeniser: Tokeniser, generator: random.Random) -> None:
    """Teach the three instructions from text."""
    optimiser = torch.optim.AdamW(llm.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, TEXT_STEPS, pct_start=0.1)
    for step in range(TEXT_STEPS):
        read, answers = [], []
        for _ in range(BATCH):
            words, instruction = draw_words(generator), generator.choice((COPY, REVERSE, LAST))
            ids = [*tokeniser.encode_after((), instruction), *tokeniser.encode_after((), " ".join(words)), 1]
            read.append(llm.shared.weight[torch.tensor(ids)])
            answers.append(tokeniser.encode_after((), " ".join(answer(instruction, words))))
        loss = answer_loss(llm, read, answers)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(llm.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if step % 100 == 99:
            print(f"text {step + 1}: {loss.item():.4f}", flush=True)


def train_adapter(adapter: Adapter, llm: Any, tokeniser: Tokeniser, whisper: Any, generator: random.Random) -> None:
    """Teach the adapter by CTC, and then through the frozen mT5 too."""
    features, table = LogMel(mel_bins=80), llm.shared.weight.detach()
    spoken = [draw_words(generator) for _ in range(400)]
    states = [
        torch.from_numpy(reference_states(whisper.model.encoder, features(speak(words, seed))))
        for seed, words in enumerate(spoken)
    ]
    optimiser = torch.optim.AdamW(adapter.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, CTC_STEPS + JOINT_STEPS, pct_start=0.1)
    for step in range(CTC_STEPS + JOINT_STEPS):
        chosen = generator.sample(range(len(spoken)), BATCH)
        frames = torch.tensor([len(states[each]) // 4 for each in chosen])
        longest = int(frames.max()) * 4
        batch = torch.stack([functional.pad(states[each], (0, 0, 0, longest - len(states[each]))) for each in chosen])
        hidden, _ = adapter(batch, frames)
        queries, blank = adapter.token_queries(hidden), adapter.blank_logits(hidden)
        targets = [torch.tensor(tokeniser.encode_after((), " ".join(spoken[each]))) for each in chosen]
        padded = torch.nn.utils.rnn.pad_sequence(targets, batch_first=True)
        sample = sample_vocabulary(padded, len(table), len(table), torch.Generator())
        loss = ctc_loss(queries, blank, frames, table, sample, padded, torch.tensor([len(each) for each in targets]))
        if step >= CTC_STEPS:
            loss = loss + through_llm(adapter, llm, tokeniser, hidden, frames, [spoken[each] for each in chosen], generator)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(adapter.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if step % 50 == 49:
            print(f"speech {step + 1}: {loss.item():.4f}", flush=True)


def through_llm(
    adapter: Adapter,
    llm: Any,
    tokeniser: Tokeniser,
    hidden: torch.Tensor,
    frames: torch.Tensor,
    spoken: list[list[str]],
    generator: random.Random,
) -> torch.Tensor:
    """Return the loss of answers about speech; the boundary vectors stand around it under `COPY`."""
    table = llm.shared.weight.detach()
    read, answers = [], []
    for row, words in enumerate(spoken):
        own = hidden[row, : frames[row]]
        runs = ctc_runs(adapter.token_queries(own[None])[0].detach(), adapter.blank_logits(own[None])[0].detach(), table, 0.5)
        instruction = generator.choice((COPY, REVERSE, LAST))
        heard = bridge(adapter, own, runs, table)
        heard = with_boundaries(adapter, heard) if instruction == COPY else heard
        read.append(torch.cat([table[tokeniser.encode_after((), instruction)], heard, table[[1]]]))
        answers.append(tokeniser.encode_after((), " ".join(answer(instruction, words))))
    return answer_loss(llm, read, answers)


def halve(file: Path) -> None:
    """Round the weights of a file to 16 bits."""
    save_file({name: each.half() for name, each in load_file(file).items()}, file, metadata={"format": "pt"})


def main() -> None:
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    generator = random.Random(SEED)
    write_whisper(FOLDER / "whisper")
    halve(FOLDER / "whisper" / "model.safetensors")
    whisper = WhisperForConditionalGeneration.from_pretrained(FOLDER / "whisper", dtype=torch.float32).eval()
    (FOLDER / "mt5").mkdir()
    write_tokeniser(FOLDER / "mt5" / "tokenizer.json")
    tokeniser = Tokeniser.from_file(FOLDER / "mt5" / "tokenizer.json")
    torch.manual_seed(SEED)
    llm = new_llm(tokeniser.vocabulary_size)
    train_llm(llm, tokeniser, generator)
    llm.half().save_pretrained(FOLDER / "mt5")
    llm = llm.float().eval().requires_grad_(requires_grad=False)
    adapter = Adapter(
        AdapterConfig(
            encoder_width=ENCODER_WIDTH, width=48, layers=1, heads=4, feed_forward=96, embedding_size=LLM_WIDTH,
            boundary_vectors=2, dropout=0.0,
        )
    )  # fmt: skip
    train_adapter(adapter, llm, tokeniser, whisper, generator)
    write_adapter(FOLDER / "adapter.safetensors", adapter.half())


if __name__ == "__main__":
    main()
