"""A child process answers in order, until it dies."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable

import msgspec
import pytest

from multispin.net.child import Child, ChildDied

# Answers each request with itself, once more; "die" ends it, "halve" sends an answer in two parts.
ECHO = """
import os, sys, time, msgspec
def out(data):
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()
while True:
    body = sys.stdin.buffer.read(int.from_bytes(sys.stdin.buffer.read(4), "little"))
    request = msgspec.msgpack.decode(body)
    if request == "die":
        os._exit(7)
    answer = msgspec.msgpack.encode(2 * request)
    data = len(answer).to_bytes(4, "little") + answer
    half = len(data) // 2 if request == "halve" else 0
    out(data[:half])
    time.sleep(0.05 * bool(half))
    out(data[half:])
"""

Echo = Child[str, str]


def play(scene: Callable[[Echo], Awaitable[None]]) -> None:
    async def main() -> None:
        arguments = (sys.executable, "-c", ECHO)
        child = await Echo.start(arguments, msgspec.msgpack.Decoder(str))
        try:
            async with asyncio.timeout(20):
                await scene(child)
        finally:
            child.kill()
            await child.exit_code()

    asyncio.run(main())


def test_answers_come_in_the_order_of_the_requests() -> None:
    async def scene(child: Echo) -> None:
        texts = ["a", "", "halve", "x" * 300_000, "b"]  # more than a pipe holds
        assert await asyncio.gather(*map(child.ask, texts)) == [2 * text for text in texts]

    play(scene)


def test_an_answer_that_nobody_waits_for_is_no_one_elses() -> None:
    async def scene(child: Echo) -> None:
        child.ask("given up").cancel()
        assert await child.ask("next") == "nextnext"

    play(scene)


def test_whoever_waits_when_it_dies_is_told_and_who_asks_later_too() -> None:
    async def scene(child: Echo) -> None:
        before, last, behind = (child.ask(text) for text in ("before", "die", "behind"))
        assert await before == "beforebefore"
        for answer in (last, behind):
            with pytest.raises(ChildDied):
                await answer
        assert await child.exit_code() == 7
        with pytest.raises(ChildDied):
            await child.ask("late")

    play(scene)


def test_who_waits_for_the_end_may_give_up() -> None:
    async def scene(child: Echo) -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(child.exit_code(), 0.01)
        child.ask("die").cancel()
        assert await child.exit_code() == 7
        child.kill()  # too late, and no error

    play(scene)
