"""A line: how it waits for the next link, and what it tells those who wait with it."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Awaitable, Callable, Sequence

import pytest

from multispin.errors import BadInput, MultispinError, PeerError
from multispin.net.line import FIRST_WAIT_S, MOST_WAIT_S, Backoff, Change, Line
from multispin.net.link import DeviceLink
from multispin.net.transport import MemoryTransport
from multispin.wire.frames import Error, Welcome, encode
from tests.sim.virtual_loop import VirtualLoop

WELCOME = Welcome(1, "target", "print", 300, [256], 512, 32, True, "window")
NOBODY = BadInput("--server", "there", "nobody answers", code="unreachable")


class Latest(random.Random):
    """Always as long as it may be."""

    def uniform(self, a: float, b: float) -> float:
        return b


class Far:
    """A server that says welcome, or what it was told to say; and when it was dialled."""

    def __init__(self, *answers: Welcome | MultispinError) -> None:
        self.answers = list(answers)
        self.dialled_at: list[float] = []
        self.ends: list[MemoryTransport] = []

    async def dial(self) -> DeviceLink:
        self.dialled_at.append(asyncio.get_running_loop().time())
        answer = self.answers.pop(0) if self.answers else WELCOME
        if isinstance(answer, MultispinError):
            raise answer
        near, far = MemoryTransport.pair()
        far.write(encode(answer))
        self.ends.append(near)
        return await DeviceLink.greet(near, "none", None)

    def say(self, error: Error) -> None:
        """On the newest link."""
        self.ends[-1]._far.write(encode(error))

    def cut(self) -> None:
        self.ends[-1]._far.close()


def play(scene: Callable[[], Awaitable[None]]) -> None:
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(scene())  # type: ignore[arg-type]


async def line_to(*fars: Far, rng: random.Random | None = None) -> Line:
    link = await fars[0].dial()
    dials: Sequence[Callable[[], Awaitable[DeviceLink]]] = [far.dial for far in fars]
    return Line(link, dials, clock=asyncio.get_running_loop().time, rng=rng or Latest())


def test_waits_are_anything_up_to_a_bound_that_doubles() -> None:
    backoff, bound_s = Backoff(random.Random(3)), FIRST_WAIT_S
    assert (FIRST_WAIT_S, MOST_WAIT_S) == (0.1, 5.0)
    for _ in range(12):
        assert 0 <= backoff.next_s() <= bound_s
        bound_s = min(2 * bound_s, MOST_WAIT_S)
    assert bound_s == MOST_WAIT_S
    many = [backoff.next_s() for _ in range(2000)]
    assert min(many) < 0.02 * MOST_WAIT_S
    assert 0.98 * MOST_WAIT_S < max(many) <= MOST_WAIT_S
    assert sum(many) / len(many) == pytest.approx(MOST_WAIT_S / 2, rel=0.05)


@pytest.mark.parametrize("asked", [-1.0, float("nan"), 1e9, float("inf")])
def test_a_server_cannot_send_a_device_away_for_ever(asked: float) -> None:
    assert 0 <= Backoff(Latest()).next_s(asked) <= 600.1


def test_attempts_become_rarer_until_one_succeeds() -> None:
    async def scene() -> None:
        far = Far(WELCOME, *[NOBODY] * 9)
        line = await line_to(far)
        await asyncio.sleep(5)
        far.cut()
        await asyncio.sleep(0.01)
        assert (await line.link()).is_up and line.is_up
        waits = [b - a for a, b in itertools.pairwise([5.0, *far.dialled_at[1:]])]
        expected = [min(FIRST_WAIT_S * 2**n, MOST_WAIT_S) for n in range(10)]
        assert waits == pytest.approx(expected)
        await line.close()

    play(scene)


def test_links_that_are_cut_at_once_are_not_sought_ever_faster() -> None:
    async def scene() -> None:
        far = Far()
        line = await line_to(far)
        for _ in range(12):
            far.cut()
            await asyncio.sleep(0.01)
            await line.link()
        assert far.dialled_at[-1] > 30
        await asyncio.sleep(20)  # one that lasts
        before = asyncio.get_running_loop().time()
        far.cut()
        await asyncio.sleep(0.01)
        await line.link()
        assert far.dialled_at[-1] - before == pytest.approx(FIRST_WAIT_S)
        await line.close()

    play(scene)


def test_who_is_told_when_to_come_back_does_not_come_before() -> None:
    async def scene() -> None:
        busy = PeerError("loading", code="loading", retry_after_s=7.0)
        far = Far(WELCOME, busy)
        line = await line_to(far, rng=random.Random(1))
        far.say(Error(None, "draining", "the server is being stopped", 3.0))
        await asyncio.sleep(0.01)
        assert not line.is_up and "being stopped" in line.trouble
        await line.link()
        assert 3.0 <= far.dialled_at[1] <= 3.2
        assert 7.0 <= far.dialled_at[2] - far.dialled_at[1] <= 7.3
        await line.close()

    play(scene)


def test_one_server_gone_the_next_one_is_asked() -> None:
    async def scene() -> None:
        first, second = Far(WELCOME, *[NOBODY] * 100), Far()
        line = await line_to(first, second)
        first.cut()
        await asyncio.sleep(0.01)
        assert (await line.link()).is_up
        assert (len(first.dialled_at), len(second.dialled_at)) == (2, 1)
        second.cut()  # which is asked first now
        await asyncio.sleep(0.01)
        await line.link()
        assert (len(first.dialled_at), len(second.dialled_at)) == (2, 2)
        await line.close()

    play(scene)


def test_another_server_is_asked_before_one_that_said_later() -> None:
    async def scene() -> None:
        first, second = Far(), Far(WELCOME, WELCOME)
        line = await line_to(first, second)
        first.say(Error(None, "draining", "the server is being stopped", 30.0))
        await asyncio.sleep(0.01)
        await line.link()
        assert second.dialled_at == pytest.approx([FIRST_WAIT_S])
        second.say(Error(None, "draining", "the server is being stopped", 60.0))
        await asyncio.sleep(0.01)
        await line.link()
        assert 30.0 <= first.dialled_at[1] <= 31.0
        await line.close()

    play(scene)


@pytest.mark.parametrize(
    "refusal",
    [
        PeerError("revoked", code="unauthorized"),
        Welcome(1, "other", "print", 300, [256], 512, 32, True, "window"),
        Welcome(1, "target", "other", 300, [256], 512, 32, True, "window"),
    ],
)
def test_what_waiting_does_not_cure_is_told_and_tried_again(
    refusal: Welcome | MultispinError,
) -> None:
    async def scene() -> None:
        far = Far(WELCOME, refusal, refusal)
        line = await line_to(far)
        changes: list[Change] = []
        line.on_change = changes.append
        far.cut()
        await asyncio.sleep(0.01)
        with pytest.raises(PeerError) as caught:
            await line.link()
        assert caught.value.code in ("unauthorized", "target_changed")
        assert line.trouble == str(caught.value)
        await asyncio.sleep(1)  # somebody has put it right
        assert (await line.link()).is_up and line.trouble == ""
        assert [change.is_up for change in changes] == [False, False, True]
        assert all(bool(change.reason) is not change.is_up for change in changes)
        await line.close()

    play(scene)


def test_without_another_link_to_wait_for_the_loss_is_told() -> None:
    async def scene() -> None:
        far = Far()
        line = Line(await far.dial())
        assert not line.returns
        far.say(Error(None, "abusive", "cut off", 4.0))
        await asyncio.sleep(0.01)
        with pytest.raises(PeerError) as caught:
            await line.link()
        assert (caught.value.code, caught.value.retry_after_s) == ("abusive", 4.0)
        await line.close()

    play(scene)


def test_closing_wakes_whoever_waits() -> None:
    async def scene() -> None:
        far = Far(WELCOME, *[NOBODY] * 100)
        line = await line_to(far)
        far.cut()
        await asyncio.sleep(1)
        waiting = asyncio.create_task(line.link())
        await asyncio.sleep(1)
        await line.close()
        with pytest.raises(PeerError):
            await waiting
        num_dialled = len(far.dialled_at)
        await asyncio.sleep(60)
        assert len(far.dialled_at) == num_dialled

    play(scene)


def test_whoever_is_cancelled_while_closing_knows_it() -> None:
    async def scene() -> None:
        line = await line_to(Far())
        closing = asyncio.create_task(line.close())
        await asyncio.sleep(0)
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing

    play(scene)


def test_the_link_is_closed_even_if_whoever_is_told_of_it_fails() -> None:
    async def scene() -> None:
        far = Far()
        line = await line_to(far)

        def fail(change: Change) -> None:
            raise BrokenPipeError

        line.on_change = fail
        far.cut()
        await asyncio.sleep(30)
        closed: list[bool] = []
        close = line._link.close

        async def noted() -> None:
            closed.append(True)
            await close()

        line._link.close = noted  # type: ignore[method-assign]
        with pytest.raises(BrokenPipeError):
            await line.close()
        assert closed == [True]

    play(scene)
