"""The answer to a chat: whole, or in chunks."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from starlette.responses import Response

from server.api.call import Answer, StreamWriter
from server.api.openai.schema import (
    DONE,
    AssistantMessage,
    Chunk,
    ChunkChoice,
    ChunkDelta,
    Completion,
    CompletionChoice,
    choice_logprobs,
    completion_usage,
    completion_usage_so_far,
    error_content,
    finish_reason,
)
from server.engine.types.events import TokenLogprob
from server.errors import ServeError

JSON_TYPE = "application/json"


@dataclass
class ChatWriter(StreamWriter):
    """`ReplyWriter` and `StreamWriter` of chats. With `continuous_usage` each chunk has the `tokens` so far."""

    request_id: str
    id: str
    created_s: int
    model: str
    service_tier: str
    logprobs: bool
    include_usage: bool
    continuous_usage: bool
    warnings: tuple[str, ...] = ()
    tokens: int = 0

    def reply(self, answer: Answer) -> Response:
        done = answer.done
        completion = Completion(
            id=self.id,
            object="chat.completion",
            created=self.created_s,
            model=self.model,
            choices=[
                CompletionChoice(
                    index=0,
                    message=AssistantMessage(role="assistant", content=done.text, refusal=None),
                    logprobs=choice_logprobs(done.logprobs or ()) if self.logprobs else None,
                    finish_reason=finish_reason(done),
                )
            ],
            usage=completion_usage(done.usage),
            service_tier=self.service_tier,
            system_fingerprint=None,
            **self._warnings(answer),
        )
        return Response(completion.to_json(), media_type=JSON_TYPE)

    def first_events(self) -> Iterable[str]:
        yield self._chunk(ChunkDelta(role="assistant", content=""))

    def text_event(self, text: str, logprobs: Sequence[TokenLogprob]) -> str:
        self.tokens += len(logprobs)
        return self._chunk(ChunkDelta(content=text), logprobs)

    def last_events(self, answer: Answer) -> Iterable[str]:
        done = answer.done
        self.tokens = done.usage.output_tokens
        yield self._chunk(ChunkDelta(), reason=finish_reason(done), **self._warnings(answer))
        if self.include_usage:
            yield self._event([], usage=completion_usage(done.usage))
        yield DONE

    def error_event(self, error: ServeError) -> str:
        return error_content(error, self.request_id)

    def _chunk(
        self,
        delta: ChunkDelta,
        logprobs: Sequence[TokenLogprob] = (),
        reason: Literal["stop", "length"] | None = None,
        **more: Any,
    ) -> str:
        likelihoods = choice_logprobs(logprobs) if self.logprobs and logprobs else None
        choice = ChunkChoice(index=0, delta=delta, logprobs=likelihoods, finish_reason=reason)
        if self.continuous_usage:
            more["usage"] = completion_usage_so_far(self.tokens)
        elif self.include_usage:
            more["usage"] = None
        return self._event([choice], **more)

    def _event(self, choices: list[ChunkChoice], **more: Any) -> str:
        head: dict[str, Any] = {"id": self.id, "object": "chat.completion.chunk", "created": self.created_s, "model": self.model}
        return Chunk(**head, choices=choices, **more).to_json()

    def _warnings(self, answer: Answer) -> dict[str, Any]:
        silence = ("No speech was heard.",) if answer.done.finish_reason == "no_speech" else ()
        warnings = [*self.warnings, *answer.warnings, *silence]
        return {"warnings": warnings} if warnings else {}
