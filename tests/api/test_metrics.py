"""`/metrics` against the contract's names, the format's own parser, and the dashboard's queries."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as parse_openmetrics,
)
from prometheus_client.parser import text_string_to_metric_families as parse_text
from starlette.requests import Request
from starlette.responses import Response

from multispin.api.metrics import MAX_DEVICES, TelemetryCollector, metrics_route
from multispin.core.controller import ControlSettings
from multispin.net.telemetry import MAX_CODES, Telemetry
from multispin.wire.frames import Error, Hello
from tests.net.test_telemetry import a_text, verdict

DASHBOARD = Path(__file__).parents[2] / "deploy" / "grafana-dashboard.json"
# As the contract has them, if not said otherwise.
COUNTERS = {
    "multispin_spec_decode_num_drafts_total",
    "multispin_spec_decode_num_draft_tokens_total",
    "multispin_spec_decode_num_accepted_tokens_total",
    "multispin_spec_decode_num_accepted_tokens_per_pos_total",
    "multispin_generation_tokens_total",
    "multispin_refusals_total",  # ours
}
HISTOGRAMS = {
    "multispin_time_to_first_token_seconds",
    "multispin_inter_token_latency_seconds",
    "multispin_verify_seconds",
    "multispin_verify_rows",
}
GAUGES = {
    "multispin_goodput_tokens_per_second",
    "multispin_sessions",
    "multispin_draft_length",
    "multispin_bandwidth_share",
}
OF_DIRECTORY = {  # tests/api/test_directory.py looks at them
    "multispin_replicas",
    "multispin_directory_answers_total",
    "multispin_directory_unanswered_total",
}


def busy() -> Telemetry:
    telemetry = Telemetry(ControlSettings("heterogeneous", uplink_bits_per_s=1e6))
    for number in range(3):
        telemetry.joined(number, Hello(1, ("lookup", "ngram", "none")[number]))
        a_text(telemetry, device=number)
        telemetry.down(number, verdict(0, 4, number, upload_bits_per_s=250_000))
        telemetry.down(number, verdict(number + 1, 2, 2, upload_bits_per_s=250_000))
    telemetry.pass_ended(7, 0.03)
    telemetry.down(0, Error(5, "bad_input", ""))
    telemetry.down(9, Error(None, "bad_frame", ""))  # before it was greeted
    telemetry.refused("bad_frame")
    return telemetry


def scrape(telemetry: Telemetry, accept: str = "") -> Response:
    scope = {"type": "http", "headers": [(b"accept", accept.encode())]}
    response = asyncio.run(metrics_route(telemetry).endpoint(Request(scope)))
    assert isinstance(response, Response)
    return response


def samples(telemetry: Telemetry) -> dict[str, dict[tuple[str, ...], float]]:
    """By name, then by the values of the labels."""
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in parse_text(bytes(scrape(telemetry).body).decode()):
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sample.labels.values())] = sample.value
    return found


@pytest.mark.parametrize("telemetry", [Telemetry(), busy()], ids=["new", "busy"])
def test_exactly_the_names_of_the_contract(telemetry: Telemetry) -> None:
    families = parse_text(bytes(scrape(telemetry).body).decode())
    kinds = {family.name: family.type for family in families}
    assert {name for name, kind in kinds.items() if kind == "gauge"} == GAUGES
    assert {name for name, kind in kinds.items() if kind == "histogram"} == HISTOGRAMS
    # This format's parser takes the suffix off a counter's family.
    assert {f"{name}_total" for name, kind in kinds.items() if kind == "counter"} == COUNTERS
    assert len(kinds) == len(GAUGES | HISTOGRAMS | COUNTERS)


def test_the_values_are_those_of_the_telemetry() -> None:
    found = samples(busy())
    assert found["multispin_spec_decode_num_drafts_total"] == {(): 6}
    assert found["multispin_spec_decode_num_draft_tokens_total"] == {(): 18}
    assert found["multispin_spec_decode_num_accepted_tokens_total"] == {(): 9}
    assert found["multispin_generation_tokens_total"] == {(): 15}
    by_position = found["multispin_spec_decode_num_accepted_tokens_per_pos_total"]
    assert by_position == {("0",): 5, ("1",): 4, ("2",): 0, ("3",): 0}
    assert found["multispin_sessions"] == {(): 3}
    assert found["multispin_verify_rows_sum"] == {(): 7}
    assert found["multispin_verify_rows_bucket"][("4.0",)] == 0
    assert found["multispin_verify_rows_bucket"][("8.0",)] == 1
    assert found["multispin_verify_seconds_sum"] == {(): 0.03}
    assert found["multispin_time_to_first_token_seconds_count"] == {(): 3}
    assert found["multispin_inter_token_latency_seconds_count"] == {(): 3}
    assert found["multispin_refusals_total"] == {("bad_frame",): 2, ("bad_input",): 1}
    # The third has no drafter.
    assert found["multispin_draft_length"] == {("0",): 5, ("1",): 5}
    assert found["multispin_bandwidth_share"] == {("0",): 0.25, ("1",): 0.25}


def test_labels_are_few_however_many_devices_there_are() -> None:
    telemetry = Telemetry()
    for number in range(MAX_DEVICES + 50):
        telemetry.joined(number, Hello(1, "lookup"))
        a_text(telemetry, session=number, device=number)
        telemetry.down(number, Error(None, f"a word of its server's own, {number}", ""))
    found = samples(telemetry)
    assert len(found["multispin_refusals_total"]) == MAX_CODES
    assert len(found["multispin_draft_length"]) == MAX_DEVICES
    assert found["multispin_sessions"] == {(): MAX_DEVICES + 50}
    text = bytes(scrape(telemetry).body).decode()
    assert set(re.findall(r"[{,](\w+)=", text)) == {"le", "device", "code"}


def test_scrapers_get_the_format_that_they_ask_for() -> None:
    plain = scrape(busy())
    assert plain.headers["content-type"].startswith("text/plain; version=")
    openmetrics = scrape(busy(), "application/openmetrics-text; version=1.0.0")
    assert openmetrics.headers["content-type"].startswith("application/openmetrics-text")
    assert len(list(parse_openmetrics(bytes(openmetrics.body).decode()))) == 14


# --- the dashboard --------------------------------------------------------------------------------


def panels() -> list[dict]:
    return [p for p in json.loads(DASHBOARD.read_text())["panels"] if p["type"] != "row"]


def exported() -> set[str]:
    registry = CollectorRegistry()
    registry.register(TelemetryCollector(busy()))
    return {sample.name for family in registry.collect() for sample in family.samples}


def test_the_dashboard_asks_for_nothing_that_is_not_exported() -> None:
    expressions = [target["expr"] for panel in panels() for target in panel["targets"]]
    variables = json.loads(DASHBOARD.read_text())["templating"]["list"]
    expressions += [v["query"] for v in variables if v["type"] == "query"]
    names = [name for text in expressions for name in re.findall(r"\bmultispin_\w+", text)]
    assert set(names) <= exported()
    # And every name of the contract is on it.
    bare = {re.sub(r"_(bucket|sum|count)$", "", name) for name in names}
    assert bare == COUNTERS | HISTOGRAMS | GAUGES


def test_the_dashboard_is_one_that_grafana_can_lay_out() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    assert {"title", "uid", "schemaVersion", "time", "templating"} <= set(dashboard)
    everything = dashboard["panels"]
    assert len({panel["id"] for panel in everything}) == len(everything)
    taken: set[tuple[int, int]] = set()
    for panel in everything:
        at = panel["gridPos"]
        cells = {(at["x"] + i, at["y"] + j) for i in range(at["w"]) for j in range(at["h"])}
        assert all(0 <= x < 24 for x, _ in cells)
        assert not cells & taken
        taken |= cells
    for panel in panels():
        assert panel["title"] and panel["targets"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        letters = [target["refId"] for target in panel["targets"]]
        assert len(set(letters)) == len(letters)


def test_the_documentation_names_what_is_exported() -> None:
    text = (DASHBOARD.parents[1] / "docs" / "operating.md").read_text()
    table = set(re.findall(r"(?m)^\| `(multispin_\w+)", text))
    assert table == COUNTERS | HISTOGRAMS | GAUGES | OF_DIRECTORY
    mentioned = set(re.findall(r"multispin_\w+", text))
    assert mentioned <= exported() | table
