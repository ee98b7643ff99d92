"""`GET /metrics`: the names of the contract, read from the telemetry when somebody asks.

Labels are few: a position of a draft, or a device's number (see net.observer); never a session.
"""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from multispin.net.telemetry import Histogram, Telemetry

PREFIX = "multispin_"
MAX_DEVICES = 256  # that have lines of their own; the totals count all


class TelemetryCollector(Collector):
    """The same names on the server and on a device, which has no passes and shares nothing out."""

    def __init__(self, telemetry: Telemetry) -> None:
        self._telemetry = telemetry

    def collect(self) -> Iterator[Metric]:
        telemetry = self._telemetry
        yield from self._speculation()
        yield _gauge(
            "goodput_tokens_per_second",
            "Committed tokens per second of late (fading over 5 s), summed over devices.",
            telemetry.recent_drafts().goodput_tokens_per_s,
        )
        yield _gauge("sessions", "Texts that are being written or wait.", telemetry.num_sessions)
        yield _histogram(
            "time_to_first_token_seconds",
            "From a request to its first committed token.",
            telemetry.time_to_first_token,
        )
        yield _histogram(
            "inter_token_latency_seconds",
            "Between two commits of a text; tokens committed together count as one.",
            telemetry.inter_token_latency,
        )
        yield _histogram(
            "verify_seconds", "A forward pass of the target.", telemetry.verify_seconds
        )
        yield _histogram("verify_rows", "Rows of a forward pass.", telemetry.verify_rows)
        yield self._refusals()
        yield from self._grants()

    def _speculation(self) -> Iterator[Metric]:
        totals = self._telemetry.totals()
        for name, text, value in (
            ("spec_decode_num_drafts", "Drafts that were verified.", totals.num_drafts),
            ("spec_decode_num_draft_tokens", "Their tokens.", totals.num_draft_tokens),
            (
                "spec_decode_num_accepted_tokens",
                "Of these the accepted ones.",
                totals.num_accepted_tokens,
            ),
            ("generation_tokens", "Committed tokens.", totals.num_committed_tokens),
        ):
            yield CounterMetricFamily(PREFIX + name, text, value=value)
        by_position = CounterMetricFamily(
            PREFIX + "spec_decode_num_accepted_tokens_per_pos",
            "Accepted draft tokens by their position in the draft, from 0.",
            labels=["position"],
        )
        for position, accepted in enumerate(totals.accepted_at):
            by_position.add_metric([str(position)], accepted)
        yield by_position

    def _refusals(self) -> Metric:
        refusals = CounterMetricFamily(
            PREFIX + "refusals",
            "Frames, requests and connections that were refused, by code.",
            labels=["code"],
        )
        for code, number in sorted(self._telemetry.refusals.items()):
            refusals.add_metric([code], number)
        return refusals

    def _grants(self) -> Iterator[Metric]:
        lengths = GaugeMetricFamily(
            PREFIX + "draft_length", "Draft length or window granted last.", labels=["device"]
        )
        shares = GaugeMetricFamily(
            PREFIX + "bandwidth_share", "Share of the uplink granted last.", labels=["device"]
        )
        devices = self._telemetry.devices
        drafting = sorted(number for number, state in devices.items() if state.drafts)
        for number in drafting[:MAX_DEVICES]:
            state = devices[number]
            lengths.add_metric([str(number)], state.draft_length)
            if (share := self._telemetry.share(state)) is not None:
                shares.add_metric([str(number)], share)
        yield lengths
        yield shares


def metrics_route(telemetry: Telemetry) -> Route:
    """In the text format, or in OpenMetrics where the scraper asks for that."""
    registry = CollectorRegistry()
    registry.register(TelemetryCollector(telemetry))

    async def metrics(request: Request) -> Response:
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(registry), headers={"content-type": content_type})

    return Route("/metrics", metrics)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(PREFIX + name, text, value=value)


def _histogram(name: str, text: str, histogram: Histogram) -> Metric:
    buckets, total = [], 0
    for bound, count in zip((*histogram.bounds, float("inf")), histogram.counts, strict=True):
        total += count
        buckets.append((str(bound) if bound != float("inf") else "+Inf", total))
    family = HistogramMetricFamily(PREFIX + name, text)
    family.add_metric([], buckets, histogram.sum)
    return family
