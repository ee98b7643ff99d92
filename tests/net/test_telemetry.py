"""What one end of the links counts, against what the core and the devices count themselves."""

from __future__ import annotations

import asyncio
import math

import pytest

from multispin.core.controller import ControlSettings
from multispin.net.observer import Observer
from multispin.net.server import EdgeServer
from multispin.net.telemetry import RECENT_S, ROWS, Histogram, Recent, Telemetry
from multispin.types import SamplingParams
from multispin.wire.frames import Close, Error, Hello, Open, Opened, Verdict
from tests.net.test_server import device, play, text_of, wanted


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def a_text(telemetry: Telemetry, session: int = 0, device: int = 0, max_tokens: int = 100) -> None:
    telemetry.up(device, Open(session, "never told", SamplingParams(), "greedy", 0, max_tokens, 8))
    telemetry.down(device, Opened(session, b"", 8))


def verdict(start: int, num_draft: int, num_accepted: int, **fields: object) -> Verdict:
    defaults = {"session": 0, "epoch": 0, "token": 7, "draft_length": 5}
    return Verdict(
        start=start,
        num_draft=num_draft,
        num_accepted=num_accepted,
        num_committed=num_accepted + 1,
        **{**defaults, **fields},  # type: ignore[arg-type]
    )


def test_both_ends_count_what_the_core_counts() -> None:
    """Three sources: the core's counters, the server's telemetry, the telemetry of each device."""
    at_server, at_devices = Telemetry(), Telemetry()

    async def scene(server: EdgeServer) -> None:
        for kind in ("lookup", "weaker", "same", "none"):
            async with device(server, kind, [at_devices]) as it:
                for seed in range(3):
                    await text_of(it, wanted(seed))
        core = server.core.counters
        for telemetry in (at_server, at_devices):
            totals = telemetry.totals()
            assert totals.num_drafts == core.num_drafts > 0
            assert totals.num_draft_tokens == core.num_draft_tokens
            assert totals.num_accepted_tokens == core.num_accepted_tokens
            assert totals.num_committed_tokens == core.num_committed_tokens == 4 * 3 * 48
            assert sum(totals.accepted_at) == core.num_accepted_tokens
            assert telemetry.num_sessions == 0
            assert sum(telemetry.time_to_first_token.counts) == 12
        assert sum(at_server.verify_rows.counts) == core.num_batches
        assert at_server.verify_rows.sum == core.num_rows
        assert at_server.verify_seconds.sum == pytest.approx(core.forward_s)
        assert sum(at_devices.verify_rows.counts) == 0

    play(scene, mode="stop-and-wait", observers=[at_server])


def test_numbers_of_links_are_given_again() -> None:
    """However many devices come and go, there are no more labels than devices at once."""
    seen: set[int] = set()

    class Numbers(Observer):
        def joined(self, device: int, hello: Hello) -> None:
            seen.add(device)

    async def scene(server: EdgeServer) -> None:
        async with device(server, "lookup"):
            for _ in range(5):
                async with device(server, "lookup") as it:
                    await text_of(it, wanted(max_tokens=4))
                while len(server._links) > 1:
                    await asyncio.sleep(0.001)

    play(scene, observers=[Numbers()])
    assert seen == {0, 1}


def test_latencies_are_measured_from_open_and_between_commits() -> None:
    clock = Clock()
    telemetry = Telemetry(clock=clock)
    telemetry.joined(0, Hello(1, "lookup"))
    clock.now = 10.0
    a_text(telemetry)
    for at, start in ((10.4, 5), (10.5, 10), (10.5, 10), (12.5, 15)):  # the third is sent again
        clock.now = at
        telemetry.down(0, verdict(start, 4, 4))
    assert telemetry.time_to_first_token.sum == pytest.approx(0.4)
    assert telemetry.inter_token_latency.sum == pytest.approx(0.1 + 2.0)
    assert sum(telemetry.inter_token_latency.counts) == 2
    assert telemetry.totals().num_committed_tokens == 15


