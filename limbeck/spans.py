"""OpenTelemetry spans of runs, stages and purchases, where the program has set up a tracer; else nothing, at no cost.

A span holds counts, names and causes; never a key, and never a text that was sent or came back, nor an error's words,
which may quote one. Calls have spans of their own only where LIMBECK_OTEL_CALLS=1 is set: millions of them are seldom
wanted. Attributes are named by the semantic conventions for generative AI (gen_ai.…) as far as those go.
"""

import contextlib
import os
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROVIDERS = {"gemini": "gcp.gemini"}  # whom the conventions name otherwise
_SENT = ("temperature", "top_p", "max_tokens")


def export() -> None:
    """Sends the spans of this program where OTEL_EXPORTER_OTLP_ENDPOINT says, if `limbeck[otel]` is installed.

    For the command line: a library leaves it to the program around it to set up a tracer.
    """
    if not any(os.environ.get(name) for name in _ENDPOINTS):
        return
    try:
        from opentelemetry import trace
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:  # the variable may be meant for other programs
        return
    if isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):  # nobody has set one up
        named = Resource.create({} if os.environ.get("OTEL_SERVICE_NAME") else {SERVICE_NAME: "limbeck"})
        provider = TracerProvider(resource=named)
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        trace.set_tracer_provider(provider)  # which sends what is left when the program ends


def _tracer() -> Any:
    """The tracer, None where there is none: who sets one up has imported opentelemetry by then."""
    trace = sys.modules.get("opentelemetry.trace")
    if trace is None or isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        return None
    return trace.get_tracer("limbeck")


@contextlib.contextmanager
def span(name: str, **attributes: Any) -> Iterator[None]:
    """A span around the block, within the one that is current. An error that leaves it is recorded by its kind."""
    tracer = _tracer()
    if tracer is None:
        yield
        return
    with tracer.start_as_current_span(name, record_exception=False, set_status_on_exception=False) as made:
        _add(made, attributes)
        try:
            yield
        except BaseException as error:
            _failed(made, type(error).__name__)
            raise


def note(**attributes: Any) -> None:
    """Adds attributes to the span that is current, named limbeck.…; counts by cause become one each, None is none."""
    if _tracer() is not None:
        _add(sys.modules["opentelemetry.trace"].get_current_span(), attributes)


def _add(made: Any, attributes: Mapping[str, Any]) -> None:
    for name, value in attributes.items():
        if isinstance(value, dict):
            _add(made, {f"{name}.{cause.replace(' ', '_')}": n for cause, n in value.items()})
        elif value is not None:
            made.set_attribute(name if name.startswith("gen_ai.") else f"limbeck.{name}", value)


def _failed(made: Any, kind: str) -> None:
    from opentelemetry.trace import Status, StatusCode

    made.set_attribute("error.type", kind)
    made.set_status(Status(StatusCode.ERROR))


def replies() -> Callable[[Any, Any, str], Awaitable[Any]]:
    """How to ask a model (model, request, key): with a span for each call where that is wanted, else as it is."""
    tracer = _tracer() if os.environ.get("LIMBECK_OTEL_CALLS") == "1" else None
    if tracer is None:
        return lambda model, request, key: model.reply(request, key)
    from opentelemetry.trace import SpanKind

    async def traced(model: Any, request: Any, key: str) -> Any:
        provider, _, name = model.name.partition("/") if "/" in model.name else (None, "", model.name)
        doing = "embeddings" if request.embed is not None else "chat"
        known = {"gen_ai.operation.name": doing, "gen_ai.request.model": name}
        known["gen_ai.provider.name"] = _PROVIDERS.get(provider or "", provider)
        known |= {f"gen_ai.request.{k}": getattr(request, k) for k in _SENT}
        with tracer.start_as_current_span(
            f"{doing} {name}", kind=SpanKind.CLIENT, record_exception=False, set_status_on_exception=False
        ) as made:
            _add(made, known | {"call": key})
            try:
                reply = await model.reply(request, key)
            except BaseException as error:
                _failed(made, getattr(error, "cause", None) or type(error).__name__)
                raise
            _add(made, {
                "gen_ai.response.model": reply.served_model, "gen_ai.response.finish_reasons": [reply.finish],
                "gen_ai.usage.input_tokens": reply.prompt_tokens, "gen_ai.usage.output_tokens": reply.completion_tokens,
                "money": reply.cost,
            })  # fmt: skip
            return reply

    return traced
