"""What `/api/cell` says is what the core and the devices know."""

from __future__ import annotations

from dataclasses import asdict

import msgspec

from multispin.api.cell_state import Cell, cell_state
from multispin.net.server import EdgeServer
from multispin.net.telemetry import Telemetry
from tests.net.test_server import device, play, text_of, wanted


def test_the_cell_adds_up() -> None:
    telemetry = Telemetry()

    async def scene(server: EdgeServer) -> None:
        async with (
            device(server, "lookup") as first,
            device(server, "none") as second,
            device(server, "weaker") as third,
        ):
            for seed, it in enumerate((first, second, second, third)):
                await text_of(it, wanted(seed))
            async with third.write(wanted(max_tokens=400)) as writing:
                async for _ in writing:
                    break
                state = cell_state(server, telemetry)
        found = msgspec.json.decode(msgspec.json.encode(state), type=Cell)
        assert found == state
        assert (found.target, found.mode, found.policy) == ("ngram", "stop-and-wait", None)
        assert found.num_sessions == 1
        assert [(d.device, d.drafter, d.num_sessions) for d in found.devices] == [
            (0, "lookup", 0),
            (2, "weaker", 1),
        ]
        counters = asdict(server.core.counters)
        assert set(found.counters) == set(counters)
        committed = sum(d.num_committed_tokens for d in found.devices)
        assert committed == found.counters["num_committed_tokens"] - 2 * 48
        for name in ("num_draft_tokens", "num_accepted_tokens"):
            assert sum(getattr(d, name) for d in found.devices) == found.counters[name] > 0
        drafted, alone = found.devices, found.without_drafter
        parts = sum(d.goodput_tokens_per_s for d in drafted) + alone.goodput_tokens_per_s
        assert 0 < parts <= found.goodput_tokens_per_s * (1 + 1e-9)
        assert found.passes.rows_mean >= 1 and found.passes.seconds_mean > 0
        assert all(d.bandwidth_share is None for d in found.devices)

    play(scene, mode="stop-and-wait", observers=[telemetry])
