"""The fields of `/v1/audio/transcriptions` and `/v1/audio/translations`, and what they ask of the engine.

The fields are OpenAI's (2026), and those that vLLM adds and its clients send.
"""

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator
from pydantic.json_schema import SkipJsonSchema
from pydantic_core import from_json

from server.api.languages import ANY, NAMES, language_code, language_name
from server.api.openai.fields import SampledFields
from server.api.options import SpokenLanguages, VoiceFields
from server.engine.types.options import SamplingOptions, VoiceOptions, WordTimes
from server.errors import InvalidRequest, UnsupportedOption

MAX_PROMPT_CHARACTERS = 4000
LIKELIEST = 0

Format = Literal["json", "text", "srt", "verbose_json", "vtt"]
TIMED_FORMATS: tuple[Format, ...] = ("srt", "verbose_json", "vtt")
NO_SPEAKERS = "The model does not tell speakers apart."
ShortText = Annotated[str, Field(min_length=1, max_length=64)]


class ServerVad(VoiceFields):
    """How all audio is cut at its pauses."""

    type: Literal["server_vad"]


def _refuse_speakers(value: object) -> object:
    """Return a format as it is. Raises `UnsupportedOption` for OpenAI's that needs speakers."""
    if value == "diarized_json":
        raise UnsupportedOption(NO_SPEAKERS, param="response_format")
    return value


def _read_strategy(value: object) -> object:
    """Return the object that a form's text holds; anything else as it is."""
    if not isinstance(value, str) or not value.lstrip().startswith("{"):
        return value
    try:
        content: object = from_json(value, allow_inf_nan=False)
    except ValueError:
        return value
    return content


Strategy = Annotated[Literal["auto"] | ServerVad, BeforeValidator(_read_strategy)]


class SpeechOptions(SampledFields):
    """The fields that transcriptions and translations share."""

    model: str | SkipJsonSchema[None] = Field(
        None, description="A name that `/v1/models` lists; without one the server's model answers."
    )
    language: ShortText | SkipJsonSchema[None] = Field(
        None, description="The language that is spoken: a code or an English name."
    )
    languages: list[str] = Field([], max_length=8, description="Languages that may be spoken, among which the model finds out.")
    prompt: str = Field(
        "",
        max_length=65_536,
        description="Text that comes before what is spoken, to show spelling and style; of a long one the end counts.",
    )
    keywords: list[ShortText] = Field([], max_length=64, description="Names and terms that may be spoken.")
    hotwords: str = Field("", max_length=4000, description="The same, separated by commas, as vLLM has it.")
    response_format: Annotated[Format, BeforeValidator(_refuse_speakers)] = Field("json", description="How the reply is written.")
    temperature: float = Field(0.0, ge=0, le=1, description="0 takes the likeliest token; above it, tokens are drawn.")
    stream: bool = Field(False, description="Sends the text as it arises, in server-sent events.")
    stream_include_usage: bool | SkipJsonSchema[None] = Field(
        None, description="Streams in vLLM's chunks, the last one with the usage."
    )
    stream_continuous_usage_stats: bool | SkipJsonSchema[None] = Field(
        None, description="Streams in vLLM's chunks, each with the usage."
    )
    max_completion_tokens: Annotated[int, Field(ge=1, le=2**31)] | SkipJsonSchema[None] = Field(
        None, description="The longest text in tokens."
    )
    frequency_penalty: float = Field(0.0, ge=-2, le=2, description="0 only.")

    @model_validator(mode="after")
    def _check_offered(self) -> Self:
        if self.frequency_penalty:
            raise UnsupportedOption("A frequency penalty is not offered; there is presence_penalty.", param="frequency_penalty")
        if self.stream and self.response_format in ("srt", "vtt"):
            raise UnsupportedOption("Subtitles are not streamed; json and verbose_json are.", param="response_format")
        return self

    @property
    def streams_chunks(self) -> bool:
        """Whether a stream is in vLLM's chunks."""
        return self.stream_include_usage is not None or self.stream_continuous_usage_stats is not None

    @property
    def word_times(self) -> WordTimes:
        """Whether the reply needs the times of words: segments may be made without."""
        return "if_known" if self.response_format in TIMED_FORMATS else "none"

    @property
    def needs_logprobs(self) -> bool:
        """Whether the reply needs the tokens: their likelihood, or their number so far."""
        return self.response_format == "verbose_json" or bool(self.stream and self.stream_continuous_usage_stats)

    @property
    def end_of_prompt(self) -> str:
        """The part of the prompt that is read, as no model reads more."""
        return self.prompt[-MAX_PROMPT_CHARACTERS:]

    def spoken(self) -> SpokenLanguages:
        """Return the languages that may be spoken. Raises `InvalidRequest`."""
        codes = [language_code(text) for text in self.languages if text.strip()]
        code = ANY if self.language is None else language_code(self.language)
        return SpokenLanguages.of(codes, None if code == ANY else code)

    def all_keywords(self) -> tuple[str, ...]:
        """Return the keywords and hot words."""
        return (*self.keywords, *(word.strip() for word in self.hotwords.split(",") if word.strip()))

    def sampling(self, max_tokens_limit: int) -> SamplingOptions:
        """Return how the tokens are chosen; without `max_completion_tokens` the transcript is as long as it may be."""
        longest = min(self.max_completion_tokens or max_tokens_limit, max_tokens_limit)
        return self.sample(longest, self.temperature, logprobs=LIKELIEST if self.needs_logprobs else None)


