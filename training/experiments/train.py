"""One run: an adapter that spells the speech, by CTC, at one setting."""

import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jiwer
import torch
from torch import Tensor, nn

from training.adapter import Adapter, AdapterConfig
from training.ctc import ctc_loss, greedy_tokens, sample_vocabulary
from training.experiments.corpus import LETTERS, SpokenBatch, SpokenCorpus, group_by_length, read_letters
from training.experiments.encoder_top import EncoderTop
from training.experiments.plan import Setting
from training.whisper_encoder import WhisperEncoder


@dataclass(frozen=True)
class Schedule:
    """The plan that all runs have in common. Rates are peaks, after a warm-up and before a cosine down to a fiftieth.

    `held_out` recordings are spelt at the end, and the first of them at every evaluation.
    """

    steps: int = 120
    states_per_batch: int = 600
    evaluate_every: int = 30
    held_out_meanwhile: int = 20
    held_out: int = 60
    width: int = 256
    heads: int = 4
    rate: float = 2e-3
    encoder_rate: float = 1e-4
    warm_up: int = 12


def rate_share(step: int, schedule: Schedule) -> float:
    """Return the share of the peak rate at a step."""
    if step < schedule.warm_up:
        return (step + 1) / schedule.warm_up
    position = (step - schedule.warm_up) / max(1, schedule.steps - schedule.warm_up)
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, position)))


class Speller(nn.Module):
    """The adapter, and where the setting runs them, the encoder's last layers below it."""

    def __init__(self, setting: Setting, schedule: Schedule, encoder: WhisperEncoder | None) -> None:
        super().__init__()
        config = AdapterConfig(
            width=schedule.width,
            heads=schedule.heads,
            feed_forward=4 * schedule.width,
            layers=setting.layers,
            embedding_size=len(LETTERS),
            reduction=setting.reduction,
            subsampling=setting.subsampling,
            boundary_vectors=0,
            dropout=0.0,
            targets="letters",
            outputs_per_frame=setting.reduction,
        )
        self.adapter = Adapter(config)
        self.adapter.residual.requires_grad_(False)
        self.top: EncoderTop | None = None
        if setting.encoder_layers:
            if encoder is None:
                raise ValueError(f"{setting.name} needs the encoder's weights")
            self.top = EncoderTop(encoder, setting.encoder_layers)
            self.top.requires_grad_(setting.tunes_encoder)

    def forward(self, batch: SpokenBatch) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [batch, outputs, letters], blank logits [batch, outputs] and the count of outputs of each utterance."""
        states = batch.states if self.top is None else self.top(batch.states, batch.lengths)
        frames = batch.lengths // self.adapter.config.reduction
        hidden, _ = self.adapter(states, frames)
        outputs = frames * self.adapter.config.outputs_per_frame
        return self.adapter.token_queries(hidden), self.adapter.blank_logits(hidden), outputs

    def top_state(self) -> list[tuple[str, Tensor]]:
        """Return the weights of the encoder's layers by their names in the whole; none where the setting runs none."""
        return [(name, weight) for name, weight in self.state_dict().items() if name.startswith("top.")]

    def loss(self, batch: SpokenBatch) -> Tensor:
        """Return the mean CTC loss per letter."""
        queries, blank, outputs = self(batch)
        sample = sample_vocabulary(batch.letters, len(LETTERS), len(LETTERS), torch.Generator())
        return ctc_loss(queries, blank, outputs, torch.eye(len(LETTERS)), sample, batch.letters, batch.letter_lengths)


