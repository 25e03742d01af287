"""An LLM with all that a bundle needs of it: weights, tokeniser, chat template and the tokens that end an answer."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.bundle_parts import write_llm
from export.checkpoints.chat_template import INSTRUCTION, SPEECH, ChatTemplate, new_chat_template, read_chat_template
from export.checkpoints.checkpoint import Checkpoint
from export.checkpoints.hub import Source
from export.checkpoints.llama import largest_position, read_llama
from export.checkpoints.safetensors_file import CheckpointError
from export.importers import gguf
from models.bundle.sections import LlmSection, PromptSection
from models.graph.linear import Float32
from models.graph.packed_attention import SPAN_STEP
from models.llms.llama import EMBEDDING, Llama
from models.text.tokeniser import Tokeniser

MAX_POSITIONS = 1024
"""Positions of a K/V slot: speech, instruction and answer together."""
WRITTEN = (-1,)
"""Stands for tokens of text, or frames of speech, before a part of a template."""
QUOTE = '\n\nThis is what the speaker said: "'
"""Stands between an instruction and a transcript, which a closing quotation mark follows."""


@dataclass(frozen=True)
class LanguageModel:
    """An LLM. `ends` are the names or the ids of the tokens that end an answer."""

    name: str
    llama: Llama
    tokeniser_json: str
    template: ChatTemplate
    ends: tuple[int, ...]
    positions: int

    def write(self, precision: str, folder: Path) -> LlmSection:
        """Write the LLM's files into a bundle's folder."""
        (folder / "tokenizer.json").write_text(self.tokeniser_json, encoding="utf-8")
        positions = min(MAX_POSITIONS, self.positions) // SPAN_STEP * SPAN_STEP
        if not positions:
            raise CheckpointError(f"{self.name} was made for {self.positions} positions, and {SPAN_STEP} are needed at least")
        return write_llm(self.llama, precision, folder, positions)

    @property
    def embeddings(self) -> Float32:
        """The embeddings [vocabulary, embedding_size] of the tokens."""
        return self.llama.weights[EMBEDDING]

    def speech_prompt(self) -> PromptSection:
        """Return the prompt in which the LLM hears the speech."""
        return lay_out(self.template, self.ends, Tokeniser.from_json(self.tokeniser_json), f"{INSTRUCTION}\n{SPEECH}")

    def transcript_prompt(self) -> PromptSection:
        """Return the prompt in which the LLM is asked about a transcript."""
        return lay_out(self.template, self.ends, Tokeniser.from_json(self.tokeniser_json), f'{INSTRUCTION}{QUOTE}{SPEECH}"')


def lay_out(template: ChatTemplate, ends: tuple[int, ...], tokeniser: Tokeniser, turn: str) -> PromptSection:
    """Return the prompt of a user's turn, in which the marks of instruction and speech stand in this or the other order."""
    marks = (INSTRUCTION, SPEECH) if turn.index(INSTRUCTION) < turn.index(SPEECH) else (SPEECH, INSTRUCTION)
    first, *rest = template.cut(turn, *marks)
    prefix = tuple(tokeniser.encode_template(first))
    between, suffix = (tuple(tokeniser.encode_template(part, before=WRITTEN)) for part in rest)
    if marks[0] == INSTRUCTION:
        return PromptSection(prefix=prefix, after_instruction=between, suffix=suffix, end_tokens=ends)
    return PromptSection(prefix=prefix, after_speech=between, after_instruction=(), suffix=suffix, end_tokens=ends)


def read_language_model(source: Source) -> LanguageModel:
    """Read an LLM. Raises `CheckpointError`."""
    if source.gguf is not None:
        return _read_gguf(source.gguf)
    checkpoint = source.checkpoint
    tokeniser = checkpoint.open_tokeniser()
    return LanguageModel(
        checkpoint.name,
        read_llama(checkpoint),
        checkpoint.tokeniser_json,
        read_chat_template(checkpoint),
        end_tokens(checkpoint, checkpoint.config, tokeniser),
        largest_position(checkpoint.config),
    )


def end_tokens(checkpoint: Checkpoint, config: dict[str, Any], tokeniser: Tokeniser) -> tuple[int, ...]:
    """Return the tokens that end an answer, of the generation's configuration, the model's and the tokeniser's."""
    generation = checkpoint.read_json("generation_config.json") if checkpoint.has("generation_config.json") else {}
    named = checkpoint.read_json("tokenizer_config.json") if checkpoint.has("tokenizer_config.json") else {}
    ids: list[int] = []
    for value in (generation.get("eos_token_id"), config.get("eos_token_id")):
        ids += value if isinstance(value, list) else [value] if isinstance(value, int) else []
    end = named.get("eos_token")
    text = end.get("content") if isinstance(end, dict) else end
    if text in tokeniser.special_tokens:
        ids.append(tokeniser.special_tokens[text])
    if not ids:
        raise CheckpointError(f"{checkpoint.name} names no token that ends an answer (eos_token_id)")
    return tuple(dict.fromkeys(ids))


def _read_gguf(path: Path) -> LanguageModel:
    try:
        llama, tokeniser = gguf.read_llama(path), gguf.read_tokeniser(path)
        template, end, positions = gguf.read_chat(path)
    except gguf.GgufError as error:
        raise CheckpointError(str(error)) from None
    ours = Tokeniser.from_json(tokeniser.to_str())
    ends = [ours.special_tokens[name] for name in ("<|im_end|>", "<|endoftext|>") if name in ours.special_tokens]
    names = {id: name for name, id in ours.special_tokens.items()}
    config = {"eos_token": names.get(end)}
    chat = new_chat_template(template, config, path.name)
    return LanguageModel(path.name, llama, tokeniser.to_str(), chat, tuple(dict.fromkeys([end, *ends])), positions)
