"""The fields of `/v1/chat/completions`, and what they ask of the engine. Answers are text; there are no tools."""

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator
from pydantic.json_schema import SkipJsonSchema

from server.api.openai.fields import SampledFields
from server.api.options import ClientMessage
from server.engine.types.options import Constraint, Priority, SamplingOptions
from server.errors import InvalidConstraint, InvalidRequest, UnsupportedOption

# Fields that are not offered, and the values of these that ask for nothing.
NEUTRAL: Mapping[str, tuple[object, ...]] = {
    "audio": (),
    "frequency_penalty": (0,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "logit_bias": ({},),
    "modalities": (["text"], []),
    "moderation": (),
    "n": (1,),
    "prediction": (),
    "reasoning_effort": ("none",),
    "store": (False,),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "verbosity": ("medium",),
    "web_search_options": (),
}
# Fields for OpenAI's own accounts and caches. They ask for nothing that the answer shows.
WITHOUT_EFFECT = (
    *("metadata", "parallel_tool_calls", "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention"),
    *("safety_identifier", "user"),
)
ANY_OBJECT = json.dumps({"type": "object"})

StopString = Annotated[str, Field(min_length=1, max_length=64)]


class StreamOptions(ClientMessage):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None
    continuous_usage_stats: bool | None = None


class ChatOptions(SampledFields):
    """The fields that are read; `refuse_unsupported` is for the others."""

    messages: list[Any] = Field(min_length=1, max_length=256, description="One of them with a part `input_audio`.")
    model: str | SkipJsonSchema[None] = Field(None, description="A name that `/v1/models` lists.")
    max_tokens: Annotated[int, Field(ge=1, le=2**31)] | SkipJsonSchema[None] = None
    max_completion_tokens: Annotated[int, Field(ge=1, le=2**31)] | SkipJsonSchema[None] = Field(
        None, description="The longest answer in tokens."
    )
    temperature: float = Field(0.0, ge=0, le=2, description="0 takes the likeliest token, and is the default.")
    stop: StopString | Annotated[list[StopString], Field(max_length=4)] = Field([], description="Ends the answer before it.")
    logprobs: bool = False
    top_logprobs: int = Field(0, ge=0, le=20)
    response_format: dict[str, Any] | SkipJsonSchema[None] = Field(
        None, description="`text`, `json_object`, or `json_schema` with a schema."
    )
    stream: bool = False
    stream_options: StreamOptions | SkipJsonSchema[None] = None
    service_tier: Literal["auto", "default", "flex"] = Field("auto", description="`flex` waits while there is other work.")

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.top_logprobs and not self.logprobs:
            raise InvalidRequest("top_logprobs needs logprobs.", param="top_logprobs")
        if self.stream_options is not None and not self.stream:
            raise InvalidRequest("stream_options needs stream.", param="stream_options")
        if self.stream_options is not None and self.stream_options.include_obfuscation:
            raise UnsupportedOption("Chunks are not obfuscated.", param="stream_options.include_obfuscation")
        return self

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with the usage."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @property
    def continuous_usage(self) -> bool:
        """Whether each chunk has the usage so far, as vLLM's do."""
        return self.stream_options is not None and bool(self.stream_options.continuous_usage_stats)

    @property
    def longest(self) -> int | None:
        """The longest answer that is asked for, in tokens."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def priority(self) -> Priority:
        return Priority.BATCH if self.service_tier == "flex" else Priority.INTERACTIVE

    def sampling(self, default_max_tokens: int, max_tokens_limit: int) -> SamplingOptions:
        """Return how the tokens are chosen. Raises `InvalidRequest` for a bad `response_format`."""
        likeliest = self.top_logprobs if self.logprobs else 0 if self.continuous_usage else None
        return self.sample(
            min(self.longest or default_max_tokens, max_tokens_limit),
            self.temperature,
            stop=(self.stop,) if isinstance(self.stop, str) else tuple(self.stop),
            logprobs=likeliest,
            constraint=self._constraint(),
        )

    def _constraint(self) -> Constraint | None:
        match self.response_format:
            case None | {"type": "text"}:
                return None
            case {"type": "json_object"}:
                return Constraint("json_schema", ANY_OBJECT)
            case {"type": "json_schema", "json_schema": {"schema": dict(schema)}}:
                return Constraint("json_schema", json.dumps(schema, ensure_ascii=False))
            case {"type": "json_schema"}:
                message = "response_format has its schema in json_schema.schema."
                raise InvalidConstraint(message, param="response_format.json_schema.schema")
        raise InvalidRequest("response_format.type has to be one of text, json_object, json_schema.", param="response_format")


def refuse_unsupported(values: Mapping[str, object]) -> dict[str, object]:
    """Return the fields without those that ask for nothing. Raises `UnsupportedOption` for one that asks for something."""
    for name, neutral in NEUTRAL.items():
        if values.get(name) is not None and values[name] not in neutral:
            raise UnsupportedOption(f"This server does not offer {name} with this value.", param=name)
    return {name: value for name, value in values.items() if name not in NEUTRAL}