@pytest.mark.parametrize(
    "last",
    [
        lambda telemetry: telemetry.up(0, Close(0)),
        lambda telemetry: telemetry.down(0, Error(0, "internal", "")),
        lambda telemetry: telemetry.down(0, verdict(5, 0, 0, finish="stop")),
        lambda telemetry: telemetry.left(0),
    ],
)
def test_every_end_of_a_session_is_seen(last) -> None:  # type: ignore[no-untyped-def]
    telemetry = Telemetry()
    telemetry.joined(0, Hello(1, "lookup"))
    a_text(telemetry)
    assert telemetry.num_sessions == 1
    last(telemetry)
    assert telemetry.num_sessions == 0


def test_counters_never_fall_when_a_device_leaves() -> None:
    telemetry = Telemetry()
    for number in range(3):
        telemetry.joined(number, Hello(1, "lookup"))
        a_text(telemetry, device=number)
        telemetry.down(number, verdict(0, 4, number))
        telemetry.left(number)
        assert telemetry.totals().num_draft_tokens == 4 * (number + 1)
    assert telemetry.totals().accepted_at == [2, 1, 0, 0]
    assert telemetry.devices == {}


def test_the_grant_is_told_and_not_what_a_text_still_needs() -> None:
    telemetry = Telemetry(ControlSettings("heterogeneous", bandwidth_hz=1e6))
    telemetry.joined(0, Hello(1, "lookup", spectral_efficiency=4.0))
    a_text(telemetry, max_tokens=20)
    state = telemetry.devices[0]
    telemetry.down(0, verdict(0, 4, 4, draft_length=6, upload_bits_per_s=1_000_000))
    assert state.draft_length == 6
    assert telemetry.share(state) == pytest.approx(0.25)
    telemetry.down(0, verdict(5, 6, 6, draft_length=6))
    telemetry.down(0, verdict(12, 4, 3, draft_length=3))  # 4 tokens remain
    assert state.draft_length == 6
    telemetry.down(0, verdict(16, 0, 0, draft_length=0, upload_bits_per_s=7))
    assert state.draft_length == 0
    assert telemetry.share(state) == 0.0
    assert Telemetry().share(state) is None


def test_recent_fades_and_holds_where_nothing_changes() -> None:
    recent = Recent(1)
    for tick in range(1, 2001):
        recent.follow(0.05 * tick, 30.0 * 0.05 * tick)  # 30 per second
    assert recent.grown[0] / RECENT_S == pytest.approx(30.0, rel=0.01)
    recent.follow(100.0 + RECENT_S, 3000.0)
    assert recent.grown[0] / RECENT_S == pytest.approx(30.0 / math.e, rel=0.01)


def test_a_histogram_counts_each_value_once_in_the_lowest_bucket_that_holds_it() -> None:
    histogram = Histogram(ROWS)
    values = [0.5, 1.0, 1.5, 2.0, 4095.0, 4096.0, 4097.0, 1e9]
    for value in values:
        histogram.observe(value)
    for index, bound in enumerate(ROWS):
        assert sum(histogram.counts[: index + 1]) == sum(value <= bound for value in values)
    assert sum(histogram.counts) == len(values)
    assert histogram.sum == sum(values)


def test_the_first_token_of_a_text_that_is_gone_on_with_is_not_its_first() -> None:
    clock = Clock()
    telemetry = Telemetry(clock=clock)
    telemetry.joined(0, Hello(1, "lookup", None))
    order = Open(0, "never told", SamplingParams(), "greedy", 0, 100, 8, committed=b"ab")
    telemetry.up(0, order)
    telemetry.down(0, Opened(0, b"", 8))
    clock.now = 0.2
    telemetry.down(0, verdict(12, 2, 2))
    assert sum(telemetry.time_to_first_token.counts) == 0
    assert telemetry.inter_token_latency.sum == pytest.approx(0.2)