class TranscriptionOptions(SpeechOptions):
    """The fields of `/v1/audio/transcriptions`."""

    timestamp_granularities: list[Literal["word", "segment"]] = Field(
        [], max_length=2, description="With the format verbose_json: the times that are in the reply."
    )
    chunking_strategy: Strategy | SkipJsonSchema[None] = Field(
        None, description="`auto`: longer audio than the model takes is cut at its pauses; `server_vad`: all audio is."
    )
    include: list[Literal["logprobs"]] = Field([], max_length=1, description="With the format json: adds the likelihoods.")
    known_speaker_names: list[str] = Field([], description="Not offered.")
    known_speaker_references: list[str] = Field([], description="Not offered.")

    @model_validator(mode="after")
    def _check_transcription(self) -> Self:
        for name in ("known_speaker_names", "known_speaker_references"):
            if getattr(self, name):
                raise UnsupportedOption(NO_SPEAKERS, param=name)
        if self.timestamp_granularities and self.response_format != "verbose_json":
            raise InvalidRequest("Times are in the format verbose_json only.", param="timestamp_granularities")
        if self.include and self.response_format != "json":
            raise InvalidRequest("Likelihoods are in the format json only.", param="include")
        return self

    @property
    def word_times(self) -> WordTimes:
        return "required" if "word" in self.timestamp_granularities else super().word_times

    @property
    def needs_logprobs(self) -> bool:
        return bool(self.include) or super().needs_logprobs

    @property
    def voice(self) -> VoiceOptions | None:
        """How all audio is cut; None where only long audio is."""
        return self.chunking_strategy.options() if isinstance(self.chunking_strategy, ServerVad) else None


class TranslationOptions(SpeechOptions):
    """The fields of `/v1/audio/translations`. `language` is the one that is spoken."""

    to_language: ShortText | SkipJsonSchema[None] = Field(
        None, description="The language of the text, by default English: a code or an English name. Others need an LLM."
    )

    @model_validator(mode="after")
    def _check_translation(self) -> Self:
        if self.into not in NAMES:
            raise UnsupportedOption("to_language is no language that is known here.", param="to_language")
        return self

    @property
    def into(self) -> str:
        """The code of the language of the text."""
        return "en" if self.to_language is None else language_code(self.to_language)

    @property
    def instruction(self) -> str:
        """The instruction for a translation into that language."""
        return f"Translate the speech into {language_name(self.into).title()}."

    @property
    def word_times(self) -> WordTimes:
        return "none"
