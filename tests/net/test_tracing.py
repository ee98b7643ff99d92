"""Spans of device and server, as OpenTelemetry's own SDK collects them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from multispin.errors import BadInput
from multispin.net.server import EdgeServer
from multispin.net.tracing import DeviceSpans, ServerSpans, tracing
from multispin.types import Mode, SamplingParams
from multispin.wire.frames import Draft, Error, Open
from tests.net.test_server import device, play, text_of, wanted
from tests.net.test_telemetry import verdict

CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Collected:
    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracer = provider.get_tracer("test")

    def spans(self, name: str | None = None) -> list[ReadableSpan]:
        return [s for s in self._exporter.get_finished_spans() if name in (None, s.name)]


def ids(span: ReadableSpan) -> tuple[int, int, int | None]:
    assert span.context is not None
    return span.context.trace_id, span.context.span_id, span.parent and span.parent.span_id


@pytest.mark.parametrize("mode", ["rounds", "stop-and-wait"])
def test_a_session_is_one_trace_across_device_and_server(mode: Mode) -> None:
    at_device, at_server = Collected(), Collected()

    async def scene(server: EdgeServer) -> None:
        async with device(server, "weaker", [DeviceSpans(at_device.tracer)]) as it:
            await text_of(it, wanted(trace=CALLER))
            await text_of(it, wanted(seed=8))

    play(scene, mode=mode, observers=[ServerSpans(at_server.tracer)])
    first, second = sorted(at_device.spans("session"), key=lambda s: s.start_time or 0)
    assert ids(first)[0] == int(CALLER.split("-")[1], 16)
    assert ids(first)[2] == int(CALLER.split("-")[2], 16)
    assert ids(second)[2] is None
    for root in (first, second):
        trace, own, _ = ids(root)
        [below] = [s for s in at_server.spans("session") if ids(s)[0] == trace]
        assert ids(below)[2] == own
        assert root.attributes and root.attributes["multispin.end"] == "length"
        mine = [s for s in at_device.spans() if ids(s)[0] == trace and s is not root]
        theirs = [s for s in at_server.spans() if ids(s)[0] == trace and s is not below]
        assert {s.name for s in mine} == {"draft", "upload"}
        assert {s.name for s in theirs} == {"queue", "verify", "verdict"}
        assert {ids(s)[2] for s in mine} == {own}
        assert {ids(s)[2] for s in theirs} == {ids(below)[1]}
        for span in (*mine, *theirs):
            assert span.start_time is not None and span.end_time is not None
            assert span.start_time <= span.end_time


def test_the_spans_below_a_servers_session_follow_each_other() -> None:
    """Queue, verify, verdict, of each verdict in its order: one clock tick for each thing told."""
    collected = Collected()
    now = iter(range(0, 10_000, 10))
    spans = ServerSpans(collected.tracer, clock=lambda: next(now))
    draft = Draft(4, 0, 6, b"", b"")
    spans.up(0, Open(4, "", SamplingParams(), "greedy", 0, 10, 4, trace=CALLER))  # 0
    spans.pass_began()  # 10
    spans.pass_ended(1, 0.0)  # 20
    spans.pass_began()  # 30: the next pass begins before the verdict is sent
    spans.down(0, verdict(5, 0, 0, session=4))  # 40
    spans.up(0, draft)  # 50: too late for the running pass
    spans.pass_ended(1, 0.0)  # 60
    spans.down(0, verdict(6, 0, 0, session=4))  # 70
    spans.pass_began()  # 80: this one judges it
    spans.pass_ended(5, 0.0)  # 90
    spans.down(0, verdict(7, 4, 2, session=4, epoch=1))  # 100
    spans.down(0, verdict(7, 4, 2, session=4, epoch=1))  # sent again
    spans.up(0, draft)  # 110
    spans.pass_began()  # 120
    spans.pass_ended(5, 0.0)  # 130
    spans.down(0, verdict(10, 4, 0, session=4, epoch=2))  # 140
    spans.down(0, Error(4, "internal", ""))
    times = [(s.name, s.start_time, s.end_time) for s in collected.spans() if s.name != "session"]
    assert times == [
        *(("queue", 0, 10), ("verify", 10, 20), ("verdict", 20, 40)),
        *(("queue", 20, 30), ("verify", 30, 60), ("verdict", 60, 70)),
        *(("queue", 60, 80), ("verify", 80, 90), ("verdict", 90, 100)),
        *(("queue", 110, 120), ("verify", 120, 130), ("verdict", 130, 140)),
    ]
    [session] = collected.spans("session")
    assert session.attributes is not None
    assert session.attributes["multispin.end"] == "internal"
    verify = collected.spans("verify")[2]
    assert verify.attributes is not None
    assert (verify.attributes["multispin.num_draft"], verify.attributes["multispin.epoch"]) == (
        4,
        1,
    )


def test_draft_and_upload_are_timed_apart() -> None:
    collected = Collected()
    now = iter([10**9, 2 * 10**9, 3 * 10**9, 4 * 10**9])
    spans = DeviceSpans(collected.tracer, clock=lambda: next(now))
    trace = spans.opening(0, 4, "")
    assert trace.startswith("00-")
    draft = Draft(4, 2, 6, b"", b"", drafting=2500)  # of 100 us
    spans.drafted(0, draft)
    spans.up(0, draft)
    spans.left(0)
    drafted, uploaded, session = collected.spans()
    assert (drafted.start_time, drafted.end_time) == (2 * 10**9 - 250_000_000, 2 * 10**9)
    assert (uploaded.start_time, uploaded.end_time) == (2 * 10**9, 3 * 10**9)
    assert session.attributes is not None and session.attributes["multispin.end"] == "lost"


@pytest.mark.parametrize("trace", ["", "nonsense", "00-" + "0" * 32 + "-" + "0" * 16 + "-01"])
def test_a_trace_that_is_none_begins_a_new_one(trace: str) -> None:
    collected = Collected()
    spans = ServerSpans(collected.tracer)
    spans.up(0, Open(0, "", SamplingParams(), "greedy", 0, 10, 4, trace=trace))
    spans.left(0)
    [session] = collected.spans()
    assert session.parent is None


# --- who asks for spans ---------------------------------------------------------------------------


@pytest.fixture
def no_otel(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    for name in ("EXPORTER_OTLP_ENDPOINT", "EXPORTER_OTLP_TRACES_ENDPOINT", "TRACES_EXPORTER"):
        monkeypatch.delenv(f"OTEL_{name}", raising=False)
    yield monkeypatch


def test_nobody_watches_unless_the_environment_says_where_spans_go(
    no_otel: pytest.MonkeyPatch,
) -> None:
    with tracing("server") as observers:
        assert observers == []
    no_otel.setenv("OTEL_TRACES_EXPORTER", "none")
    no_otel.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://localhost:1")
    with tracing("server") as observers:
        assert observers == []
    no_otel.setenv("OTEL_TRACES_EXPORTER", "zipkin")
    with pytest.raises(BadInput, match="otlp, console, none"), tracing("server"):
        pass


def test_without_the_extra_the_remedy_is_named(no_otel: pytest.MonkeyPatch) -> None:
    no_otel.setenv("OTEL_TRACES_EXPORTER", "otlp")
    no_otel.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(BadInput, match=r"multispin\[otel\]"), tracing("server"):
        pass


def test_serving_loads_no_opentelemetry_unless_it_is_asked_for(
    no_otel: pytest.MonkeyPatch,
) -> None:
    code = (
        "import sys\nfrom multispin.net.watch import watch\n"
        "with watch('server'): pass\n"
        "print([name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
