"""The query options of Deepgram's `/v1/listen`, for files and for live audio.

Source: Deepgram's reference of pre-recorded and of live audio. Unknown names are ignored, as Deepgram does. A known option that
asks for what this server cannot do is an error that names it.
"""

from dataclasses import dataclass
from typing import Literal

from starlette.datastructures import QueryParams

from server.api.languages import known_code
from server.api.options import ANY_LANGUAGE, DEFAULT_INSTRUCTION, SpokenLanguages
from server.audio.raw import Encoding, RawFormat
from server.audio.types import MAX_CHANNELS, MAX_RATE_HZ, MIN_RATE_HZ
from server.audio.wave_header import ALAW, FLOAT, MULAW, PCM, PcmFormat
from server.engine.types.options import SamplingOptions, VoiceOptions
from server.engine.types.requests import LiveRequest, SpeechTask
from server.errors import InvalidRequest

Container = Literal["unknown", "ogg_opus"]

# Code and bits of encodings without a header, as in WAV files.
ENCODINGS = {"linear16": (PCM, 16), "linear32": (FLOAT, 32), "mulaw": (MULAW, 8), "alaw": (ALAW, 8)}
RAW_ENCODINGS: dict[int, Encoding] = {PCM: "s16le", FLOAT: "f32le", MULAW: "mulaw", ALAW: "alaw"}
OPUS_ENCODINGS = ("opus", "ogg-opus")
TELEPHONY_RATE_HZ = 8000
# A shorter silence cuts sentences into pieces that the models understand less well.
LEAST_SILENCE_S = 0.3
LONGEST_SILENCE_S = 5.0
UNSUPPORTED = (
    *("callback", "custom_intent", "custom_topic", "detect_entities", "diarize", "diarize_model", "dictation", "intents"),
    *("measurements", "numerals", "paragraphs", "profanity_filter", "redact", "replace", "search", "sentiment"),
    *("summarize", "topics", "translate"),
)
MAX_NAME_CHARACTERS = 64
MAX_LANGUAGES = 8
MAX_DIGITS = 9
TRUE, FALSE = ("true", "1", "yes"), ("false", "0", "no", "")


@dataclass(frozen=True)
class ListenOptions:
    """The options of one call. `encoding` is the format of samples without a header, None for a container, which says it itself.

    `silence_s` ends an utterance. `utterance_end_s` is the gap after which an end of utterance is reported, None for never.
    """

    model: str
    spoken: SpokenLanguages = ANY_LANGUAGE
    keywords: tuple[str, ...] = ()
    encoding: PcmFormat | None = None
    container: Container = "unknown"
    interim_results: bool = False
    silence_s: float = LEAST_SILENCE_S
    tells_speech_final: bool = True
    utterance_end_s: float | None = None
    vad_events: bool = False
    utterances: bool = False
    multichannel: bool = False

    @property
    def raw(self) -> RawFormat | None:
        """The format of a file without a header."""
        format = self.encoding
        return None if format is None else RawFormat(RAW_ENCODINGS[format.code], format.sample_rate_hz, format.channels)

    @property
    def channels(self) -> int:
        return 1 if self.encoding is None else self.encoding.channels

    @property
    def task(self) -> SpeechTask:
        """The options in the engine's terms. The words' probabilities are needed for their confidence."""
        return SpeechTask(
            DEFAULT_INSTRUCTION,
            SamplingOptions(logprobs=0),
            word_times="if_known",
            language=self.spoken.language,
            languages=self.spoken.languages,
            keywords=self.keywords,
        )

    def live_request(self, client: str) -> LiveRequest:
        """Return the request to the engine for live audio."""
        voice = VoiceOptions(silence_s=self.silence_s)
        return LiveRequest("", self.task, client, voice=voice, partials=self.interim_results)


