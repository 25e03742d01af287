"""The frozen LLM in torch: next-token loss of answers behind embedded speech, and its own greedy answers.

Any LLM that `thinbridge pull` knows, in the prompt that `pull` gives it. Vectors of speech stand among the embeddings as they do
in serving, where Granite's multiplier is in the table.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from export.checkpoints.hub import Source
from export.checkpoints.t5 import EncoderDecoderModel
from export.pull import AnyLanguageModel, read_llm
from models.llms.llama import Llama
from models.text.tokeniser import PromptTemplate, Tokeniser, lay_out_prompt

HEAD = "lm_head.weight"


class FrozenLlm(ABC):
    """An LLM without gradients of its own; they flow through it into the speech.

    `table` [vocabulary, embedding_size] has the embeddings. Speech is [frames, embedding_size] per utterance, boundary vectors
    included.
    """

    def __init__(self, model: Any, read: AnyLanguageModel) -> None:
        self.model = model.eval().requires_grad_(False)
        self.tokeniser = Tokeniser.from_json(read.tokeniser_json)
        self.template = PromptTemplate.from_json(read.speech_prompt().model_dump())
        self.multiplier = float(getattr(model.config, "embedding_multiplier", 1.0))
        self.table: Tensor = model.get_input_embeddings().weight * self.multiplier
        # The checkpoint's own settings may sample, or punish repetition.
        ends = list(self.template.end_tokens)
        start = getattr(model.config, "decoder_start_token_id", None)
        model.generation_config = GenerationConfig(eos_token_id=ends, pad_token_id=ends[0], decoder_start_token_id=start)

    def ids(self, text: str) -> list[int]:
        """Return the tokens of a text that begins an answer."""
        return self.tokeniser.encode_after((), text)

    def prompt(self, instruction: str, speech: Tensor) -> Tensor:
        """Return the embeddings [positions, embedding_size] of a whole prompt."""
        ids = lay_out_prompt(self.template, self.tokeniser, instruction)
        before, after = (self.table[torch.tensor(part, dtype=torch.long)] for part in (ids.before_speech, ids.after_speech))
        return torch.cat([before, speech.to(self.table), after])

    def answer_loss(
        self, instructions: Sequence[str], speech: Sequence[Tensor], answers: Sequence[Sequence[int]]
    ) -> tuple[Tensor, Tensor]:
        """Return the mean next-token loss over answer tokens, their end token among them, and the share predicted right."""
        prompts = [self.prompt(*pair) for pair in zip(instructions, speech, strict=True)]
        targets = [torch.tensor([*answer, self.template.end_tokens[0]], device=self.table.device) for answer in answers]
        logits, wanted = self._logits(prompts, targets).float(), torch.cat(targets)
        return functional.cross_entropy(logits, wanted), (logits.argmax(-1) == wanted).float().mean()

    @torch.inference_mode()
    def generate(self, instructions: Sequence[str], speech: Sequence[Tensor], max_tokens: int) -> list[list[int]]:
        """Return greedy answers, without their end. Rows share a batch by padding, which in bfloat16 may change a near tie."""
        prompts = [self.prompt(*pair) for pair in zip(instructions, speech, strict=True)]
        embeddings, mask = self._pad(prompts)
        options = {"do_sample": False, "num_beams": 1, "max_new_tokens": max_tokens}
        written = self.model.generate(inputs_embeds=embeddings, attention_mask=mask, **options)
        return [self._cut(row) for row in written.tolist()]

    @abstractmethod
    def _logits(self, prompts: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
        """Return the logits of the targets' tokens, row after row [tokens, vocabulary]."""

    @abstractmethod
    def _pad(self, rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return prompts as one batch, as the model's own embeddings, and its mask."""

    def _cut(self, row: list[int]) -> list[int]:
        return row[: next((place for place, token in enumerate(row) if token in self.template.end_tokens), len(row))]


class DecoderOnly(FrozenLlm):
    """Llama, Qwen, Mistral, SmolLM, Granite."""

    def _logits(self, prompts: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
        rows = [torch.cat([prompt, self.table[target[:-1]]]) for prompt, target in zip(prompts, targets, strict=True)]
        embeddings, mask = _pad_right(rows, self.multiplier)
        hidden = self.model.base_model(inputs_embeds=embeddings, attention_mask=mask).last_hidden_state
        ends = [(len(row) - len(target), len(row)) for row, target in zip(rows, targets, strict=True)]
        picked = torch.cat([hidden[number, first:last] for number, (first, last) in enumerate(ends)])
        logits: Tensor = self.model.get_output_embeddings()(picked) / getattr(self.model.config, "logits_scaling", 1.0)
        return logits

    def _pad(self, rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        embeddings, mask = _pad_right([row.flip(0) for row in rows], self.multiplier)
        return embeddings.flip(1), mask.flip(1)


class EncoderDecoder(FrozenLlm):
    """T5, mT5, mT0: the encoder reads the prompt, the decoder writes the answer."""

    def _logits(self, prompts: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
        embeddings, mask = self._pad(prompts)
        start = torch.tensor([self.model.config.decoder_start_token_id], device=self.table.device)
        given = pad_sequence([torch.cat([start, target[:-1]]) for target in targets], batch_first=True)
        logits = self.model(inputs_embeds=embeddings, attention_mask=mask, decoder_input_ids=given).logits
        return torch.cat([logits[number, : len(target)] for number, target in enumerate(targets)])

    def _pad(self, rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        return _pad_right(rows, self.multiplier)

    def _cut(self, row: list[int]) -> list[int]:
        return super()._cut(row[1:])


def _pad_right(rows: Sequence[Tensor], multiplier: float) -> tuple[Tensor, Tensor]:
    mask = pad_sequence([torch.ones(len(row), dtype=torch.long, device=row.device) for row in rows], batch_first=True)
    return pad_sequence(list(rows), batch_first=True) / multiplier, mask


def open_llm(source: Source, device: str = "cpu", dtype: torch.dtype = torch.float32) -> FrozenLlm:
    """Open an LLM. Raises `CheckpointError` for what `pull` refuses."""
    read = read_llm(source)
    if not isinstance(read, EncoderDecoderModel):
        model = _from_weights(read.llama) if source.gguf else _from_folder(AutoModelForCausalLM, source)
        return DecoderOnly(model.to(device=device, dtype=dtype), read)
    model, tensors = _from_folder(AutoModelForSeq2SeqLM, source), source.checkpoint.tensors
    if HEAD in tensors:
        # transformers ties a head that was trained apart, where a configuration does not say otherwise.
        model.lm_head.weight = torch.nn.Parameter(torch.from_numpy(tensors[HEAD]))
    return EncoderDecoder(model.to(device=device, dtype=dtype), read)


def _from_folder(kind: Any, source: Source) -> Any:
    return kind.from_pretrained(source.checkpoint.folder, dtype=torch.float32, use_safetensors=True)


def _from_weights(llama: Llama) -> Any:
    """Return transformers' model with the weights of a GGUF file."""
    config, has_biases = llama.config, "model.layers.0.self_attn.q_proj.bias" in llama.weights
    kind, describe = (Qwen2ForCausalLM, Qwen2Config) if has_biases else (LlamaForCausalLM, LlamaConfig)
    model: Any = kind(
        describe(
            hidden_size=config.embedding_size,
            intermediate_size=config.feed_forward_size,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.key_value_heads,
            vocab_size=config.vocabulary_size,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
            rms_norm_eps=config.norm_epsilon,
            tie_word_embeddings=config.tied,
            max_position_embeddings=8192,
        )  # type: ignore[arg-type]
    )
    model.load_state_dict({name: torch.from_numpy(weight) for name, weight in llama.weights.items()}, strict=False)
    return model
