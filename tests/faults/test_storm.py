"""Whatever happens to links, servers, devices and clocks: every token once, in order, and nothing
is left behind. Keep-alives and the longest wait are shortened here; not so in `make soak`."""

from __future__ import annotations

import asyncio
from typing import get_args

import pytest

from multispin.net.device import Device
from multispin.net.drafting import DrafterOptions, connect
from multispin.types import Mode
from tests.faults.crowd import expected, wanted
from tests.faults.proxy import Act, Deed, Message, Proxy, Script, honest
from tests.faults.storm import ACTS, Storm, Weather, weather_storm

NUM_TOKENS = 16
AT_ONCE = 20


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("multispin.net.websocket.PING_EVERY_S", 0.5)
    monkeypatch.setattr("multispin.net.websocket.PONG_WITHIN_S", 0.5)
    monkeypatch.setattr("multispin.api.device_socket.PING_S", 0.5)
    monkeypatch.setattr("multispin.api.device_socket.KEEPALIVE_S", 1.0)
    monkeypatch.setattr("multispin.net.line.MOST_WAIT_S", 0.5)


class Watch:
    """Notes every message, and lets it pass."""

    def __init__(self) -> None:
        self.seen: list[Message] = []

    def __call__(self, message: Message) -> Deed:
        self.seen.append(message)
        return Deed()


def once(way: str, number: int, act: Act) -> Script:
    """One fault, at this message."""
    return lambda message: Deed(act) if (message.way, message.number) == (way, number) else Deed()


@pytest.mark.parametrize("mode", ["stop-and-wait", "window"])
def test_no_message_is_one_that_may_not_be_lost(mode: Mode) -> None:
    """Cuts before, inside and behind every message of a text; every one doubled, and overtaken."""
    watch = Watch()
    scripts: list[Script] = [watch]  # of the next connections; of later ones, honest
    storm = Storm(Weather(), 0, mode)

    async def main() -> None:
        async with Proxy("", lambda number: scripts.pop() if scripts else honest) as proxy:
            storm.proxy = proxy
            end = await storm.start_server()
            await write(await dial(proxy))
            # Hello and welcome are part of connecting, which whoever calls does again.
            places = [place for place in watch.seen if place.number]
            faults = [once(m.way, m.number, act) for m in places for act in ACTS]
            assert len(faults) > 50
            for begin in range(0, len(faults), AT_ONCE):
                devices = []
                for script in faults[begin : begin + AT_ONCE]:
                    scripts.append(script)
                    devices.append(await dial(proxy))
                await asyncio.gather(*map(write, devices))
            # A text may take fewer messages than the first one did, where devices draft ahead.
            assert proxy.done.total() > 0.7 * len(faults)
            await storm.end_server(end)

    async def dial(proxy: Proxy) -> Device:
        return await connect(proxy.address, DrafterOptions("lookup"))

    async def write(device: Device) -> None:
        async with asyncio.timeout(30), device.write(wanted(1, NUM_TOKENS)) as writing:
            ids = [token async for committed in writing for token in committed.ids]
        assert ids == expected(1, NUM_TOKENS)
        await device.close()

    asyncio.run(main())
    assert storm.left_behind == []


STORMS = [pytest.param(mode, 4, 3, 20) for mode in get_args(Mode)]
STORMS += [
    pytest.param(mode, 20, 5, 300, marks=pytest.mark.slow) for mode in ("stop-and-wait", "window")
]


@pytest.mark.parametrize(("mode", "num_devices", "num_texts", "least"), STORMS)
def test_in_a_storm_every_token_is_written_once(
    mode: Mode, num_devices: int, num_texts: int, least: int
) -> None:
    weather = Weather(fault=0.05, blow_each_s=0.5)
    told = weather_storm(num_devices, num_texts, 5, mode, weather)
    assert told["texts"] == num_devices * num_texts
    assert told["faults"] >= least
    assert told["left_behind"] == []
    assert told["descriptors_left"] <= 0  # fewer: one of an earlier test has gone