def read_options(query: QueryParams, default_model: str) -> ListenOptions:
    """Return the options of a query. Raises `InvalidRequest` for the first that is wrong or cannot be honoured."""
    for name in UNSUPPORTED:
        if any(value.lower() not in FALSE for value in query.getlist(name)):
            raise InvalidRequest(f"The option {name} is not supported.", param=name)
    encoding, container = _read_encoding(query)
    endpointing = query.get("endpointing", "true").lower()
    utterance_end_ms = query.get("utterance_end_ms", "false").lower()
    return ListenOptions(
        model=(query.get("model") or default_model)[:MAX_NAME_CHARACTERS],
        spoken=_read_languages(query),
        keywords=(*query.getlist("keyterm"), *(word.partition(":")[0] for word in query.getlist("keywords"))),
        encoding=encoding,
        container=container,
        interim_results=_read_flag(query, "interim_results"),
        silence_s=_read_silence(endpointing),
        tells_speech_final=endpointing not in FALSE[::2],
        utterance_end_s=None if utterance_end_ms in FALSE else _read_number(query, "utterance_end_ms", 1000, 5000) / 1000,
        vad_events=_read_flag(query, "vad_events"),
        utterances=_read_flag(query, "utterances"),
        multichannel=_read_flag(query, "multichannel"),
    )


def _read_encoding(query: QueryParams) -> tuple[PcmFormat | None, Container]:
    name = query.get("encoding", "").lower()
    if not name:
        return None, "unknown"
    if name in OPUS_ENCODINGS:
        return None, "ogg_opus"
    if name not in ENCODINGS:
        known = ", ".join([*ENCODINGS, *OPUS_ENCODINGS])
        raise InvalidRequest(f"The encoding has to be one of {known}; a container needs none.", param="encoding")
    code, bits = ENCODINGS[name]
    if bits == 8 and "sample_rate" not in query:
        rate_hz = TELEPHONY_RATE_HZ
    else:
        rate_hz = _read_number(query, "sample_rate", MIN_RATE_HZ, MAX_RATE_HZ)
    channels = _read_number(query, "channels", 1, MAX_CHANNELS) if "channels" in query else 1
    return PcmFormat(rate_hz, code, bits, channels), "unknown"


def _read_languages(query: QueryParams) -> SpokenLanguages:
    """Return the languages that may be spoken: `detect_language` is a flag, or one of several languages."""
    detected = [value.lower() for value in query.getlist("detect_language")]
    candidates = [known_code(value, "detect_language") for value in detected if value not in TRUE + FALSE]
    if len(candidates) > MAX_LANGUAGES:
        raise InvalidRequest(f"detect_language may name {MAX_LANGUAGES} languages.", param="detect_language")
    language = query.get("language", "").lower()
    if candidates or any(value in TRUE for value in detected) or language in ("", "multi"):
        return SpokenLanguages.of(candidates)
    return SpokenLanguages(known_code(language, "language"))


def _read_silence(endpointing: str) -> float:
    if endpointing in ("true", "false"):
        return LEAST_SILENCE_S
    if not _is_whole_number(endpointing) or int(endpointing) > LONGEST_SILENCE_S * 1000:
        raise InvalidRequest(
            f"endpointing has to be false, or milliseconds up to {LONGEST_SILENCE_S * 1000:g}.", param="endpointing"
        )
    return max(LEAST_SILENCE_S, int(endpointing) / 1000)


def _read_flag(query: QueryParams, name: str) -> bool:
    value = query.get(name, "false").lower()
    if value not in TRUE + FALSE:
        raise InvalidRequest(f"{name} has to be true or false.", param=name)
    return value in TRUE


def _read_number(query: QueryParams, name: str, low: int, high: int) -> int:
    value = query.get(name, "")
    if not _is_whole_number(value) or not low <= int(value) <= high:
        raise InvalidRequest(f"{name} has to be a whole number from {low} to {high}.", param=name)
    return int(value)


def _is_whole_number(text: str) -> bool:
    """Return whether a text is a number without a sign; Python reads none of thousands of digits."""
    return text.isdecimal() and len(text) <= MAX_DIGITS
