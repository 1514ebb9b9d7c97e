from __future__ import annotations

import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from guardrail.errors import ConfigurationError, MissingExtraError
from guardrail.observe.exporting import asked_for, tracer_provider

ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}


@pytest.mark.parametrize(
    ("environ", "asked"),
    [
        ({}, False),
        (ENDPOINT, True),
        ({"OTEL_TRACES_EXPORTER": "console"}, True),
        ({"OTEL_TRACES_EXPORTER": "none", **ENDPOINT}, False),
        ({"OTEL_SDK_DISABLED": "TRUE", **ENDPOINT}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, False),
    ],
)
def test_the_environment_asks_for_spans_by_naming_a_place(environ, asked):
    assert asked_for(environ) is asked


def test_a_provider_is_made_and_the_global_one_left_alone(monkeypatch):
    trace = pytest.importorskip("opentelemetry.trace")
    pytest.importorskip("opentelemetry.sdk")
    monkeypatch.delenv("OTEL_SERVICE_NAME", raising=False)
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "console")
    before = trace.get_tracer_provider()
    provider = tracer_provider("1.2.3")
    assert trace.get_tracer_provider() is before
    assert provider.resource.attributes["service.name"] == "guardrail-vlm"
    assert provider.resource.attributes["service.version"] == "1.2.3"
    provider.shutdown()


def test_the_services_name_is_the_operators(monkeypatch):
    pytest.importorskip("opentelemetry.sdk")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "front")
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "console")
    provider = tracer_provider("1")
    assert provider.resource.attributes["service.name"] == "front"
    provider.shutdown()


def test_an_unknown_exporter_is_refused(monkeypatch):
    pytest.importorskip("opentelemetry.sdk")
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "jaeger")
    with pytest.raises(ConfigurationError, match="otlp, console or none"):
        tracer_provider("1")


@pytest.mark.parametrize(
    "missing", ["opentelemetry.sdk.trace", "opentelemetry.exporter.otlp.proto.http.trace_exporter"]
)
def test_without_the_extra_it_is_named(monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.delitem(sys.modules, "guardrail.observe.tracing", raising=False)
    monkeypatch.delattr("guardrail.observe.tracing", raising=False)  # so the first one is put back
    monkeypatch.delenv("OTEL_TRACES_EXPORTER", raising=False)
    with pytest.raises(MissingExtraError, match=r"guardrail-vlm\[otel\]"):
        tracer_provider("1")


def test_metrics_and_the_audit_log_need_no_opentelemetry():
    code = (
        "import sys\nsys.modules['opentelemetry'] = None\n"
        "import guardrail.audit, guardrail.observe.metrics, guardrail.observe.exporting\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_spans_arrive_at_a_collector_when_the_server_ends(monkeypatch):
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    got = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self):
            got.append((self.path, self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_words):
            pass

    with HTTPServer(("127.0.0.1", 0), Collector) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.delenv("OTEL_TRACES_EXPORTER", raising=False)
        provider = tracer_provider("1")
        provider.get_tracer("test").start_span("guardrail.check").end()
        provider.shutdown()
        server.shutdown()
        thread.join()
    ((path, body),) = got
    assert path == "/v1/traces"
    assert b"guardrail.check" in body
    assert b"guardrail-vlm" in body
