"""OpenTelemetry spans: each session is a trace, the device's spans and the server's in one.

    session (device)            from the request to the end of the text
    ├── draft                   drafting the tokens of one message
    ├── upload                  waiting for the granted rate, then sending it
    └── session (server)        from the request's arrival to the end of the text
        ├── queue               since the draft came, or else the last verdict, until the pass
        ├── verify              the forward pass that judged
        └── verdict             judging, and handing the verdict to the link

A device sends its session's context with the request (W3C traceparent, in `open`). Spans are made
when they are over, of times that were noted; without an exporter in OpenTelemetry's environment
variables there is nobody to note them. The only file that knows OpenTelemetry.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, ClassVar, Literal

from multispin.errors import BadInput
from multispin.net.observer import Observer
from multispin.wire.frames import (
    Close,
    Draft,
    Error,
    FromDevice,
    FromServer,
    Open,
    Redirect,
    Verdict,
)

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span, Tracer
    from opentelemetry.util.types import AttributeValue

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
EXPORT_S = 2.0  # at the end, for what is left
MAX_NOTED = 64  # drafts of one session that came and are yet to be judged

Clock = Callable[[], int]  # nanoseconds since 1970, which OpenTelemetry counts in


@contextmanager
def tracing(side: Literal["device", "server"]) -> Iterator[list[Observer]]:
    """Who makes spans of what happens, if OTEL_TRACES_EXPORTER or an OTLP endpoint says where they
    go; at the end what is left is exported."""
    provider = _provider(f"multispin-{side}")
    if provider is None:
        yield []
        return
    kind = DeviceSpans if side == "device" else ServerSpans
    try:
        yield [kind(provider.get_tracer("multispin"))]
    finally:  # an exporter that cannot reach anybody would try for long
        ending = threading.Thread(target=provider.shutdown, daemon=True)
        ending.start()
        ending.join(EXPORT_S)


def _provider(service: str) -> TracerProvider | None:
    exporter = os.environ.get("OTEL_TRACES_EXPORTER") or (
        "otlp" if any(os.environ.get(name) for name in ENDPOINTS) else "none"
    )
    if exporter == "none":
        return None
    if exporter not in ("otlp", "console"):
        raise BadInput("OTEL_TRACES_EXPORTER", exporter, "choose one of otlp, console, none")
    try:
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        remedy = "needs OpenTelemetry: pip install 'multispin[otel]'"
        raise BadInput("OTEL_TRACES_EXPORTER", exporter, remedy) from None

    name = os.environ.get("OTEL_SERVICE_NAME", service)
    resource = Resource.create({SERVICE_NAME: name})
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(_exporter(exporter)))
    return provider


def _exporter(name: str) -> SpanExporter:
    if name == "console":
        import sys

        from opentelemetry.sdk.trace.export import ConsoleSpanExporter

        return ConsoleSpanExporter(out=sys.stderr)
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter()


class _Session:
    """A span that goes on, the context for those below it, and what was noted for the next ones."""

    def __init__(self, span: Span, context: Context, now: int) -> None:
        self.span = span
        self.context = context
        self.waiting_since = now  # on the server: it owes a verdict since then
        self.came: deque[int] = deque(maxlen=MAX_NOTED)  # there: drafts that are yet to be judged
        self.length = 0  # there: of the text, as far as it is judged
        self.ready_at = now  # on the device: when the draft that is being uploaded was ready


class _Spans(Observer):
    """Sessions; the ends of the links add what they see of one."""

    kind: ClassVar[str]

    def __init__(self, tracer: Tracer, clock: Clock = time.time_ns) -> None:
        self.clock = clock
        self.sessions: dict[tuple[int, int], _Session] = {}
        self._tracer = tracer

    def open(self, device: int, number: int, trace: str) -> _Session:
        from opentelemetry.trace import SpanKind, set_span_in_context
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self.end((device, number), "opened again")
        now = self.clock()
        span = self._tracer.start_span(
            "session",
            TraceContextTextMapPropagator().extract({"traceparent": trace}),
            SpanKind[self.kind],
            {"multispin.device": device, "multispin.session": number},
            start_time=now,
        )
        session = _Session(span, set_span_in_context(span), now)
        self.sessions[device, number] = session
        return session

    def add(
        self, session: _Session, name: str, begin: int, end: int, **attributes: AttributeValue
    ) -> None:
        """A span below a session's, of a time that is over."""
        named = {f"multispin.{key}": value for key, value in attributes.items()}
        span = self._tracer.start_span(name, session.context, attributes=named, start_time=begin)
        span.end(end)

    def end(self, key: tuple[int, int], how: str) -> None:
        if (session := self.sessions.pop(key, None)) is not None:
            session.span.set_attribute("multispin.end", how)
            session.span.end(self.clock())

    def up(self, device: int, frame: FromDevice) -> None:
        if isinstance(frame, Close):
            self.end((device, frame.session), "closed")

    def down(self, device: int, frame: FromServer) -> None:
        match frame:
            case Verdict(session=number, finish=str(finish)):
                self.end((device, number), finish)
            case Error(session=int(number), code=code):
                self.end((device, number), code)
            case Redirect(session=number):
                self.end((device, number), "redirected")

    def left(self, device: int) -> None:
        for key in [key for key in self.sessions if key[0] == device]:
            self.end(key, "lost")


