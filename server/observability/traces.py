"""Traces by OpenTelemetry: a span for each request and session, and one for each stage of an answer.

The packages come with the extra `otel`. The exporter speaks OTLP over HTTP, and the SDK reads its own environment variables, such
as `OTEL_EXPORTER_OTLP_ENDPOINT` and `OTEL_TRACES_SAMPLER`. Names are those of the semantic conventions for HTTP and for
generative AI where these have any. No span holds audio or text.
"""

import dataclasses
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from server.engine.types.events import Done, StageTimes

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span

NAME = "thinbridge"
TRACED_PREFIX = "/v1/"
OPERATIONS = {"/v1/chat/completions": "chat"}
"""The operation by the route, as the conventions call it; any other route generates text from audio."""
OPERATION = "generate_content"
STAGES = tuple(field.name for field in dataclasses.fields(StageTimes) if field.name != "total_s")
FIRST_SERVER_ERROR = 500


class TracesError(ValueError):
    """Traces are asked for and cannot be made; the message is for the operator."""


class RequestSpan(Protocol):
    """The span of one request or session, until `end`."""

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers of the reply by which a client finds the span."""
        ...

    def add_answer(self, model: str, done: Done, audio_s: float) -> None:
        """Add an answer that is complete now, with the times of its stages."""
        ...

    def end(self, route: str, status: int) -> None:
        """End the span. `status` is the reply's; 499 stands for a client that left."""
        ...


class Tracing(Protocol):
    """The source of spans. `begin` and the methods of spans never raise, and wait for nothing."""

    def begin(self, method: str, path: str, headers: Mapping[str, str]) -> RequestSpan:
        """Return the span of a request that begins now; a `traceparent` (W3C) in its headers is the parent."""
        ...

    def close(self) -> None:
        """Send what is left, which may take seconds."""
        ...


class NoSpan:
    """`RequestSpan` of a request that is not traced."""

    @property
    def headers(self) -> Mapping[str, str]:
        return {}

    def add_answer(self, model: str, done: Done, audio_s: float) -> None:
        pass

    def end(self, route: str, status: int) -> None:
        pass


class NoTracing:
    """`Tracing` that is off."""

    def begin(self, method: str, path: str, headers: Mapping[str, str]) -> RequestSpan:  # noqa: ARG002
        return NoSpan()

    def close(self) -> None:
        pass


class OtelSpan:
    """`RequestSpan` of OpenTelemetry."""

    def __init__(self, tracing: "OtelTracing", span: "Span", method: str) -> None:
        self._tracing = tracing
        self._span = span
        self._method = method

    @property
    def headers(self) -> Mapping[str, str]:
        context = self._span.get_span_context()
        return {"traceresponse": f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"}

    def add_answer(self, model: str, done: Done, audio_s: float) -> None:
        usage = done.usage
        self._span.set_attributes(
            {
                "gen_ai.provider.name": NAME,
                "gen_ai.request.model": model,
                "gen_ai.response.model": model,
                "gen_ai.response.id": done.request_id,
                "gen_ai.response.finish_reasons": [done.finish_reason],
                "gen_ai.usage.input_tokens": usage.audio_frames + usage.text_tokens,
                "gen_ai.usage.output_tokens": usage.output_tokens,
                "thinbridge.audio.duration": round(audio_s, 3),
            }
        )
        self._tracing.add_stages(self._span, done.times)

    def end(self, route: str, status: int) -> None:
        self._span.update_name(f"{self._method} {route}")
        operation = OPERATIONS.get(route, OPERATION)
        self._span.set_attributes({"http.route": route, "http.response.status_code": status, "gen_ai.operation.name": operation})
        if status >= FIRST_SERVER_ERROR:
            self._span.set_attribute("error.type", str(status))
            self._span.set_status(self._tracing.error_status)
        self._span.end()


class OtelTracing:
    """`Tracing` by a provider of OpenTelemetry's SDK."""

    def __init__(self, provider: "TracerProvider") -> None:
        from opentelemetry import trace
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self.error_status = trace.StatusCode.ERROR
        self._trace: Any = trace
        self._provider = provider
        self._tracer = provider.get_tracer(NAME)
        self._propagator = TraceContextTextMapPropagator()

    def begin(self, method: str, path: str, headers: Mapping[str, str]) -> RequestSpan:
        if not path.startswith(TRACED_PREFIX):
            return NoSpan()
        parent = self._propagator.extract({name: headers[name] for name in ("traceparent", "tracestate") if name in headers})
        attributes = {"http.request.method": method}
        return OtelSpan(self, self._tracer.start_span(method, parent, self._trace.SpanKind.SERVER, attributes), method)

    def add_stages(self, span: "Span", times: StageTimes) -> None:
        """Add a child for each stage that took time, one behind the other, so that they end now."""
        context = self._trace.set_span_in_context(span)
        spent_s = {name: getattr(times, name) for name in STAGES}
        start_ns = time.time_ns() - round(sum(spent_s.values()) * 1e9)
        for name, seconds in spent_s.items():
            if seconds > 0:
                stage = self._tracer.start_span(name.removesuffix("_s"), context, start_time=start_ns)
                start_ns += round(seconds * 1e9)
                stage.end(start_ns)

    def close(self) -> None:
        self._provider.shutdown()


def open_tracing() -> OtelTracing:
    """Return tracing to the collector that the environment names. Raises `TracesError` without the packages."""
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise TracesError(f"Traces need {error.name}: pip install -e '.[otel]'.") from None
    resource = Resource.create()
    if str(resource.attributes["service.name"]).startswith("unknown_service"):
        resource = resource.merge(Resource({"service.name": NAME}))
    # Spans wait in a queue of limited length, and a thread sends them.
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return OtelTracing(provider)
