"""Spans: the tree of a run, what they tell, and what they never tell."""

import subprocess
import sys

import pytest

import limbeck as lb
from limbeck import lane, spans
from limbeck.models.base import Price, Reply
from limbeck.models.fake import Fake

trace = pytest.importorskip("opentelemetry.trace")
sdk = pytest.importorskip("opentelemetry.sdk.trace")
export = pytest.importorskip("opentelemetry.sdk.trace.export")
memory = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")

SECRET = "the words of a row"


@pytest.fixture
def finished(monkeypatch):
    """The spans that ended so far, by name, under a provider of this test's own."""
    kept = memory.InMemorySpanExporter()
    provider = sdk.TracerProvider()
    provider.add_span_processor(export.SimpleSpanProcessor(kept))
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
    monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)
    return lambda name: [s for s in kept.get_finished_spans() if name in ("", s.name)]


def asked(n, model):
    return lb.ask(lb.Table.from_rows({"prompt": f"{SECRET} {i}"} for i in range(n)), model, "Say {prompt}")


def answering(request):
    return Reply("a text", prompt_tokens=3, completion_tokens=2, served_model="m-1", finish="length")


def test_a_run_holds_its_stages_and_they_what_was_bought(tmp_path, finished):
    with lb.Run(tmp_path / "out", progress=False):
        lb.keep(
            asked(4, Fake(answering, "fake/fn", price=Price(1, 1))), lambda row: row["prompt"].endswith("1") or "other"
        )
    (run,), (ask,), (keep,), (buy,) = map(finished, ("run", "stage ask", "stage keep", "buy"))
    assert run.parent is None and ask.parent.span_id == keep.parent.span_id == run.context.span_id
    assert buy.parent.span_id == ask.context.span_id
    assert dict(keep.attributes) == {
        "limbeck.reused": False, "limbeck.rows_in": 4, "limbeck.rows_out": 1, "limbeck.rejected": 3,
    }  # fmt: skip
    assert buy.attributes["limbeck.bought"] == 4 and buy.attributes["limbeck.tokens"] == (12, 8)
    assert buy.attributes["limbeck.models"] == ("fake/fn",) and buy.attributes["limbeck.money"] == pytest.approx(2e-5)
    assert run.attributes["limbeck.spent.calls"] == 4 and not finished("chat fn")


def test_a_reused_stage_says_so(tmp_path, finished):
    for reused in (False, True):
        with lb.Run(tmp_path, progress=False):
            asked(2, Fake(answering, "fake/fn"))
        assert finished("stage ask")[-1].attributes["limbeck.reused"] is reused


def test_calls_have_spans_only_where_that_is_asked_for(tmp_path, finished, monkeypatch):
    monkeypatch.setenv("LIMBECK_OTEL_CALLS", "1")
    monkeypatch.setattr(lane, "FIRST_BACKOFF", 0.01)
    tries = []

    def brain(request):
        tries.append(request)
        if len(tries) == 1:
            raise lb.errors.EndpointFailure(SECRET, cause="HTTP 429")
        return answering(request)

    with lb.Run(tmp_path, progress=False):
        lb.ask(
            lb.Table.from_rows([{"prompt": SECRET}]), Fake(brain, "fake/fn"), "{prompt}", max_tokens=7, temperature=0.5
        )
    failed, good = finished("chat fn")
    assert failed.attributes["error.type"] == "HTTP 429" and not failed.status.is_ok
    assert good.parent.span_id == finished("buy")[0].context.span_id and good.kind is trace.SpanKind.CLIENT
    told = {k.removeprefix("gen_ai."): v for k, v in good.attributes.items() if k.startswith("gen_ai.")}
    assert told == {
        "operation.name": "chat", "provider.name": "fake", "request.model": "fn", "request.temperature": 0.5,
        "request.max_tokens": 7, "response.model": "m-1", "response.finish_reasons": ("length",),
        "usage.input_tokens": 3, "usage.output_tokens": 2,
    }  # fmt: skip


def test_an_error_is_recorded_by_its_kind_and_no_words_are_kept(tmp_path, finished, monkeypatch):
    monkeypatch.setenv("LIMBECK_OTEL_CALLS", "1")

    def brain(request):
        raise ValueError(request.messages[-1]["content"])

    with pytest.raises(ValueError, match=SECRET), lb.Run(tmp_path, progress=False):
        asked(3, Fake(brain, "fake/fn"))
    for name in ("run", "stage ask", "buy"):
        assert finished(name)[0].attributes["error.type"] == "ValueError"
        assert finished(name)[0].status.status_code is trace.StatusCode.ERROR
    assert SECRET not in "".join(s.to_json() for s in finished(""))


def test_without_a_tracer_nothing_is_recorded_or_loaded(tmp_path, monkeypatch):
    code = (
        "import sys, limbeck as lb\n"
        "with lb.Run(sys.argv[1], progress=False):\n"
        "    lb.ask(lb.Table.from_rows([{'prompt': 'x'}]), 'fake/echo', '{prompt}')\n"
        "assert not [m for m in sys.modules if m.startswith('opentelemetry')]\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    reply = spans.replies()(Fake(answering), object(), "k")
    assert reply.__qualname__ == "Fake.reply"  # the model's own, with nothing around it
    reply.close()


def test_the_command_line_sends_to_the_endpoint_of_the_environment(tmp_path):
    """A collector in another thread gets the spans by the time the command ends."""
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http.trace_exporter")
    import http.server
    import os
    import threading

    got = []

    class Collector(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            got.append((self.path, self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Collector) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        (tmp_path / "p.jsonl").write_text('{"prompt": "a"}\n')
        where = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{server.server_port}"}
        words = ["run", "label", "prompts=p.jsonl", "teacher=fake/echo", "--out", "out"]
        subprocess.run([sys.executable, "-m", "limbeck", *words], cwd=tmp_path, env=os.environ | where, check=True)
        server.shutdown()
    assert [path for path, _ in got] == ["/v1/traces"] and b"stage ask" in got[0][1] and b"limbeck" in got[0][1]
