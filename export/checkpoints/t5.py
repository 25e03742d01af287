"""T5, mT5 and mT0 in safetensors: encoder-decoder LLMs."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from export.bundle_parts import write_t5
from export.checkpoints.checkpoint import Checkpoint, read_layers, read_value, require_shape
from export.checkpoints.language_model import QUOTE, end_tokens
from export.checkpoints.safetensors_file import CheckpointError
from models.bundle.sections import LlmSection, PromptSection
from models.graph.lazy_weights import Compute, LazyWeights
from models.graph.linear import Float32
from models.llms.t5 import EMBEDDING, T5, T5Config
from models.text.tokeniser import Tokeniser

FAMILIES = ("t5", "mt5")
"""By the `model_type` of `config.json`; mT0 is an mT5."""
ACTIVATIONS = ("gated-gelu", "relu")
ATTENTIONS = {"encoder": ("SelfAttention",), "decoder": ("SelfAttention", "EncDecAttention")}


@dataclass(frozen=True)
class EncoderDecoderModel:
    """An encoder-decoder LLM. The prompt is the instruction, then the speech or its transcript, then one of the `ends`."""

    name: str
    model: T5
    tokeniser_json: str
    ends: tuple[int, ...]
    start: int

    @property
    def embeddings(self) -> Float32:
        """The embeddings [vocabulary, embedding_size] of the tokens."""
        return self.model.weights[EMBEDDING]

    def write(self, precision: str, folder: Path) -> LlmSection:
        """Write the LLM's files into a bundle's folder."""
        (folder / "tokenizer.json").write_text(self.tokeniser_json, encoding="utf-8")
        return write_t5(self.model, precision, folder, self.start)

    def speech_prompt(self) -> PromptSection:
        """Return the prompt in which the LLM hears the speech: the instruction, the speech, the end (arXiv 2310.00230)."""
        return PromptSection(prefix=(), after_instruction=(), suffix=self.ends[:1], end_tokens=self.ends)

    def transcript_prompt(self) -> PromptSection:
        """Return the prompt in which the LLM is asked about a transcript."""
        tokeniser = Tokeniser.from_json(self.tokeniser_json)
        after = tuple(tokeniser.encode(f" {QUOTE.strip()}"))
        suffix = (*tokeniser.encode('"'), *self.ends[:1])
        return PromptSection(prefix=(), after_instruction=after, suffix=suffix, end_tokens=self.ends)


def read_encoder_decoder(checkpoint: Checkpoint) -> EncoderDecoderModel:
    """Read a T5, mT5 or mT0. Raises `CheckpointError`."""
    tokeniser = checkpoint.open_tokeniser()
    model = read_t5(checkpoint)
    if tokeniser.vocabulary_size > model.config.vocabulary_size:
        raise CheckpointError(
            f"{checkpoint.name} has a tokeniser of {tokeniser.vocabulary_size} tokens and a vocabulary of "
            f"{model.config.vocabulary_size}"
        )
    return EncoderDecoderModel(
        checkpoint.name,
        model,
        checkpoint.tokeniser_json,
        end_tokens(checkpoint, checkpoint.config, tokeniser),
        int(read_value(checkpoint.config, "decoder_start_token_id", checkpoint.name)),
    )


def read_t5(checkpoint: Checkpoint) -> T5:
    """Return the weights, each read when it is used. Raises `CheckpointError`."""
    config, tensors, place = checkpoint.config, checkpoint.tensors, checkpoint.name
    shape, activation = read_config(config, place), config.get("feed_forward_proj", "relu")
    if activation not in ACTIVATIONS:
        raise CheckpointError(f"{place} has feed-forward layers of the kind {activation!r}; known are {', '.join(ACTIVATIONS)}")
    inner = ("wi_0", "wi_1", "wo") if activation.startswith("gated") else ("wi", "wo")
    names = []
    for stack, attentions in ATTENTIONS.items():
        read_layers(config, "num_layers", tensors, f"{stack}.block.", place)
        names += [f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight", f"{stack}.final_layer_norm.weight"]
        for block in (f"{stack}.block.{layer}" for layer in range(shape.layers)):
            names += [f"{block}.layer.{number}.layer_norm.weight" for number in range(len(attentions) + 1)]
            names += [f"{block}.layer.{at}.{each}.{part}.weight" for at, each in enumerate(attentions) for part in "qkvo"]
            names += [f"{block}.layer.{len(attentions)}.DenseReluDense.{part}.weight" for part in inner]
    table = EMBEDDING if EMBEDDING in tensors else "encoder.embed_tokens.weight"
    for name in (table, *names):
        tensors.place(name)
    require_shape(tensors, table, (shape.vocabulary_size, shape.embedding_size), place)
    query = (shape.heads * shape.head_size, shape.embedding_size)
    require_shape(tensors, "encoder.block.0.layer.0.SelfAttention.q.weight", query, place)
    require_shape(tensors, names[0], (shape.distance_buckets, shape.heads), place)
    weights: dict[str, Compute] = {name: partial(tensors.__getitem__, name) for name in names}
    head = "lm_head.weight" if "lm_head.weight" in tensors else table
    scale = shape.embedding_size**-0.5 if _scales_states(config) else 1.0
    weights[EMBEDDING] = partial(tensors.__getitem__, table)
    weights["lm_head.weight"] = lambda: tensors[head] * scale
    return T5(shape, LazyWeights(weights))


def read_config(config: dict[str, Any], place: str) -> T5Config:
    """Return the shape of a model. Raises `CheckpointError`."""
    layers = int(read_value(config, "num_layers", place))
    decoder_layers = config.get("num_decoder_layers") or layers
    if decoder_layers != layers:
        raise CheckpointError(
            f"{place} has {layers} encoder layers and {decoder_layers} of the decoder; known are as many of each"
        )
    return T5Config(
        layers=layers,
        embedding_size=read_value(config, "d_model", place),
        heads=read_value(config, "num_heads", place),
        head_size=read_value(config, "d_kv", place),
        feed_forward_size=read_value(config, "d_ff", place),
        vocabulary_size=read_value(config, "vocab_size", place),
        distance_buckets=config.get("relative_attention_num_buckets", 32),
        largest_distance=config.get("relative_attention_max_distance", 128),
        norm_epsilon=config.get("layer_norm_epsilon", 1e-6),
    )


def _scales_states(config: dict[str, Any]) -> bool:
    """Return whether the decoder's states are scaled before the head: in the original T5, whose head is the embedding table."""
    tied = config.get("tie_word_embeddings") is not False
    return config["model_type"] == "t5" and bool(config.get("scale_decoder_outputs", tied))