class DeviceSpans(_Spans):
    kind = "CLIENT"

    def opening(self, device: int, session: int, trace: str) -> str:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        context = self.open(device, session, trace).context
        carrier: dict[str, str] = {}
        TraceContextTextMapPropagator().inject(carrier, context)
        return carrier.get("traceparent", "")

    def drafted(self, device: int, draft: Draft) -> None:
        if (session := self.sessions.get((device, draft.session))) is not None:
            session.ready_at = now = self.clock()
            self.add(session, "draft", now - draft.drafting * 100_000, now, epoch=draft.epoch)

    def up(self, device: int, frame: FromDevice) -> None:
        super().up(device, frame)
        if isinstance(frame, Draft) and (session := self.sessions.get((device, frame.session))):
            self.add(session, "upload", session.ready_at, self.clock(), epoch=frame.epoch)


class ServerSpans(_Spans):
    kind = "SERVER"

    def __init__(self, tracer: Tracer, clock: Clock = time.time_ns) -> None:
        super().__init__(tracer, clock)
        self._began_at = 0  # the running pass
        self._pass = (0, 0)  # when the last one began and ended

    def pass_began(self) -> None:
        self._began_at = self.clock()

    def pass_ended(self, num_rows: int, forward_s: float) -> None:
        self._pass = self._began_at, self.clock()

    def up(self, device: int, frame: FromDevice) -> None:
        super().up(device, frame)
        match frame:
            case Open(session=number, trace=trace):
                self.open(device, number, trace)
            case Draft(session=number) if session := self.sessions.get((device, number)):
                session.came.append(self.clock())

    def down(self, device: int, frame: FromServer) -> None:
        if isinstance(frame, Verdict) and (session := self.sessions.get((device, frame.session))):
            self._judged(session, frame)
        super().down(device, frame)

    def _judged(self, session: _Session, verdict: Verdict) -> None:
        """The next pass may have begun meanwhile, but none has ended since."""
        if verdict.start < session.length:
            return  # sent again
        session.length = verdict.start + verdict.num_committed
        began, ended = self._pass
        waiting_since = session.waiting_since
        while session.came and session.came[0] <= began:
            waiting_since = max(waiting_since, session.came.popleft())
        epoch = verdict.epoch
        self.add(session, "queue", waiting_since, began, epoch=epoch)
        counts = {"num_draft": verdict.num_draft, "num_accepted": verdict.num_accepted}
        self.add(session, "verify", began, ended, epoch=epoch, **counts)
        self.add(session, "verdict", ended, self.clock(), epoch=epoch)
        session.waiting_since = ended
