"""Streams hold whole characters only, and come as they are committed."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from tests.api.stage import Stage, ask, leave, play, until

TEXT = "キオスクは小さい。ロボットは大きい。😀🤖 été déjà là. " * 20


async def events_of(address: str, **fields: Any) -> list[dict[str, Any]]:
    reader, writer = await ask(address, stream=True, **fields)
    events = []
    while b"[DONE]" not in (event := await reader.readuntil(b"\n\n")):
        if (at := event.find(b"data: ")) >= 0:
            events.append(json.loads(event[at + len("data: ") :]))
    await leave(writer)
    return events


@pytest.mark.parametrize("endpoint", ["server", "device"])
def test_no_character_is_torn(endpoint: str) -> None:
    """The n-gram model's tokens are bytes: most of these characters are three or four of them."""

    async def scene(stage: Stage) -> None:
        seen = ""
        for seed in range(5):
            wanted = {"prompt": "キオスク", "temperature": 0.7, "seed": seed, "max_tokens": 90}
            events = await events_of(stage.addresses[endpoint], **wanted)
            pieces = [event["choices"][0]["text"] for event in events]
            # What the last token has begun can only be told as such.
            assert not any("\ufffd" in piece for piece in pieces[:-2])
            seen += "".join(pieces)
        assert {"キ", "é", "😀"} <= set(seen)

    play(scene, corpus=TEXT)


@pytest.mark.parametrize("endpoint", ["server", "device"])
def test_what_is_committed_is_sent_before_the_next_batch(endpoint: str) -> None:
    async def scene(stage: Stage) -> None:
        stage.engine.steps.clear()
        reader, writer = await ask(stage.addresses[endpoint], stream=True, draft_length=0)
        await reader.readuntil(b"\r\n\r\n")  # before the first token
        for number in range(1, 6):
            await until(lambda number=number: stage.engine.num_steps == number)
            stage.engine.steps.set()  # the batch that is held, and no other
            stage.engine.steps.clear()
            event = await asyncio.wait_for(reader.readuntil(b"\n\n"), 5)
            assert b'"finish_reason":null' in event
        await leave(writer)
        stage.engine.steps.set()

    play(scene)
