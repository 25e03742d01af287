"""The words of one text in the case and punctuation of another."""

import difflib
import re


def words_of(text: str) -> list[str]:
    return re.sub(r"[^a-z0-9' ]", " ", text.lower().replace("-", " ")).split()


def restore_case(exact: str, whisper: str) -> str:
    """Return the words of `exact` with case and punctuation of `whisper` wherever the two agree on the word."""
    tokens = whisper.replace("-", " ").split()
    keys = [" ".join(words_of(token)) for token in tokens]
    wanted = exact.lower().split()
    result = [re.sub(r"^i(?='|$)", "I", word) for word in wanted]
    for block in difflib.SequenceMatcher(a=wanted, b=keys, autojunk=False).get_matching_blocks():
        for offset in range(block.size):
            result[block.a + offset] = tokens[block.b + offset]
    return " ".join(result)
