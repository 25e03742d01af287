"""The child of `GrammarSandbox`: compiles constraints, and dies of the first that takes too long or too much memory.

It reads `[kind, text]` a line, as JSON. It writes one line to say that it is ready, then one for each: null or the problem, as
JSON. It ends when its stdin closes, so it never outlives the server.
"""

import json
import resource
import signal
import sys

from llguidance import LLTokenizer

from models.text.grammar import GrammarError, GrammarKind, compile_grammar

# Of processor time, so that a busy machine refuses nothing that an idle one takes. A common schema takes a millisecond.
MAX_CPU_S = 0.25
MAX_MEMORY_BYTES = 2**30


def main() -> None:
    """Confine this process and serve until stdin ends."""
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Single bytes for tokens: what takes long does so before tokens come into it.
    tokenizer = LLTokenizer("byte")
    _write(None)
    for line in sys.stdin.buffer:
        kind, text = json.loads(line)
        # Nothing handles its signal, so it ends the process in the middle of whatever the library does.
        signal.setitimer(signal.ITIMER_PROF, MAX_CPU_S)
        verdict = _verdict(tokenizer, kind, text)
        signal.setitimer(signal.ITIMER_PROF, 0)
        _write(verdict)


def _verdict(tokenizer: LLTokenizer, kind: GrammarKind, text: str) -> str | None:
    try:
        compile_grammar(tokenizer, kind, text)
    except GrammarError as error:
        return str(error)
    return None


def _write(verdict: str | None) -> None:
    sys.stdout.buffer.write(json.dumps(verdict).encode() + b"\n")
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
