"""llama.cpp (xllamacpp) in a process of its own.

    python -m loadtest.peers.llama_peer --model FILE.gguf --threads 2

`{"prompt": TEXT, "tokens": N}` in; out: `prompt_tokens`, `prompt_tokens_per_s`, `tokens`, `tokens_per_s` as llama.cpp times
itself. The prompt is processed anew each time and the answer is always `tokens` long.
"""

from collections.abc import Callable
from typing import Any

import xllamacpp

from loadtest.peers.lines import answer_for_model


def load(model: str, threads: int) -> Callable[[dict[str, Any]], dict[str, Any]]:
    parameters = xllamacpp.CommonParams()
    parameters.model.path = model
    parameters.n_ctx = 1024
    parameters.n_parallel = 1
    parameters.cpuparams.n_threads = threads
    parameters.cpuparams_batch.n_threads = threads
    server = xllamacpp.Server(parameters)

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        reply = server.handle_completions(
            {
                "prompt": request["prompt"],
                "n_predict": request["tokens"],
                "temperature": 0,
                "ignore_eos": True,
                "cache_prompt": False,
            }
        )
        timings = reply["timings"]
        return {
            "prompt_tokens": timings["prompt_n"],
            "prompt_tokens_per_s": timings["prompt_per_second"],
            "tokens": timings["predicted_n"],
            "tokens_per_s": timings["predicted_per_second"],
        }

    return answer


if __name__ == "__main__":
    answer_for_model(__doc__, load)
