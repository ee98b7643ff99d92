"""Schemas of strangers: tried in a process of their own, refused there, and harmless."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess

import pytest

from multispin.errors import BadInput, PeerError
from multispin.net.schema_trial import SchemaTrials
from multispin.net.server import EdgeServer
from multispin.wire.frames import ChatMessage
from tests.core.harness import request, write
from tests.net.test_server import device, play, text_of, wanted

CITY = '{"type":"object","properties":{"city":{"enum":["Bonn","Oslo"]}},"required":["city"]}'
ENDLESS = '{"type":"integer","multipleOf":99999989}'  # an hour of work for llguidance
CHAT = [ChatMessage("user", "Which city?")]


async def refused(trials: SchemaTrials, schema: str) -> str:
    with pytest.raises(BadInput) as caught:
        await trials.check(schema)
    assert caught.value.field == "json_schema"
    return caught.value.remedy


def test_a_good_schema_passes_and_a_bad_one_does_not() -> None:
    async def scene() -> None:
        trials = SchemaTrials()
        await trials.check(CITY)
        assert await refused(trials, '{"type":"strin"}') == "Invalid type: strin"

    asyncio.run(scene())


@pytest.mark.parametrize("schema", [ENDLESS, json.dumps({"allOf": [json.loads(ENDLESS)]})])
def test_what_never_ends_is_ended(schema: str) -> None:
    async def scene() -> None:
        assert "too long" in await refused(SchemaTrials(), schema)

    asyncio.run(scene())


def test_what_passed_is_not_tried_again_what_failed_is() -> None:
    tried = []

    async def attempt(schema: str) -> str:
        tried.append(schema)
        return "" if schema == CITY else "wrong"

    async def scene() -> None:
        trials = SchemaTrials(attempt)
        for _ in range(3):
            await trials.check(CITY)
            assert await refused(trials, "{}") == "wrong"

    asyncio.run(scene())
    assert tried == [CITY, "{}", "{}", "{}"]


def test_a_trial_that_is_given_up_leaves_no_process() -> None:
    def children() -> list[str]:
        listed = subprocess.run(
            ["pgrep", "-P", str(os.getpid()), "-f", "schema_trial"],
            check=False,  # it finds none
            capture_output=True,
            text=True,
        )
        return listed.stdout.split()

    async def scene() -> None:
        trial = asyncio.create_task(SchemaTrials().check(ENDLESS))
        while not children():
            await asyncio.sleep(0.01)
        trial.cancel()
        with pytest.raises(asyncio.CancelledError):
            await trial
        assert not children()

    asyncio.run(scene())


def test_a_schema_that_is_being_tried_stops_nobody() -> None:
    async def scene(server: EdgeServer) -> None:
        others_are_done = asyncio.Event()

        async def attempt(schema: str) -> str:
            await others_are_done.wait()
            return "takes too long"

        server._trials = SchemaTrials(attempt)
        async with device(server, "none") as hostile, device(server, "weaker") as good:
            bad = asyncio.create_task(text_of(hostile, wanted(json_schema=CITY)))
            ids, _ = await text_of(good, wanted())
            assert ids == write(request(), "none").session.committed
            others_are_done.set()
            with pytest.raises(PeerError, match=r"json_schema = .* too long") as caught:
                await bad
            assert caught.value.code == "bad_input"

    play(scene)


def test_a_text_over_the_network_follows_its_schema() -> None:
    async def scene(server: EdgeServer) -> None:
        for kind in ("none", "weaker"):
            async with device(server, kind) as it:
                asked = wanted(prompt=CHAT, json_schema=CITY, num_logprobs=1, max_tokens=120)
                async with it.write(asked) as writing:
                    parts = [committed async for committed in writing]
                ids = [token for part in parts for token in part.ids]
                assert [entry.id for part in parts for entry in part.logprobs] == ids
                if writing.session.finish == "stop":
                    text = "".join(part.text for part in parts)
                    assert json.loads(text)["city"] in ("Bonn", "Oslo")

    play(scene)


def test_tools_reach_the_prompt() -> None:
    async def prompt_of(server: EdgeServer, tools: str) -> int:
        async with (
            device(server, "none") as it,
            it.write(wanted(prompt=CHAT, tools=tools, max_tokens=1)) as writing,
        ):
            return writing.session.num_prompt

    async def scene(server: EdgeServer) -> None:
        tools = json.dumps([{"type": "function", "function": {"name": "weather"}}])
        assert await prompt_of(server, tools) - await prompt_of(server, "") == len("weather\n")
        with pytest.raises(PeerError, match="tools = "):
            await prompt_of(server, "[")

    play(scene)
