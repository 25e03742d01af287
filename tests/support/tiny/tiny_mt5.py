"""Tiny random checkpoints of mT5's kind with a unigram tokeniser, and an adapter of ours for one behind a tiny Whisper."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from models.protocols import Float32
from tests.support.tiny.tiny_checkpoints import SENTENCES, spread_weights
from tests.support.tiny.tiny_t5 import untie_head
from training.adapter import Adapter, AdapterConfig
from training.bridge import bridge, ctc_runs

WIDTH = 48
BLANK_BIAS = -4.5
"""Makes about half of the frames blank: what the weights give is near 4.5."""
INSTRUCTIONS = ("Transcribe the speech to text.", "Who speaks?", "</s><extra_id_0> Obey, zwölf!")
TEXTS = (*SENTENCES, 'This is what the speaker said: "', '{"name": [0, 1]}')


def write_unigram_tokeniser(file: Path, sentences: Sequence[str] = TEXTS, size: int = 120) -> int:
    """Write a `tokenizer.json` as transformers' T5 has it; return the size of the vocabulary."""
    tokeniser: Any = Tokenizer(models.Unigram())
    tokeniser.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    tokeniser.pre_tokenizer = pre_tokenizers.Metaspace()
    tokeniser.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=size, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    tokeniser.train_from_iterator(list(sentences) * 4, trainer)
    tokeniser.save(str(file))
    definition = json.loads(file.read_text())
    definition["model"]["vocab"] += [["\u2581<extra_id_0>", 0.0]]
    file.write_text(json.dumps(definition))
    return len(definition["model"]["vocab"])


def write_mt5(folder: Path, kind: str = "mt5", **changes: Any) -> Any:
    """Write an mT5, or an original T5, of two layers; return transformers' model."""
    folder.mkdir(parents=True)
    size = write_unigram_tokeniser(folder / "tokenizer.json")
    torch.manual_seed(9)
    shape = {
        "vocab_size": size + 8, "d_model": WIDTH, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 4,
        "decoder_start_token_id": 0, "eos_token_id": 1, "pad_token_id": 0, "relative_attention_num_buckets": 8,
        "relative_attention_max_distance": 30, **changes,
    }  # fmt: skip
    model: Any = (
        transformers.MT5ForConditionalGeneration(transformers.MT5Config(**shape))
        if kind == "mt5"
        else transformers.T5ForConditionalGeneration(transformers.T5Config(**shape, feed_forward_proj="relu"))
    )
    model.eval()
    spread_weights(model, 0.2)
    if kind == "mt5":
        untie_head(model, 0.2)
    model.save_pretrained(folder)
    return model


def write_random_adapter(file: Path, encoder_width: int, embedding_size: int = WIDTH) -> Adapter:
    """Write a random adapter, which leaves about half of the frames blank; return it."""
    torch.manual_seed(3)
    config = AdapterConfig(
        encoder_width=encoder_width, width=32, layers=1, heads=2, feed_forward=48, embedding_size=embedding_size,
        boundary_vectors=2,
    )  # fmt: skip
    adapter = Adapter(config).eval()
    for name, parameter in adapter.named_parameters():
        if "norm" not in name:
            torch.nn.init.normal_(parameter, std=0.4)
    torch.nn.init.constant_(adapter.blank.bias, adapter.blank.bias.item() + BLANK_BIAS)
    write_adapter(file, adapter)
    return adapter


def write_adapter(file: Path, adapter: Adapter) -> None:
    """Write an adapter as the trainer exports it, in float32."""
    config = {**asdict(adapter.config), "blank_threshold": 0.5, "boundary_instructions": [INSTRUCTIONS[0]]}
    save_file(adapter.state_dict(), file, metadata={"config": json.dumps(config)})


class PaperChain:
    """SLM's chain (arXiv 2310.00230) by transformers and torch: states, our adapter, and mT5 over [instruction; speech]."""

    def __init__(self, adapter: Adapter, llm: Any) -> None:
        self.adapter, self.llm = adapter, llm
        self.table: torch.Tensor = llm.shared.weight.detach()

    @torch.inference_mode()
    def frames(self, states: Float32) -> torch.Tensor:
        """Return what the LLM gets of the encoder's states [states, width]."""
        given = torch.from_numpy(states)[None]
        hidden, _ = self.adapter(given, torch.tensor([given.shape[1] // self.adapter.config.reduction]))
        runs = ctc_runs(self.adapter.token_queries(hidden)[0], self.adapter.blank_logits(hidden)[0], self.table, 0.5)
        return bridge(self.adapter, hidden[0], runs, self.table)

    @torch.inference_mode()
    def write(self, states: Float32, before: Sequence[int], after: Sequence[int], count: int, *, transcribes: bool) -> list[int]:
        """Return transformers' greedy tokens, the last of which is the end if there was room for that."""
        heard = self.frames(states)
        if transcribes:
            heard = torch.cat([self.adapter.boundary_before, heard, self.adapter.boundary_after])
        read = torch.cat([self.table[torch.tensor(before, dtype=torch.long)], heard, self.table[list(after)]])[None]
        written = self.llm.generate(inputs_embeds=read, max_new_tokens=count, do_sample=False, num_beams=1)
        return list(written[0, 1:].tolist())
