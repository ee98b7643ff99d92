"""A server that is gone without a word is found out, over a real socket."""

from __future__ import annotations

import asyncio

import pytest

from multispin.net import websocket
from multispin.net.drafting import DrafterOptions, connect
from tests.api.test_offline import EXPECTED, server_on
from tests.faults.proxy import Act, Deed, Message, Proxy, Script
from tests.net.test_server import text_of, wanted


def test_within_ten_seconds() -> None:
    assert websocket.PING_EVERY_S + websocket.PONG_WITHIN_S == 10.0


def test_a_text_goes_on_by_another_link(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websocket, "PING_EVERY_S", 0.2)
    monkeypatch.setattr(websocket, "PONG_WITHIN_S", 0.2)

    def script_of(number: int) -> Script:
        def script(message: Message) -> Deed:
            is_it = number == 0 and message.way == "down" and message.number == 10
            return Deed(Act.SILENCE) if is_it else Deed()

        return script

    async def main() -> None:
        async with (
            asyncio.timeout(30),
            server_on(0) as (_, port),
            Proxy(f"127.0.0.1:{port}", script_of) as proxy,
        ):
            device = await connect(proxy.address, DrafterOptions("lookup"))
            _, text = await text_of(device, wanted(max_tokens=200))
            assert text == EXPECTED
            assert proxy.num_links == 2
            await device.close()

    asyncio.run(main())
