"""Whoever leaves a text before its end has said so with its last message."""

from __future__ import annotations

import asyncio

from multispin.net.drafting import DrafterOptions, connect
from tests.faults.crowd import wanted
from tests.faults.proxy import Deed, Message, Proxy
from tests.faults.storm import Storm, Weather

OPEN, DRAFT, CLOSE = 2, 4, 6  # numbers of the frames


def test_nothing_is_drafted_for_a_text_that_was_left() -> None:
    sent: list[int] = []

    def script(message: Message) -> Deed:
        if message.way == "up":
            sent.append(message.kind)
        return Deed()

    async def main() -> None:
        storm = Storm(Weather(), 0, "stop-and-wait")
        async with Proxy("", lambda number: script) as proxy:
            storm.proxy = proxy
            end = await storm.start_server()
            device = await connect(proxy.address, DrafterOptions("lookup"))
            left = []
            for seed in range(1, 25, 2):  # those that do not end before
                async with device.write(wanted(seed, 300)) as writing:
                    left.append(aiter(writing))  # and never closed
                    while len(writing.session.committed) < 40:
                        await anext(left[-1])
                await asyncio.sleep(0.02)
            for commits in left:
                await commits.aclose()
            await device.close()
            await storm.end_server(end)

    asyncio.run(main())
    assert sent.count(CLOSE) == 12 and DRAFT in sent
    after = [kind for kind, before in zip(sent[1:], sent, strict=False) if before == CLOSE]
    assert set(after) == {OPEN}