@torch.no_grad()
def evaluate(speller: Speller, corpus: SpokenCorpus, schedule: Schedule, recordings: int) -> dict[str, Any]:
    """Loss per letter, letter and word error rates in per cent on held-out recordings, and what was heard in three of them."""
    speller.eval()
    loss, spelt, heard = 0.0, [], []
    held_out = corpus.held_out[:recordings]
    for utterances in group_by_length(held_out, schedule.states_per_batch):
        batch = corpus.batch(utterances)
        loss += float(speller.loss(batch)) * len(utterances)
        queries, blank, outputs = speller(batch)
        for row, each in enumerate(utterances):
            count = int(outputs[row])
            heard.append(read_letters(greedy_tokens(queries[row, :count], blank[row, :count], torch.eye(len(LETTERS)))))
            spelt.append(read_letters(each.letters))
    speller.train()
    return {
        "loss": round(loss / len(held_out), 4),
        "letter_error_rate": round(100 * float(jiwer.cer(spelt, heard)), 2),
        "word_error_rate": round(100 * float(jiwer.wer(spelt, heard)), 2),
        "heard": [{"said": said, "heard": text} for said, text in list(zip(spelt, heard, strict=True))[:3]],
    }


def count_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


def run_setting(
    setting: Setting, schedule: Schedule, corpus: SpokenCorpus, encoder: WhisperEncoder | None, checkpoint: Path
) -> dict[str, Any]:
    """Train and return what is to be kept of the run; goes on from `checkpoint`, which is written at every evaluation."""
    torch.manual_seed(setting.seed)
    speller = Speller(setting, schedule, encoder).train()
    groups = [{"params": [p for p in speller.adapter.parameters() if p.requires_grad], "peak": schedule.rate}]
    if setting.tunes_encoder and speller.top is not None:
        groups.append({"params": list(speller.top.parameters()), "peak": schedule.encoder_rate})
    optimizer = torch.optim.AdamW([{**group, "lr": 0.0} for group in groups], betas=(0.9, 0.98), weight_decay=0.01)
    planned = corpus.plan_batches(schedule.steps, schedule.states_per_batch, setting.seed)
    first, history, processor_s = 0, [], 0.0
    if checkpoint.exists():
        content = torch.load(checkpoint, weights_only=True)
        speller.load_state_dict(content["speller"])
        optimizer.load_state_dict(content["optimizer"])
        first, history, processor_s = content["step"], content["history"], content["processor_s"]
    began, running = time.process_time(), 0.0
    for step in range(first, schedule.steps):
        running += _take_step(speller, corpus.batch(planned[step]), optimizer, rate_share(step, schedule))
        done = step + 1
        if done % schedule.evaluate_every == 0 or done == schedule.steps:
            processor_s, began = processor_s + time.process_time() - began, time.process_time()
            row = evaluate(speller, corpus, schedule, schedule.held_out_meanwhile)
            steps = (done - 1) % schedule.evaluate_every + 1
            losses = {"training_loss": round(running / steps, 4), "processor_s": round(processor_s, 1)}
            history.append({"step": done, **losses, **row})
            began, running = time.process_time(), 0.0
            print(setting.name, json.dumps({name: value for name, value in history[-1].items() if name != "heard"}), flush=True)
            _save(checkpoint, speller, optimizer, {"step": done, "history": history, "processor_s": processor_s})
    return {
        "setting": asdict(setting),
        "schedule": asdict(schedule),
        "trained_parameters": count_parameters(speller),
        "training_minutes": round(sum(each.states for batch in planned for each in batch) / 50 / 60, 1),
        "held_out_recordings": len(corpus.held_out),
        "final": evaluate(speller, corpus, schedule, schedule.held_out),
        "history": history,
    }


def _take_step(speller: Speller, batch: SpokenBatch, optimizer: torch.optim.Optimizer, share: float) -> float:
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * share
    loss = speller.loss(batch)
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_([p for p in speller.parameters() if p.requires_grad], 1.0)
    optimizer.step()
    return float(loss.detach())


def _save(path: Path, speller: Speller, optimizer: torch.optim.Optimizer, about: dict[str, Any]) -> None:
    partial = path.with_suffix(".partial")
    torch.save({"speller": speller.state_dict(), "optimizer": optimizer.state_dict(), **about}, partial)
    partial.replace(path)
