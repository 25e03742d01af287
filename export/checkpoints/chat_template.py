"""The prompt of an LLM from its chat template, which is rendered once, in a sandbox, with marks in place of what users say.

The marks are cut out and the rest becomes token ids. User text is tokenised apart from it and never meets the template, so that
no instruction and no transcript can write a role or an end of turn.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from export.checkpoints.checkpoint import Checkpoint
from export.checkpoints.safetensors_file import CheckpointError

INSTRUCTION, SPEECH = "\ue000instruction\ue001", "\ue000speech\ue001"
"""Marks of private characters, which no template has."""
LONGEST_TEMPLATE = 200_000
TEMPLATE_DATE = "01 Jan 2026"
"""The day that templates which tell the date are given, so that the same checkpoint gives the same bundle."""


@dataclass(frozen=True)
class ChatTemplate:
    """A template with the names of the special tokens that it may use; `place` is the checkpoint's name."""

    source: str
    tokens: Mapping[str, str]
    place: str

    def render(self, text: str) -> str:
        """Return the conversation with one turn of the user's, up to where the answer begins. Raises `CheckpointError`."""
        from jinja2.exceptions import TemplateError
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        def refuse(message: str) -> NoReturn:
            raise TemplateError(message)

        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        environment.filters["tojson"] = lambda value, **_options: json.dumps(value, ensure_ascii=False)
        environment.globals.update(raise_exception=refuse, strftime_now=lambda _format: TEMPLATE_DATE)
        try:
            return environment.from_string(self.source).render(
                messages=[{"role": "user", "content": text}],
                add_generation_prompt=True,
                enable_thinking=False,
                **self.tokens,
            )
        except Exception as error:  # a template can raise anything
            raise CheckpointError(f"{self.place} has a chat template that does not work here ({error})") from None

    def cut(self, text: str, *marks: str) -> list[str]:
        """Render a turn and return the parts around the marks. Raises `CheckpointError` unless each stands there once."""
        rendered, parts = self.render(text), []
        if any(rendered.count(mark) != 1 for mark in marks):
            raise CheckpointError(f"{self.place} has a chat template that does not keep the user's words as they are")
        for mark in marks:
            before, _, rendered = rendered.partition(mark)
            parts.append(before)
        return [*parts, rendered]


def read_chat_template(checkpoint: Checkpoint) -> ChatTemplate:
    """Return a checkpoint's chat template. Raises `CheckpointError`."""
    config = checkpoint.read_json_if_any("tokenizer_config.json")
    source = config.get("chat_template")
    if checkpoint.has("chat_template.jinja"):
        source = (checkpoint.folder / "chat_template.jinja").read_text(encoding="utf-8")
    if isinstance(source, list):
        source = next((each.get("template") for each in source if each.get("name") == "default"), None)
    if not isinstance(source, str):
        raise CheckpointError(f"{checkpoint.name} has no chat template: known are models that follow instructions")
    return new_chat_template(source, config, checkpoint.name)


def new_chat_template(source: str, config: Mapping[str, Any], place: str) -> ChatTemplate:
    """Return a template with the special tokens that a `tokenizer_config.json` names. Raises `CheckpointError`."""
    if len(source) > LONGEST_TEMPLATE:
        raise CheckpointError(f"{place} has a chat template of {len(source)} characters, more than {LONGEST_TEMPLATE}")
    names = {name: config.get(name) for name in ("bos_token", "eos_token", "unk_token", "pad_token")}
    texts = {name: each.get("content") if isinstance(each, dict) else each for name, each in names.items()}
    return ChatTemplate(source, {name: text for name, text in texts.items() if isinstance(text, str)}, place)
