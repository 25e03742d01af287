"""How far the LLM's weight formats for TensorRT are from fp32, on real weights: a table of `docs/tensorrt_plans.md`.

`python -m export.measure_weight_formats` runs each format's graph in float32 on ONNX Runtime, so that what differs is the weights
alone, and the plain model in bfloat16 throughout, which is what plans compute in, on torch. It needs the `export` extra.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from export.default_bundle import default_cache_dir
from export.importers.gguf import read_llama
from export.measure_precisions import SLOTS, Difference, Float32, Reference, compare, forced_answers, make_reference
from export.measure_tensorrt import fill_page
from export.parity import prompt_tokens
from export.tensorrt_plans import default_weights
from export.tensorrt_weights import WEIGHT_FORMATS
from models.llms.llama import Llama, build_decoder, embedding_table
from models.runtimes.onnx.llm import OnnxLLM


def open_format(model: Llama, name: str, folder: Path, threads: int) -> OnnxLLM:
    """The decoder with products in that format, computing in float32."""
    build_decoder(model, body=WEIGHT_FORMATS[name]).save(folder / f"{name}.onnx")
    np.save(folder / "embeddings.npy", embedding_table(model, np.float32))
    return OnnxLLM(folder / f"{name}.onnx", folder / "embeddings.npy", slots=SLOTS, threads=threads)


def bfloat16_answers(model: Llama, reference: Reference, threads: int) -> list[Float32]:
    """Logits of transformers' Llama in bfloat16 along the reference's answers, each in one pass."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.set_num_threads(threads)
    config = model.config
    # Any, because transformers' types have no way from a model to the same in another float type.
    theirs: Any = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.vocabulary_size,
            hidden_size=config.embedding_size,
            intermediate_size=config.feed_forward_size,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.key_value_heads,
            head_dim=config.head_size,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
            rms_norm_eps=config.norm_epsilon,
            tie_word_embeddings=config.tied,
        )
    )
    theirs = theirs.to(torch.bfloat16)
    missing = theirs.load_state_dict({name: torch.tensor(each) for name, each in model.weights.items()}, strict=False)
    if missing.unexpected_keys or set(missing.missing_keys) - {"lm_head.weight"}:
        raise ValueError(f"transformers' Llama has other weights: {missing}")
    all_logits = []
    for prompt, answer in zip(reference.prompts, reference.answers, strict=True):
        with torch.inference_mode():
            logits = theirs(torch.tensor([[*prompt, *answer[:-1]]])).logits[0, len(prompt) - 1 :]
        all_logits.append(logits.float().numpy())
    return all_logits


def row(name: str, difference: Difference, texts: int) -> str:
    errors = f"{difference.largest_error:.2f} | {difference.mean_error:.3f}"
    return f"| {name} | {errors} | {difference.agreement:.1%} | {difference.equal_texts} of {texts} |"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m export.measure_weight_formats", description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    lines = ["| LLM | largest logit error | mean | same token | same texts |", "| --- | --- | --- | --- | --- |"]
    with default_weights(default_cache_dir()) as weights, tempfile.TemporaryDirectory() as name:
        model, prompts = read_llama(weights.gguf), prompt_tokens(weights.gguf)
        # The format that is not rounded, in float32, is the reference.
        reference = make_reference(open_format(model, "bf16", Path(name), options.threads), prompts)
        logits = bfloat16_answers(model, reference, options.threads)
        lines.append(row("bf16 throughout", compare(logits, reference), len(prompts)))
        for each in ("int8", "fp8", "int4"):
            logits = forced_answers(open_format(model, each, Path(name), options.threads), reference)
            lines.append(row(f"{each} weights, the rest fp32", compare(logits, reference), len(prompts)))
    fill_page({"accuracy": lines})


if __name__ == "__main__":
    main()
