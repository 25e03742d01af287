"""An LLM with all that a bundle needs of it: weights, tokeniser, chat template and the tokens that end an answer."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from export.bundle_parts import write_llm
from export.checkpoints.chat_template import INSTRUCTION, SPEECH, ChatTemplate, new_chat_template, read_chat_template
from export.checkpoints.checkpoint import Checkpoint
from export.checkpoints.hub import Source
from export.checkpoints.llama import largest_position, read_text_model
from export.checkpoints.safetensors_file import CheckpointError, Tensors
from export.importers import gguf
from models.bundle.sections import LlmSection, PromptSection
from models.graph.linear import Float32
from models.graph.packed_attention import SPAN_STEP
from models.llms.llama import EMBEDDING, Llama
from models.text.tokeniser import Tokeniser

MAX_POSITIONS = 1024
"""Positions of a K/V slot: speech, instruction and answer together."""
UNTIED = {"tie_word_embeddings": False}
"""For LLMs in a speech LLM, whose head stands there by itself, whatever their own configuration says; a missing one is tied."""
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

    @cached_property
    def tokeniser(self) -> Tokeniser:
        """The tokeniser, opened."""
        return Tokeniser.from_json(self.tokeniser_json)

    @property
    def embeddings(self) -> Float32:
        """The embeddings [vocabulary, embedding_size] of the tokens."""
        return self.llama.weights[EMBEDDING]

    def speech_prompt(self) -> PromptSection:
        """Return the prompt in which the LLM hears the speech."""
        return self.lay_out(f"{INSTRUCTION}\n{SPEECH}")

    def transcript_prompt(self) -> PromptSection:
        """Return the prompt in which the LLM is asked about a transcript."""
        return self.lay_out(f'{INSTRUCTION}{QUOTE}{SPEECH}"')

    def lay_out(self, turn: str) -> PromptSection:
        """Return the prompt of a user's turn, in which the marks of instruction and speech stand in this or the other order."""
        marks = (INSTRUCTION, SPEECH) if turn.index(INSTRUCTION) < turn.index(SPEECH) else (SPEECH, INSTRUCTION)
        first, *rest = self.template.cut(turn, *marks)
        prefix = tuple(self.tokeniser.encode_template(first))
        between, suffix = (tuple(self.tokeniser.encode_template(part, before=WRITTEN)) for part in rest)
        if marks[0] == INSTRUCTION:
            return PromptSection(prefix=prefix, after_instruction=between, suffix=suffix, end_tokens=self.ends)
        return PromptSection(prefix=prefix, after_speech=between, after_instruction=(), suffix=suffix, end_tokens=self.ends)


def read_language_model(source: Source) -> LanguageModel:
    """Read an LLM. Raises `CheckpointError`."""
    if source.gguf is not None:
        return _read_gguf(source.gguf)
    checkpoint = source.checkpoint
    template = read_chat_template(checkpoint)
    return language_model_of(checkpoint, checkpoint.tensors, checkpoint.config, template, checkpoint.name)


def language_model_of(
    checkpoint: Checkpoint, tensors: Tensors, config: dict[str, Any], template: ChatTemplate, place: str
) -> LanguageModel:
    """Return the LLM in `tensors`, with the tokeniser of `checkpoint`. Raises `CheckpointError`."""
    tokeniser = checkpoint.open_tokeniser()
    return LanguageModel(
        place,
        read_text_model(tensors, config, place),
        checkpoint.tokeniser_json,
        template,
        end_tokens(checkpoint, config, tokeniser),
        largest_position(config),
    )


def text_tensors(tensors: Tensors) -> Tensors:
    """Return the tensors of the LLM in a speech LLM by the names that it has alone."""
    older = {"language_model.model.": "model.", "language_model.lm_head.": "lm_head."}
    return tensors.renamed({**older, "model.language_model.": "model.", "lm_head.": "lm_head."})


def end_tokens(checkpoint: Checkpoint, config: dict[str, Any], tokeniser: Tokeniser) -> tuple[int, ...]:
    """Return the tokens that end an answer, of the generation's configuration, the model's and the tokeniser's."""
    generation = checkpoint.read_json_if_any("generation_config.json")
    named = checkpoint.read_json_if_any("tokenizer_config.json")
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
