"""Tokens per second of the LLM alone: ours from the server's stage times, llama.cpp's from its own, taking turns."""

from collections.abc import Sequence
from typing import Any

from tqdm import tqdm

from loadtest.bench.floor import decode_passes
from loadtest.clients.server import BenchServer, make_body
from loadtest.support.process import LinePeer
from loadtest.support.recordings import BenchClip
from loadtest.support.statistics import percentile, ratio

TOKENS = 100
INSTRUCTION = "Write a long story about what the speech says, with many details."
# The prompt that the default bundle was made with, so that both have contexts alike.
PROMPT = (
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    "<|im_start|>user\n{instruction}\n{speech}<|im_end|>\n<|im_start|>assistant\n"
)


def plain_rate(reply: dict[str, Any]) -> float:
    """Tokens per second of a reply that took one LLM pass per token; those after the prefill count."""
    return 1000 * decode_passes(reply) / float(reply["times_ms"]["decode_ms"])


def measure_decode(
    server: BenchServer, llama: LinePeer, clips: Sequence[BenchClip], texts: Sequence[str], runs: int, drafts: bool
) -> dict[str, Any]:
    """Medians over `runs`, after one that is not counted. `texts` are what the clips say, for llama.cpp to read."""
    ours: list[dict[str, Any]] = []
    theirs: list[dict[str, Any]] = []
    for turn in tqdm(range(-1, runs), desc="decode"):
        clip, text = clips[turn % len(clips)], texts[turn % len(clips)]
        reply = server.answer(make_body(clip.audio, INSTRUCTION, draft="off" if drafts else None, max_tokens=TOKENS))
        other = llama.ask({"prompt": PROMPT.format(instruction=INSTRUCTION, speech=text), "tokens": TOKENS})
        if turn >= 0:
            ours.append(reply)
            theirs.append(other)
    # The end of a short answer weighs its first tokens more; such an answer is no measurement of 100.
    long = [reply for reply in ours if reply["usage"]["output_tokens"] >= TOKENS // 2]
    our_rate = percentile([plain_rate(reply) for reply in long], 50) if long else None
    their_rate = percentile([each["tokens_per_s"] for each in theirs], 50)
    return {
        "thinbridge_tokens_per_s": our_rate and round(our_rate, 2),
        "thinbridge_output_tokens": [reply["usage"]["output_tokens"] for reply in ours],
        "thinbridge_prompt_positions": [reply["usage"]["audio_frames"] + reply["usage"]["text_tokens"] for reply in ours],
        "llamacpp_tokens_per_s": round(their_rate, 2),
        "llamacpp_prompt_tokens": [each["prompt_tokens"] for each in theirs],
        "llamacpp_prompt_tokens_per_s": round(percentile([each["prompt_tokens_per_s"] for each in theirs], 50), 1),
        "ratio": ratio(our_rate, their_rate),
        "runs": runs,
    }


def answer_rates(replies: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Of transcripts: output tokens per second of prefill and decode together, and what drafts did."""
    rates, drafted, accepted, passes, tokens = [], 0, 0, 0, 0
    for reply in replies:
        times, speculation = reply["times_ms"], reply.get("speculation") or {}
        rates.append(1000 * reply["usage"]["output_tokens"] / max(times["prefill_ms"] + times["decode_ms"], 1e-6))
        drafted += speculation.get("drafted", 0)
        accepted += speculation.get("accepted", 0)
        passes += speculation.get("llm_passes") or decode_passes(reply) + 1
        tokens += reply["usage"]["output_tokens"]
    return {
        "output_tokens_per_s": round(percentile(rates, 50), 1),
        "accepted_share": ratio(accepted, drafted),
        "tokens_per_llm_pass": ratio(tokens, passes),
    }
