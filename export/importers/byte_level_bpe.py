"""Byte-level BPE vocabularies (GPT-2's) as `tokenizer.json` files."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

QWEN2_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def qwen2_splitting() -> tuple[Any, Any]:
    """Return the normaliser and the pre-tokeniser of Qwen2 and Qwen3."""
    words = pre_tokenizers.Split(Regex(QWEN2_WORDS), behavior="isolated")
    spelling = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return normalizers.NFC(), pre_tokenizers.Sequence([words, spelling])


def write_qwen2_tokeniser(vocabulary: dict[str, int], merges: str, added: Mapping[str, Any]) -> str:
    """Return the `tokenizer.json` of Qwen's `vocab.json` and `merges.txt`.

    `added` are the further tokens by their ids, as `added_tokens_decoder` of a `tokenizer_config.json` has them.
    """
    lines = [line for line in merges.splitlines() if line and not line.startswith("#version")]
    pairs = [(first, second) for first, _, second in (line.partition(" ") for line in lines)]
    tokeniser: Any = Tokenizer(models.BPE(vocab=vocabulary, merges=pairs))
    tokeniser.normalizer, tokeniser.pre_tokenizer = qwen2_splitting()
    tokeniser.decoder = decoders.ByteLevel()
    definition = json.loads(tokeniser.to_str())
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    definition["added_tokens"] = [{**plain, "id": int(id), "content": each["content"]} for id, each in added.items()]
    return json.dumps(definition, ensure_ascii=False)


def restore_merges(definition: dict[str, Any]) -> list[str]:
    """Add the merges that a `tokenizer.json` lacks, in place; return the tokens that they make.

    Of such a vocabulary every token but the bytes and the special ones is made by one merge, and ids are in the order of
    merges. A file written from a `merges.txt` whose first line was taken for a header lacks the first: text is then never
    encoded with that token nor with any longer one that is built on it. Raises `ValueError` for a token whose merge cannot be
    told, because no two earlier tokens make it up or several pairs do.
    """
    model = definition["model"]
    vocabulary: dict[str, int] = model["vocab"]
    merges: list[Any] = model["merges"]
    pairs = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in merges]
    special = {token["content"] for token in definition["added_tokens"]}
    known = {first + second for first, second in pairs} | special
    order = [vocabulary[first + second] for first, second in pairs]
    missing = sorted((id, token) for token, id in vocabulary.items() if len(token) > 1 and token not in known)
    for id, token in missing:
        cuts = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
        earlier = [cut for cut in cuts if all(vocabulary.get(part, id) < id for part in cut)]
        if len(earlier) != 1:
            raise ValueError(f"the vocabulary has no merge for its token {token!r}")
        place = next((place for place, other in enumerate(order) if other > id), len(order))
        order.insert(place, id)
        merges.insert(place, " ".join(earlier[0]) if merges and isinstance(merges[0], str) else list(earlier[0]))
    return [token for _, token in missing]


def list_merges(ordered: Sequence[str], vocabulary: Mapping[str, int]) -> list[tuple[str, str]]:
    """Return the pairs of tokens that make up each token, in the order of the tokens; pairs of earlier parts come first."""
    merges = []
    for token in ordered:
        cuts = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
        pairs = [pair for pair in cuts if pair[0] in vocabulary and pair[1] in vocabulary]
        merges += sorted(pairs, key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))
    return merges
