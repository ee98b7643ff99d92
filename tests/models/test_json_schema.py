"""A real model, which knows little of JSON, under a schema."""

from __future__ import annotations

import asyncio
import json
from collections import Counter

import numpy as np
import pytest

from multispin.core.drafter import ModelDrafter
from multispin.core.speculation import SpeculationStats
from multispin.lm.ngram import NgramModel
from multispin.net.address import parse_address
from multispin.net.device import Device, Request
from multispin.net.line import Line
from multispin.net.link import DeviceLink
from multispin.net.websocket import WebSocketTransport
from multispin.wire.frames import ChatMessage
from tests.models.serving import device, request, serving

pytestmark = pytest.mark.models

NUM_ANSWERS = 200
AT_ONCE = 8
ANIMAL = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "legs": {"type": "integer", "minimum": 0, "maximum": 100},
        "lives_in": {"type": "array", "items": {"enum": ["water", "forest"]}, "maxItems": 2},
    },
    "required": ["name", "legs", "lives_in"],
    "additionalProperties": False,
}


def question(number: int) -> Request:
    animals = ["cat", "whale", "scorpion", "wolf", "spider", "goldfish", "parrot", "camel"]
    ask = f"Describe a {animals[number % len(animals)]} as JSON."
    asked = request(
        [ChatMessage("user", ask)],
        temperature=[0.0, 0.6, 1.0, 1.3][number % 4],
        seed=number,
        max_tokens=64,
        draft_length=4,
    )
    return asked._replace(json_schema=json.dumps(ANIMAL))


async def answers(it: Device) -> tuple[list[tuple[list[int], str, str | None]], int]:
    """Ids, text and finish reason of each, and how many tokens were drafted ones."""
    places = asyncio.Semaphore(AT_ONCE)
    total = SpeculationStats()

    async def answer(number: int) -> tuple[list[int], str, str | None]:
        async with places, it.write(question(number)) as writing:
            text = "".join([committed.text async for committed in writing])
            total.add(writing.stats)
            return writing.session.committed, text, writing.session.finish

    written = await asyncio.gather(*(answer(number) for number in range(NUM_ANSWERS)))
    return written, total.num_accepted_tokens


async def knowing(address: str, texts: list[list[int]]) -> Device:
    """A device that drafts what these texts would make one expect."""
    transport = await WebSocketTransport.connect(parse_address(address))
    link = await DeviceLink.greet(transport, "ngram", None)
    model = NgramModel.from_tokens(
        np.concatenate(texts),
        link.welcome.vocabulary_size,
        order=3,
        num_sequences=AT_ONCE,
        context_length=1024,
    )
    return Device(Line(link), ModelDrafter(model, owns_vocabulary=False))


def check(text: str) -> None:
    value = json.loads(text)
    assert list(value) == ["name", "legs", "lives_in"]
    assert isinstance(value["name"], str)
    assert len(value["name"]) <= 12
    assert isinstance(value["legs"], int)
    assert 0 <= value["legs"] <= 100
    assert len(value["lives_in"]) <= 2
    assert set(value["lives_in"]) <= {"water", "forest"}


@pytest.mark.timeout(900)
def test_every_answer_that_stops_is_valid_and_drafting_changes_none() -> None:
    async def scene(address: str) -> None:
        alone = await device(address, "none", AT_ONCE)
        expected, _ = await answers(alone)
        await alone.close()
        drafting = await knowing(address, [ids for ids, _, _ in expected])
        written, num_accepted = await answers(drafting)
        await drafting.close()
        for _, text, finish in expected:
            if finish == "stop":
                check(text)
        finishes = Counter(finish for _, _, finish in expected)
        assert finishes["stop"] >= 0.8 * NUM_ANSWERS, finishes
        assert written == expected
        assert num_accepted > NUM_ANSWERS

    arguments = ("--reproducible", "--ctx-size", "512", "--max-sessions", str(AT_ONCE))
    with serving("smollm2-135m", *arguments) as (_, address):
        asyncio.run(scene(address))
