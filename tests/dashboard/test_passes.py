"""Of every row of a pass it is known what became of it."""

from __future__ import annotations

import asyncio
from typing import get_args

import pytest

from multispin.api.dashboard_passes import MAX_PASSES, PassLog
from multispin.net.server import EdgeServer
from multispin.net.telemetry import Telemetry
from multispin.types import Mode
from multispin.wire.frames import Verdict
from tests.net.test_server import device, play, text_of, wanted


def verdict(num_draft: int, num_accepted: int) -> Verdict:
    return Verdict(0, 0, 0, num_draft, num_accepted, num_accepted + 1, 0, 4)


@pytest.mark.parametrize("mode", get_args(Mode))
def test_rows_add_up_to_the_servers_counters(mode: Mode) -> None:
    log, telemetry = PassLog(), Telemetry()
    log.is_on = True

    async def scene(server: EdgeServer) -> None:
        async with device(server, "weaker") as first, device(server, "none") as second:
            texts = (text_of(it, wanted(max_tokens=24)) for it in (first, second))
            await asyncio.gather(*texts)
        counters = server.core.counters
        log.pass_ended(1, 0.001)  # of the newest nobody is told
        num_passes, passes = log.since(0)
        assert num_passes == len(passes) == counters.num_batches < MAX_PASSES
        rows, own, accepted, rejected = (sum(p[i] for p in passes) for i in (2, 3, 4, 5))
        assert rows == counters.num_rows
        assert accepted == counters.num_accepted_tokens
        assert accepted > 0 or mode == "window"  # this model waits for nobody's draft
        assert accepted + rejected == counters.num_draft_tokens
        assert own == telemetry.totals().num_verifications
        assert all(p[3] + p[4] + p[5] <= p[2] for p in passes)

    play(scene, mode=mode, observers=[log, telemetry])


def test_a_verdict_that_is_sent_again_is_of_no_pass() -> None:
    log = PassLog(clock=lambda: 5.0)
    log.is_on = True
    log.pass_ended(5, 0.1)
    for _ in range(2):
        log.down(0, verdict(4, 1))
    log.pass_ended(3, 0.1)
    assert log.since(0) == (1, [(4.9, 0.1, 5, 1, 1, 3)])


def test_the_last_passes_are_kept_and_told_once() -> None:
    log = PassLog(clock=lambda: 1.0)
    log.is_on = True
    seen = 0
    told = []
    for number in range(3 * MAX_PASSES):
        log.pass_ended(number + 1, 0.0)
        if number % 50 == 49:
            seen, news = log.since(seen)
            told += [p[2] for p in news]
    assert told == list(range(1, seen + 1))
    assert len(log.since(0)[1]) == MAX_PASSES - 1
    log.stop()
    log.pass_ended(1, 0.0)
    assert log.since(0) == (0, [])
