"""Time to the first token and tokens per second of the LLM: ours from the replies, llama.cpp's from its own, taking turns."""

import json
import time
from collections.abc import Sequence
from typing import Any

import httpx
from tqdm import tqdm

from loadtest.clients.server import BenchServer, make_body
from loadtest.support.process import LinePeer
from loadtest.support.recordings import BenchClip
from loadtest.support.statistics import percentile, ratio

FEW_TOKENS, MANY_TOKENS = 20, 100
INSTRUCTION = "Write a long story about what the speech says, with many details."
# Of the form of Qwen's chat template, so that both have prompts alike.
PROMPT = (
    "<|im_start|>system\nYou hear a speaker. Follow the instruction.<|im_end|>\n"
    '<|im_start|>user\nSpeech: "{speech}"\n\n{instruction}<|im_end|>\n<|im_start|>assistant\n'
)


def plain_rate(few: dict[str, Any], many: dict[str, Any]) -> float | None:
    """Return the LLM's tokens per second without drafts from two replies to one request, of few and of many tokens.

    The transcript that the LLM reads takes as long in both, and so cancels. None if the longer answer ended early.
    """
    tokens = int(many["usage"]["output_tokens"]) - int(few["usage"]["output_tokens"])
    if tokens < (MANY_TOKENS - FEW_TOKENS) // 2:
        return None
    return 1000 * tokens / (float(many["times_ms"]["decode_ms"]) - float(few["times_ms"]["decode_ms"]))


def time_first_token(server: BenchServer, audio: bytes) -> float:
    """Return the seconds from sending a request to the first piece of its streamed answer."""
    body = make_body(audio, INSTRUCTION, max_tokens=FEW_TOKENS, stream="true")
    started_s = time.perf_counter()
    headers = {"content-type": body.content_type}
    first_s = None
    with httpx.stream("POST", f"{server.url}/v1/instruct", content=body.content, headers=headers, timeout=60) as response:
        for line in response.iter_lines():
            if first_s is None and line.startswith("data:") and json.loads(line.removeprefix("data:"))["type"].endswith("delta"):
                first_s = time.perf_counter() - started_s
    if first_s is None:
        raise ValueError("the answer had no text")
    return first_s


def measure_decode(
    server: BenchServer, llama: LinePeer, clips: Sequence[BenchClip], texts: Sequence[str], runs: int
) -> dict[str, Any]:
    """Return medians over `runs`, after one that is not counted. `texts` are what the clips say, for llama.cpp to read."""
    rates: list[float] = []
    first_s: list[float] = []
    theirs: list[dict[str, Any]] = []
    for turn in tqdm(range(-1, runs), desc="decode"):
        clip, text = clips[turn % len(clips)], texts[turn % len(clips)]
        bodies = [make_body(clip.audio, INSTRUCTION, draft="off", max_tokens=tokens) for tokens in (FEW_TOKENS, MANY_TOKENS)]
        few, many = map(server.answer, bodies)
        other = llama.ask({"prompt": PROMPT.format(instruction=INSTRUCTION, speech=text), "tokens": MANY_TOKENS})
        waited_s = time_first_token(server, clip.audio)
        if turn >= 0:
            rate = plain_rate(few, many)
            rates += [] if rate is None else [rate]
            theirs.append(other)
            first_s.append(waited_s)
    our_rate = percentile(rates, 50) if rates else None
    their_rate = percentile([each["tokens_per_s"] for each in theirs], 50)
    return {
        "thinbridge_tokens_per_s": our_rate and round(our_rate, 2),
        "thinbridge_first_token_ms": round(1000 * percentile(first_s, 50), 1),
        "answers": len(rates),
        "llamacpp_tokens_per_s": round(their_rate, 2),
        "llamacpp_prompt_tokens": [each["prompt_tokens"] for each in theirs],
        "llamacpp_prompt_tokens_per_s": round(percentile([each["prompt_tokens_per_s"] for each in theirs], 50), 1),
        "ratio": ratio(our_rate, their_rate),
        "runs": runs,
    }


def transcript_rates(replies: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return of transcripts the tokens per second of prefill and decode together, and what drafts did."""
    rates, drafted, accepted, passes, tokens = [], 0, 0, 0, 0
    for reply in replies:
        times, speculation = reply["times_ms"], reply["speculation"]
        rates.append(1000 * reply["usage"]["output_tokens"] / max(times["prefill_ms"] + times["decode_ms"], 1e-6))
        drafted += speculation["drafted"]
        accepted += speculation["accepted"]
        passes += speculation["llm_passes"]
        tokens += reply["usage"]["output_tokens"]
    return {
        "output_tokens_per_s": round(percentile(rates, 50), 1),
        "accepted_share": ratio(accepted, drafted),
        "passes": round(passes / len(replies), 1),
    }
