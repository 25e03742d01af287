"""Whisper's decoder in torch, from CTranslate2 weights: greedy transcripts, and drafts verified in few passes.

It runs on encoder states of any length. A verified transcript consists of the same tokens as one written token by token:
a drafted token stands only where it is the one that the decoder would have written itself.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from export.importers.ctranslate2 import Arrays, read_ctranslate2

PROMPT = ("<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|notimestamps|>")
END = "<|endoftext|>"
MAX_TOKENS = 224


class WhisperDecoder:
    """Frozen, float32."""

    def __init__(self, arrays: Arrays) -> None:
        self.heads = int(arrays["decoder/num_heads"])
        self.weights = {
            name.removeprefix("decoder/"): torch.from_numpy(array.astype("float32"))
            for name, array in arrays.items()
            if name.startswith("decoder/") and array.ndim
        }
        self.layers = sum(name.startswith("layer_") and name.endswith("ffn/linear_0/bias") for name in self.weights)

    def linear(self, x: Tensor, name: str) -> Tensor:
        return functional.linear(x, self.weights[f"{name}/weight"], self.weights[f"{name}/bias"])

    def norm(self, x: Tensor, name: str) -> Tensor:
        return functional.layer_norm(x, x.shape[-1:], self.weights[f"{name}/gamma"], self.weights[f"{name}/beta"])

    def split(self, x: Tensor, parts: int) -> Tensor:
        """[n, parts * width] -> [parts, heads, n, head_size]"""
        split: Tensor = x.unflatten(-1, (parts, self.heads, -1))
        return split.permute(1, 2, 0, 3)


class Decoding:
    """One utterance in a decoder: its memory, and the keys and values of the tokens so far."""

    @torch.inference_mode()
    def __init__(self, decoder: WhisperDecoder, states: Tensor, bias: Tensor | None = None) -> None:
        """`states` [states, width] float32, the encoder's; `bias` [states] is added to their scores."""
        self.decoder, self.bias = decoder, bias
        names = [f"layer_{layer}/attention/linear_1" for layer in range(decoder.layers)]
        self.memory = [decoder.split(decoder.linear(states, name), 2) for name in names]
        self.past = [states.new_zeros(2, decoder.heads, 0, states.shape[1] // decoder.heads) for _ in range(decoder.layers)]

    @property
    def length(self) -> int:
        return self.past[0].shape[2]

    def forget(self, length: int) -> None:
        """Keep the first `length` tokens only."""
        self.past = [past[:, :, :length] for past in self.past]

    @torch.inference_mode()
    def extend(self, tokens: Sequence[int]) -> Tensor:
        """Go on with these tokens; returns the logits [tokens, vocabulary] of what follows each."""
        decoder, first, count = self.decoder, self.length, len(tokens)
        x = decoder.weights["embeddings/weight"][list(tokens)]
        x = x + decoder.weights["position_encodings/encodings"][first : first + count]
        mask = torch.ones(count, first + count, dtype=torch.bool).tril(first)
        for layer in range(decoder.layers):
            own, cross, ffn = (f"layer_{layer}/{part}" for part in ("self_attention", "attention", "ffn"))
            query, *new = decoder.split(decoder.linear(decoder.norm(x, f"{own}/layer_norm"), f"{own}/linear_0"), 3)
            self.past[layer] = torch.cat([self.past[layer], torch.stack(new)], 2)
            y = functional.scaled_dot_product_attention(query, self.past[layer][0], self.past[layer][1], attn_mask=mask)
            x = x + decoder.linear(y.transpose(0, 1).flatten(1), f"{own}/linear_1")
            (query,) = decoder.split(decoder.linear(decoder.norm(x, f"{cross}/layer_norm"), f"{cross}/linear_0"), 1)
            seen = None if self.bias is None else self.bias.expand(1, count, len(self.bias))
            y = functional.scaled_dot_product_attention(query, self.memory[layer][0], self.memory[layer][1], attn_mask=seen)
            x = x + decoder.linear(y.transpose(0, 1).flatten(1), f"{cross}/linear_2")
            inner = functional.gelu(decoder.linear(decoder.norm(x, f"{ffn}/layer_norm"), f"{ffn}/linear_0"))
            x = x + decoder.linear(inner, f"{ffn}/linear_1")
        return decoder.norm(x, "layer_norm") @ decoder.weights["projection/weight"].T


@dataclass(frozen=True)
class Rules:
    """The tokens that begin and end a transcript, and those that the decoder must not write: at all, or first."""

    prompt: list[int]
    end: int
    never: list[int]
    never_first: list[int]
    max_tokens: int = MAX_TOKENS

    @classmethod
    def of_folder(cls, folder: Path) -> "Rules":
        """The standard rules of a Whisper folder in CTranslate2's format, for English without timestamps."""
        from tokenizers import Tokenizer

        tokeniser = Tokenizer.from_file(str(folder / "tokenizer.json"))
        config = json.loads((folder / "config.json").read_text())
        *prompt, end = (int(tokeniser.token_to_id(name) or 0) for name in (*PROMPT, END))
        return cls(prompt, end, config["suppress_ids"], config["suppress_ids_begin"])

    def choose(self, logits: Tensor, written: int) -> list[int]:
        """The best allowed token behind each of the given ones, the first of them the one that follows `written` tokens."""
        logits[:, self.never] = -torch.inf
        if written == 0:
            logits[0, self.never_first] = -torch.inf
        return logits.argmax(-1).tolist()


def open_decoder(folder: Path) -> WhisperDecoder:
    return WhisperDecoder(read_ctranslate2(folder / "model.bin"))
