"""Does an exported model compute what its reference does? `python -m export.parity llm --gguf FILE` prints a table.

The exit status is 0 where every line of the table holds.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from export.importers.gguf import read_llama, read_tokeniser
from models.llms.llama import ExactAttention, StandardAttention, build_decoder, embedding_table
from models.protocols import DecodeRow, PrefillRow
from models.runtimes.onnx.decoder import OnnxLLM

PREFIX = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n<|im_start|>user\n"
SUFFIX = "<|im_end|>\n<|im_start|>assistant\n"

PROMPTS = (
    "Hi.",
    "What is the capital of France?",
    "Repeat the following text exactly: the quick brown fox jumps over the lazy dog",
    "Fix the punctuation: hello how are you today i am fine thank you",
    "Translate to French: Good morning, my friend.",
    "Translate to English: Mañana será otro día.",
    "Write a haiku about the sea.",
    "List three fruits.",
    "What is 17 + 25?",
    "Count from 1 to 20.",
    "Summarise in one sentence: The committee met on Tuesday, argued six hours about the budget, and went home without a vote.",
    "Is the following sentence positive or negative? I would not watch this film again if you paid me.",
    "Extract the names: Anna called Peter, but Peter was out with Maria.",
    "Give me a recipe for pancakes.",
    "Explain photosynthesis to a child.",
    "Write a Python function that reverses a string.",
    "def fibonacci(n):\n    if n < 2:\n",
    "Who wrote Romeo and Juliet?",
    "Why is the sky blue?",
    "Complete the sentence: Once upon a time, in a small village by the river,",
    "What's the difference between a virus and a bacterium?",
    'Return JSON with the keys "city" and "country" for: I live in Oslo, Norway.',
    "MAKE THIS LOWER CASE: THE MEETING IS AT NOON.",
    "Name the days of the week.",
    "Tell me a joke about a cat and a 🐈 emoji.",
    "日本の首都はどこですか?",
    "What is the meaning of the word 'naïve'?",
    "   Too    many     spaces    here,   please   remove   them.   ",
    "In 1969, Apollo 11 landed on the Moon. Who was its commander, and in which year was he born?",
    "Write an email to my landlord, Mr. Brown, to say that the heating in flat 12B has been broken since 3 January, that it is "
    "8 °C inside, that I have called twice without an answer, and that I expect a repair within two days.",
)


Float32 = npt.NDArray[np.float32]

LOGIT_TOLERANCE = 1e-3
"""Of logits that span some 50: fp32 rounding through 30 layers, summed in another order."""


@dataclass(frozen=True)
class Check:
    """One line of the table."""

    name: str
    figure: str
    holds: bool


@dataclass(frozen=True)
class Answer:
    """Greedy tokens, and the logits [tokens, vocabulary] that each was the best of."""

    tokens: list[int]
    logits: Float32


def forced_logits(llm: OnnxLLM, prompt: Sequence[int], tokens: Sequence[int]) -> Float32:
    """Return the logits [tokens, vocabulary] after the prompt and each of `tokens` but the last, one decode step at a time."""
    logits = llm.prefill([PrefillRow(0, 0, llm.embed(prompt))])
    for index, token in enumerate(tokens[:-1]):
        logits += llm.decode([DecodeRow(0, len(prompt) + index, [token])])
    return np.concatenate(logits)


def prompt_tokens(gguf_path: Path) -> list[list[int]]:
    """Return the prompts of `export.parity` in their chat turn, as token ids."""
    tokeniser = read_tokeniser(gguf_path)
    return [tokeniser.encode(PREFIX + prompt + SUFFIX).ids for prompt in PROMPTS]


def transformers_answers(gguf_path: Path, prompts: Sequence[Sequence[int]], max_tokens: int, threads: int) -> list[Answer]:
    """Greedy answers of transformers in float32, reading the same file."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(threads)
    # Any, because the class that comes back is chosen at run time.
    model: Any = AutoModelForCausalLM.from_pretrained(gguf_path.parent, gguf_file=gguf_path.name, dtype=torch.float32)
    answers = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        output = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=max_tokens,
            do_sample=False,
            return_dict_in_generate=True,
            output_logits=True,
        )
        answers.append(Answer(output.sequences[0, len(prompt) :].tolist(), torch.cat(output.logits).numpy()))
    return answers


def llm_checks(gguf_path: Path, max_tokens: int, threads: int) -> Iterator[Check]:
    """Compare both graphs of the decoder in fp32 with transformers: logits, and greedy text token for token."""
    prompts = prompt_tokens(gguf_path)
    expected = transformers_answers(gguf_path, prompts, max_tokens, threads)
    model = read_llama(gguf_path)
    for attention in (StandardAttention, ExactAttention):
        with tempfile.TemporaryDirectory() as folder:
            graph, embeddings = Path(folder, "llm.onnx"), Path(folder, "embeddings.npy")
            build_decoder(model, attention=attention).save(graph)
            np.save(embeddings, embedding_table(model, np.float32))
            llm = OnnxLLM(graph, embeddings, slots=1, threads=threads)
            # Fed the expected tokens, equal choices at every step are equal greedy texts.
            logits = [forced_logits(llm, prompt, answer.tokens) for prompt, answer in zip(prompts, expected, strict=True)]
        error = max(float(np.abs(ours - answer.logits).max()) for ours, answer in zip(logits, expected, strict=True))
        equal = sum(ours.argmax(-1).tolist() == answer.tokens for ours, answer in zip(logits, expected, strict=True))
        tokens = sum(len(answer.tokens) for answer in expected)
        name = f"llm fp32, {attention.__name__}"
        yield Check(f"{name}: largest logit error", f"{error:.1e} over {tokens} tokens", error < LOGIT_TOLERANCE)
        yield Check(f"{name}: equal greedy texts", f"{equal} of {len(prompts)}", equal == len(prompts))


def report(checks: Iterator[Check]) -> bool:
    """Print each check as it is done; whether all hold."""
    hold = True
    for check in checks:
        print(f"{'ok  ' if check.holds else 'FAIL'}  {check.name:60}  {check.figure}", flush=True)
        hold = hold and check.holds
    return hold


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m export.parity", description=__doc__)
    parts = parser.add_subparsers(dest="part", required=True)
    llm = parts.add_parser("llm", help="the LLM against transformers, on real weights")
    llm.add_argument("--gguf", type=Path, required=True, metavar="FILE")
    llm.add_argument("--max-tokens", type=int, default=32, help="tokens to generate per prompt (default 32)")
    llm.add_argument("--threads", type=int, default=2)
    options = parser.parse_args(arguments)
    return 0 if report(llm_checks(options.gguf, options.max_tokens, options.threads)) else 1


if __name__ == "__main__":
    sys.exit(main())
