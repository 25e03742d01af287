"""The bodies and messages of Deepgram's API: results of files and of live audio, metadata, errors."""

import json
import math
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import accumulate
from operator import itemgetter
from typing import Any

from server.api.call import Answer
from server.api.deepgram.options import ListenOptions
from server.engine.types.events import Done, Partial, TokenLogprob, UtteranceDone, Word
from server.errors import ServeError

# The words' marks that are no part of them.
MARKS = ".,!?;:…\"'()[]¿¡"
ARCHITECTURE, VERSION = "thinbridge", "1"


@dataclass(frozen=True)
class Origin:
    """The part of the metadata that all replies to one call share."""

    request_id: str
    options: ListenOptions
    created: str

    @classmethod
    def of(cls, request_id: str, options: ListenOptions) -> "Origin":
        """Return the origin of a call that begins now."""
        return cls(request_id, options, datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"))

    @property
    def model_uuid(self) -> str:
        return str(uuid.uuid5(uuid.NAMESPACE_DNS, self.options.model))

    @property
    def model_info(self) -> dict[str, str]:
        return {"name": self.options.model, "version": VERSION, "arch": ARCHITECTURE}


def word_confidences(words: Sequence[Word], tokens: Sequence[TokenLogprob]) -> list[float]:
    """Return the probability of each word: the geometric mean over its tokens, 0 for a word whose tokens are not known."""
    text = b"".join(token.bytes for token in tokens)
    ends = list(accumulate(len(token.bytes) for token in tokens))
    starts = [end - len(token.bytes) for token, end in zip(tokens, ends, strict=True)]
    confidences, position, first = [], 0, 0
    for word in words:
        content = word.text.encode()
        found = text.find(content, position)
        if found < 0:
            confidences.append(0.0)
            continue
        position = found + len(content)
        while first < len(tokens) and ends[first] <= found:
            first += 1
        logprobs = []
        for index in range(first, len(tokens)):
            if starts[index] >= position:
                break
            logprobs.append(tokens[index].logprob)
        confidences.append(_probability(logprobs))
    return confidences


def alternative(done: Done) -> dict[str, object]:
    """Return the one reading of an answer."""
    words, tokens = done.words or (), done.logprobs or ()
    content: dict[str, object] = {
        "transcript": done.text,
        "confidence": _probability([token.logprob for token in tokens]),
        "words": word_replies(words, word_confidences(words, tokens)),
    }
    return content if done.language is None else {**content, "languages": [done.language]}


def word_replies(words: Sequence[Word], confidences: Sequence[float]) -> list[dict[str, object]]:
    return [
        {
            "word": word.text.strip(MARKS).lower() or word.text,
            "start": round(word.start_s, 3),
            "end": round(word.end_s, 3),
            "confidence": confidence,
            "punctuated_word": word.text,
        }
        for word, confidence in zip(words, confidences, strict=True)
    ]


def file_reply(origin: Origin, answers: Sequence[Answer], sha256: str) -> dict[str, object]:
    """Return the body for a file, with an answer for each of its channels, or one for all."""
    results: dict[str, object] = {"channels": [_channel(answer.done) for answer in answers]}
    if origin.options.utterances:
        found = [each for number, answer in enumerate(answers) for each in _utterances(answer, number)]
        results["utterances"] = sorted(found, key=itemgetter("start"))
    metadata = {
        **_metadata(origin, max(answer.audio_s for answer in answers), sha256),
        "channels": len(answers),
        "models": [origin.model_uuid],
        "model_info": {origin.model_uuid: origin.model_info},
    }
    return {"metadata": metadata, "results": results}


def final_results(origin: Origin, event: UtteranceDone, *, from_finalize: bool) -> str:
    """Return the message for the answer to an utterance."""
    speech_final = origin.options.tells_speech_final or from_finalize
    flags = {"is_final": True, "speech_final": speech_final, "from_finalize": from_finalize}
    return _results(origin, event.start_s, event.end_s, alternative(event.done), flags)


def interim_results(origin: Origin, event: Partial) -> str:
    """Return the message for the text so far; of its words neither times nor probabilities are known yet."""
    flags = {"is_final": False, "speech_final": False, "from_finalize": False}
    heard = {"transcript": event.stable + event.tail, "confidence": 0.0, "words": []}
    return _results(origin, event.start_s, event.end_s, heard, flags)


def empty_results(origin: Origin, audio_s: float) -> str:
    """Return the message for a finalisation when nothing was being said."""
    nothing = {"transcript": "", "confidence": 0.0, "words": []}
    return _results(origin, audio_s, audio_s, nothing, {"is_final": True, "speech_final": True, "from_finalize": True})


def metadata(origin: Origin, audio_s: float, sha256: str) -> str:
    """Return the last message of a stream."""
    return json.dumps({"type": "Metadata", **_metadata(origin, audio_s, sha256), "channels": origin.options.channels})


def speech_started(start_s: float) -> str:
    return json.dumps({"type": "SpeechStarted", "channel": [0], "timestamp": round(start_s, 3)})


def utterance_end(last_word_end_s: float) -> str:
    return json.dumps({"type": "UtteranceEnd", "channel": [0, 1], "last_word_end": round(last_word_end_s, 3)})


def error_message(error: ServeError) -> str:
    """Return the message for an error within a stream."""
    variant = error.code.upper()
    return json.dumps({"type": "Error", "variant": variant, "description": error.message, "message": error.message})


def _metadata(origin: Origin, audio_s: float, sha256: str) -> dict[str, object]:
    return {
        "transaction_key": "deprecated",
        "request_id": origin.request_id,
        "sha256": sha256,
        "created": origin.created,
        "duration": round(audio_s, 3),
    }


def _results(origin: Origin, start_s: float, end_s: float, heard: dict[str, object], flags: dict[str, bool]) -> str:
    message = {
        "type": "Results",
        "channel_index": [0, 1],
        "start": round(start_s, 3),
        "duration": round(end_s - start_s, 3),
        **flags,
        "channel": {"alternatives": [heard]},
        "metadata": {"request_id": origin.request_id, "model_info": origin.model_info, "model_uuid": origin.model_uuid},
    }
    return json.dumps(message, ensure_ascii=False)


def _channel(done: Done) -> dict[str, object]:
    content: dict[str, object] = {"alternatives": [alternative(done)]}
    return content if done.language is None else {**content, "detected_language": done.language}


def _utterances(answer: Answer, channel: int) -> Iterator[dict[str, Any]]:
    """Yield the segments of an answer; their words are those of the answer, in order, where their times are known."""
    words = list(answer.done.words or ())
    confidences = word_confidences(words, answer.done.logprobs or ())
    first = 0
    for segment in answer.segments:
        count = len(segment.text.split())
        part, likely = words[first : first + count], confidences[first : first + count]
        first += count
        yield {
            "start": round(segment.start_s, 3),
            "end": round(segment.end_s, 3),
            "confidence": sum(likely) / max(1, len(likely)),
            "channel": channel,
            "transcript": segment.text,
            "words": word_replies(part, likely),
            "id": str(uuid.uuid4()),
        }


def _probability(logprobs: Sequence[float]) -> float:
    return round(math.exp(sum(logprobs) / len(logprobs)), 6) if logprobs else 0.0
