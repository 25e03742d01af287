"""The child process of `GrammarSandbox`: compiles constraints, and ends at the first that takes too much time or memory.

It reads `[kind, text]` as one line of JSON each, and answers each with one line of JSON: `[problem, cpu_s]`, null or what is
wrong, and the CPU time that it took. The process ends when its stdin closes, so it never outlives the server.
"""

import json
import os
import sys
import time

from llguidance import LLTokenizer

from models.text.grammar import GrammarError, GrammarKind, compile_grammar
from server.confined_child import announce_ready, confine, limit_cpu

# CPU time, so that a busy machine refuses nothing that an idle one takes. A common schema takes a millisecond.
MAX_CPU_S = 0.4
MAX_MEMORY_BYTES = 2**30
# Constraints get about a tenth of a core while decoding keeps all of them busy.
NICENESS = 10


def main() -> None:
    """Confine this process and serve requests until stdin ends."""
    confine(MAX_MEMORY_BYTES)
    os.nice(NICENESS)
    # Tokens of single bytes will do: a grammar that takes long does so before tokens matter.
    tokenizer = LLTokenizer("byte")
    announce_ready()
    for line in sys.stdin.buffer:
        kind, text = json.loads(line)
        started_s = time.process_time()
        limit_cpu(MAX_CPU_S)
        problem = find_problem(tokenizer, kind, text)
        limit_cpu(None)
        answer = problem, time.process_time() - started_s
        sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n")
        sys.stdout.buffer.flush()


def find_problem(tokenizer: LLTokenizer, kind: GrammarKind, text: str) -> str | None:
    """Return what is wrong with a constraint, or None where it compiles."""
    try:
        compile_grammar(tokenizer, kind, text)
    except GrammarError as error:
        return str(error)
    return None


if __name__ == "__main__":
    main()
