"""`GET /metrics` of a directory: those of its replicas in one exposition, and a few of its own."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from multispin.api.metrics import PREFIX
from multispin.net.directory_server import DirectoryServer
from multispin.net.watches import Watches

log = logging.getLogger("multispin.api")

REPLICA = "replica"  # the label


def merged(expositions: Mapping[str, str]) -> list[Metric]:
    """Families of all replicas, each sample with the label ``replica``; they are told by name.

    An exposition that cannot be read is left out, and logged.
    """
    families: dict[str, Metric] = {}
    for name, text in expositions.items():
        try:
            own = list(text_string_to_metric_families(text))
        except ValueError as error:
            log.error("metrics of replica %s are left out: %s", name, error)
            continue
        for family in own:
            known = families.setdefault(
                family.name, Metric(family.name, family.documentation, family.type, family.unit)
            )
            if known.type == family.type:
                known.samples += [_labelled(sample, name) for sample in family.samples]
    return list(families.values())


def _labelled(sample: Sample, replica: str) -> Sample:
    return sample._replace(labels={**sample.labels, REPLICA: replica})


class _Families(Collector):
    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> list[Metric]:
        return self._families


def directory_metrics_route(server: DirectoryServer, watches: Watches) -> Route:
    """In the text format, or in OpenMetrics where the scraper asks for that."""

    async def metrics(request: Request) -> Response:
        told = await watches.ask("metrics")
        texts = {name: body.decode("utf-8", "replace") for name, body in told.items()}
        families = await asyncio.to_thread(merged, texts)
        registry = CollectorRegistry()
        registry.register(_Families([*families, *_own(server, watches)]))
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(registry), headers={"content-type": content_type})

    return Route("/metrics", metrics)


def _own(server: DirectoryServer, watches: Watches) -> Iterator[Metric]:
    replicas = GaugeMetricFamily(
        PREFIX + "replicas", "Listed replicas.", labels=["target", "condition"]
    )
    numbers = Counter((r.listed.target, r.condition) for r in server.directory.replicas)
    for labels, number in sorted(numbers.items()):
        replicas.add_metric(labels, number)
    yield replicas
    answers = CounterMetricFamily(
        PREFIX + "directory_answers",
        "What devices and connections were told: welcome, redirect, or the code of a refusal.",
        labels=["answer"],
    )
    for answer, number in sorted(server.answers.items()):
        answers.add_metric([answer], number)
    yield answers
    yield CounterMetricFamily(
        PREFIX + "directory_unanswered",
        "Questions for metrics or cells that a replica did not answer within a second.",
        value=watches.num_unanswered,
    )
