"""Mistral's `tekken.json` as a `tokenizer.json`: byte-level BPE, whose special tokens have the first ids.

The format is that of `mistral_common`: tokens in the order of merges, as base64, of which a file may have more than its model.
"""

import base64
import json
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from export.importers.byte_level_bpe import list_merges
from models.text.spelling import byte_alphabet

FILLER = "<SPECIAL_{}>"
OLDER_SPECIALS = (
    "<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]",
    "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]", "[IMG_END]", "[PREFIX]", "[MIDDLE]", "[SUFFIX]", "[SYSTEM_PROMPT]",
    "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]",
)  # fmt: skip
"""The special tokens of files that list none."""


def write_tekken(content: dict[str, Any]) -> str:
    """Return the `tokenizer.json` of the content of a `tekken.json`. Raises `ValueError`, `KeyError` or `TypeError`."""
    config = content["config"]
    reserved = int(config["default_num_special_tokens"])
    size = int(config["default_vocab_size"]) - reserved
    listed = content.get("special_tokens")
    named = dict(enumerate(OLDER_SPECIALS)) if listed is None else {each["rank"]: each["token_str"] for each in listed}
    specials = {id: named.get(id, FILLER.format(id)) for id in range(reserved)}
    entries = sorted(content["vocab"], key=lambda entry: int(entry["rank"]))[:size]
    if [int(entry["rank"]) for entry in entries] != list(range(size)) or len(set(specials.values())) != reserved:
        raise ValueError("its tokens are not numbered one after the other, or two special tokens have one name")

    character = {byte: text for text, byte in byte_alphabet().items()}
    texts = ["".join(character[byte] for byte in base64.b64decode(entry["token_bytes"], validate=True)) for entry in entries]
    vocabulary = {text: id + reserved for id, text in enumerate(texts)}
    # A word that is a token stays whole, whatever its merges.
    model = models.BPE(vocab=vocabulary, merges=list_merges(texts, vocabulary), ignore_merges=True)
    tokeniser: Any = Tokenizer(model)
    words = pre_tokenizers.Split(Regex(config["pattern"]), behavior="isolated")
    tokeniser.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokeniser.decoder = decoders.ByteLevel()
    definition = json.loads(tokeniser.to_str())
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    definition["added_tokens"] = [{**plain, "id": id, "content": name} for id, name in specials.items()]
    return json.dumps(definition, ensure_ascii=False)
