"""The frozen LLM in torch: next-token loss of answers behind embedded speech, and its own greedy answers."""

from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from export.default_recipe import SMOLLM
from export.importers.gguf import read_llama, read_tokeniser

END = "<|im_end|>"


class FrozenLlm:
    """Weights in bfloat16 without gradients; gradients flow through it into the speech embeddings."""

    def __init__(self, path: Path, dtype: torch.dtype = torch.bfloat16) -> None:
        llama = read_llama(path)
        config = llama.config
        self.tokeniser: Tokenizer = read_tokeniser(path)
        self.model = LlamaForCausalLM(
            LlamaConfig(
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
            )
        )
        self.model.load_state_dict({name: torch.from_numpy(w) for name, w in llama.weights.items()}, strict=False)
        self.model.to(dtype=dtype)  # type: ignore[call-arg]
        self.model.eval().requires_grad_(False)
        self.dtype = dtype
        self.table: Tensor = self.model.model.embed_tokens.weight
        self.end_token = self.tokeniser.token_to_id(END)

    def ids(self, text: str) -> list[int]:
        return self.tokeniser.encode(text, add_special_tokens=False).ids

    def head(self, instruction: str) -> tuple[DynamicCache, int]:
        """K/V of `[prefix][instruction]`, batch of one, and its length."""
        ids = torch.tensor([self.ids(SMOLLM.prefix) + self.ids(instruction) + self.ids(SMOLLM.after_instruction)])
        with torch.no_grad():
            cache = self.model.model(input_ids=ids, use_cache=True).past_key_values
        return cache, ids.shape[1]

    def answer_loss(self, instruction: str, speech: Sequence[Tensor], answers: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Mean next-token loss over answer tokens (their end token among them), and the share predicted right.

        `speech` holds [frames, embedding_size] per utterance, boundary vectors included.
        """
        cache, head_length = self.head(instruction)
        cache.batch_repeat_interleave(len(speech))
        suffix = self.table[self.ids(SMOLLM.suffix)]
        rows, targets = [], []
        for frames, answer in zip(speech, answers, strict=True):
            answer_ids = torch.tensor([*answer, self.end_token])
            rows.append(torch.cat([frames.to(self.dtype), suffix, self.table[answer_ids[:-1]]]))
            targets.append(answer_ids)
        longest = max(len(row) for row in rows)
        embeddings = torch.stack([functional.pad(row, (0, 0, 0, longest - len(row))) for row in rows])
        mask = torch.zeros(len(rows), head_length + longest, dtype=torch.long)
        for index, row in enumerate(rows):
            mask[index, : head_length + len(row)] = 1
        hidden = self.model.model(
            inputs_embeds=embeddings, attention_mask=mask, past_key_values=cache, use_cache=True
        ).last_hidden_state
        picked = torch.cat(
            [hidden[i, len(row) - len(t) : len(row)] for i, (row, t) in enumerate(zip(rows, targets, strict=True))]
        )
        logits = (picked @ self.table.T).float()
        wanted = torch.cat(targets)
        return functional.cross_entropy(logits, wanted), (logits.argmax(-1) == wanted).float().mean()

    @torch.inference_mode()
    def generate(self, instruction: str, speech: Sequence[Tensor], max_tokens: int) -> list[list[int]]:
        """Greedy answers. Rows share a batch by padding on the left, which in bfloat16 may change a near tie."""
        cache, head_length = self.head(instruction)
        cache.batch_repeat_interleave(len(speech))
        suffix = self.table[self.ids(SMOLLM.suffix)]
        rows = [torch.cat([frames.to(self.dtype), suffix]) for frames in speech]
        longest = max(len(row) for row in rows)
        embeddings = torch.stack([functional.pad(row, (0, 0, longest - len(row), 0)) for row in rows])
        lengths = torch.tensor([len(row) for row in rows])
        padding = torch.arange(longest) >= longest - lengths[:, None]
        mask = torch.cat([torch.ones(len(rows), head_length, dtype=torch.long), padding.long()], 1)
        positions = (head_length + torch.arange(longest) - (longest - lengths[:, None])).clamp(min=0)
        answers: list[list[int]] = [[] for _ in rows]
        open_rows = set(range(len(rows)))
        inputs = embeddings
        for _ in range(max_tokens):
            hidden = self.model.model(
                inputs_embeds=inputs, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
            ).last_hidden_state
            tokens = (hidden[:, -1] @ self.table.T).argmax(-1)
            for row in list(open_rows):
                if tokens[row] == self.end_token:
                    open_rows.discard(row)
                else:
                    answers[row].append(int(tokens[row]))
            if not open_rows:
                break
            inputs = self.table[tokens][:, None]
            mask = torch.cat([mask, torch.ones(len(rows), 1, dtype=torch.long)], 1)
            positions = positions[:, -1:] + 1
        return answers
