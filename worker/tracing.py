"""Traces from a request through the queue to the worker, where OpenTelemetry is installed and an endpoint is set.

Without the extra `otel`, or without OTEL_EXPORTER_OTLP_ENDPOINT, everything here does nothing and costs nothing.
Torch-free.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span

log = logging.getLogger(__name__)

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
SCOPE = "slidereason"


class _Tracing:
    """Where this process's spans go; nowhere until `setup_tracing`."""

    provider: "TracerProvider | None" = None


_tracing = _Tracing()


def setup_tracing(service_name: str, exporter: "SpanExporter | None" = None) -> bool:
    """Start to trace, as OpenTelemetry's standard variables say; may be called again.

    Args:
        service_name: of this process, unless OTEL_SERVICE_NAME says otherwise.
        exporter: gets every span as it ends; None sends batches by OTLP over HTTP to OTEL_EXPORTER_OTLP_ENDPOINT.

    Returns:
        Whether spans go anywhere.
    """
    stop_tracing()
    wanted = exporter is not None or any(os.environ.get(name) for name in ENDPOINTS)
    if not wanted or os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return False
    try:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor

        if exporter is None:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

            processor = BatchSpanProcessor(OTLPSpanExporter())
        else:
            processor = SimpleSpanProcessor(exporter)
    except ImportError as error:
        log.warning("traces are asked for, but the extra `otel` is not installed: %s", error)
        return False
    named = {} if os.environ.get("OTEL_SERVICE_NAME") else {"service.name": service_name}
    _tracing.provider = TracerProvider(resource=Resource.create(named))
    _tracing.provider.add_span_processor(processor)
    return True


def stop_tracing() -> None:
    """Send what is left, and trace no more."""
    provider, _tracing.provider = _tracing.provider, None
    if provider is not None:
        provider.shutdown()


@contextmanager
def span(name: str, traceparent: str | None = None, **attributes: Any) -> Iterator["Span | None"]:
    """A span around what happens inside.

    Args:
        name: of the span.
        traceparent: W3C traceparent of the parent, such as another process's; None takes the span around this one. One
            that is malformed counts as none.
        attributes: of the span; those that are None are left out.

    Yields:
        The span, None where nothing is traced. An exception that passes is recorded.
    """
    provider = _tracing.provider
    if provider is None:
        yield None
        return
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    parent = TraceContextTextMapPropagator().extract({"traceparent": traceparent}) if traceparent else None
    with provider.get_tracer(SCOPE).start_as_current_span(name, parent, attributes=_given(attributes)) as started:
        yield started


def past_span(name: str, begun_s: float, ended_s: float, **attributes: Any) -> None:
    """A span of something that is over, as a child of the current one.

    Args:
        name: of the span.
        begun_s, ended_s: seconds since 1970.
        attributes: of the span; those that are None are left out.
    """
    provider = _tracing.provider
    if provider is not None:
        started = provider.get_tracer(SCOPE).start_span(
            name, start_time=int(begun_s * 1e9), attributes=_given(attributes)
        )
        started.end(int(ended_s * 1e9))


def current_traceparent() -> str | None:
    """W3C traceparent of the current span, to be handed to another process; None outside of any."""
    if _tracing.provider is None:
        return None
    from opentelemetry import trace

    context = trace.get_current_span().get_span_context()
    if not context.is_valid:
        return None
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


def _given(attributes: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in attributes.items() if value is not None}
