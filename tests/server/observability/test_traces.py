"""Spans of requests and their stages, in memory and at a receiver of OTLP."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from server.engine.types.events import Done, StageTimes, Usage
from server.observability.traces import OtelTracing
from tests.support.clients.live_server import audio_file, instruct, live_server, tone, wait_until
from tests.support.fakes.fake_engine import FakeEngine

pytest.importorskip("opentelemetry.exporter.otlp.proto.http")

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"
CLIP = audio_file(tone(0.5, 16_000), 16_000, "FLAC", "PCM_16")
SECRET = "secret words"


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def tracing(exporter: InMemorySpanExporter) -> Iterator[OtelTracing]:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracing = OtelTracing(provider)
    yield tracing
    tracing.close()


def answer() -> Done:
    times = StageTimes(audio_decode_s=0.01, encode_s=0.2, prefill_s=0.03, decode_s=0.04, total_s=0.5)
    return Done("id-1", SECRET, "stop", Usage(10, 20, 3), times)


def test_a_request_is_a_span_with_its_stages_as_children(tracing: OtelTracing, exporter: InMemorySpanExporter) -> None:
    span = tracing.begin("POST", "/v1/chat/completions", {"traceparent": TRACEPARENT})
    span.add_answer("one", answer(), 1.5)
    span.end("/v1/chat/completions", 200)
    *stages, request = exporter.get_finished_spans()
    assert request.name == "POST /v1/chat/completions"
    assert (f"{request.context.trace_id:032x}", request.parent and f"{request.parent.span_id:016x}") == (TRACE, PARENT)
    assert span.headers == {"traceresponse": f"00-{TRACE}-{request.context.span_id:016x}-01"}
    assert dict(request.attributes or {}) == {
        "http.request.method": "POST",
        "http.route": "/v1/chat/completions",
        "http.response.status_code": 200,
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "thinbridge",
        "gen_ai.request.model": "one",
        "gen_ai.response.model": "one",
        "gen_ai.response.id": "id-1",
        "gen_ai.response.finish_reasons": ("stop",),
        "gen_ai.usage.input_tokens": 30,
        "gen_ai.usage.output_tokens": 3,
        "thinbridge.audio.duration": 1.5,
    }
    assert [stage.name for stage in stages] == ["audio_decode", "encode", "prefill", "decode"]
    assert {stage.parent and stage.parent.span_id for stage in stages} == {request.context.span_id}
    lengths_ms = [((stage.end_time or 0) - (stage.start_time or 0)) / 1e6 for stage in stages]
    assert lengths_ms == pytest.approx([10, 200, 30, 40])
    assert [stage.end_time for stage in stages[:-1]] == [stage.start_time for stage in stages[1:]]


def test_a_fault_of_the_server_is_an_error_and_a_refusal_is_none(tracing: OtelTracing, exporter: InMemorySpanExporter) -> None:
    for status in (500, 400):
        tracing.begin("POST", "/v1/instruct", {}).end("/v1/instruct", status)
    fault, refusal = exporter.get_finished_spans()
    assert (fault.attributes or {})["error.type"] == "500"
    assert not fault.status.is_ok
    assert "error.type" not in (refusal.attributes or {})


@pytest.mark.parametrize("traceparent", ["", "garbage", "00-" + "0" * 32 + "-" + "0" * 16 + "-01", "ff" * 10_000])
def test_a_parent_that_is_none_begins_a_new_trace(tracing: OtelTracing, exporter: InMemorySpanExporter, traceparent: str) -> None:
    tracing.begin("POST", "/v1/instruct", {"traceparent": traceparent}).end("/v1/instruct", 200)
    assert exporter.get_finished_spans()[0].parent is None


def test_probes_are_not_traced(tracing: OtelTracing, exporter: InMemorySpanExporter) -> None:
    tracing.begin("GET", "/health", {}).end("/health", 200)
    assert exporter.get_finished_spans() == ()


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Yield the spans that come to a receiver of OTLP over HTTP, which the environment names."""
    received: list[Any] = []

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") is None and self.path == "/v1/traces":
                message = ExportTraceServiceRequest.FromString(body)
                received.extend(message.resource_spans)
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    receiver = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    thread = threading.Thread(target=receiver.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{receiver.server_port}")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield received
    receiver.shutdown()
    receiver.server_close()
    thread.join()


def test_a_server_sends_its_spans_to_the_collector(collector: list[Any]) -> None:
    engine = FakeEngine()
    engine.text = SECRET
    with live_server(engine, traces=True) as server:
        wait_until(lambda: engine.stats().ready)
        server.client.headers["traceparent"] = TRACEPARENT
        response = instruct(server, CLIP, instruction=f"Transcribe {SECRET}.")
        assert response.status_code == 200, response.text
        assert response.headers["traceresponse"].startswith(f"00-{TRACE}-")
    spans = [span for resource in collector for scope in resource.scope_spans for span in scope.spans]
    (request,) = [span for span in spans if span.name == "POST /v1/instruct"]
    assert (request.trace_id.hex(), request.parent_span_id.hex()) == (TRACE, PARENT)
    stages = {span.name for span in spans if span.parent_span_id == request.span_id}
    assert {"audio_decode", "encode"} <= stages
    names = {each.key: each.value for each in collector[0].resource.attributes}
    assert names["service.name"].string_value == "thinbridge"
    assert not any(SECRET.encode() in resource.SerializeToString() for resource in collector)


def test_a_server_without_the_setting_traces_nothing(collector: list[Any]) -> None:
    engine = FakeEngine()
    with live_server(engine) as server:
        wait_until(lambda: engine.stats().ready)
        assert "traceresponse" not in instruct(server, CLIP).headers
    assert collector == []
