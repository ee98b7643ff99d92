"""A watch link: statuses as they come, None when it is lost, and another link after that."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path

import pytest

from multispin.errors import PeerError
from multispin.net import watching
from multispin.net.address import parse_address
from multispin.net.watching import ReplicaWatch
from multispin.wire.replica import Budgets, Status
from tests.net.fake_replica import FakeReplica, standing, until
from tests.net.road import Eager


class Notes:
    """What a watch told, in order."""

    def __init__(self) -> None:
        self.told: list[Status | None] = []

    @contextlib.asynccontextmanager
    async def watch(self, server: str, **credentials: str) -> AsyncIterator[ReplicaWatch]:
        address = parse_address(server, **credentials)  # type: ignore[arg-type]
        watch = ReplicaWatch(address, self.told.append, rng=Eager())
        try:
            yield watch
        finally:
            await watch.close()


def play(scene: Callable[[], Coroutine[None, None, None]]) -> None:
    async def main() -> None:
        async with asyncio.timeout(30):
            await scene()

    asyncio.run(main())


def test_each_status_is_told_and_the_end_at_once() -> None:
    async def scene() -> None:
        notes = Notes()
        async with standing(FakeReplica()) as fake, notes.watch(fake.address) as watch:
            await until(lambda: watch.status)
            first = fake.status
            await fake.change(num_sessions=3)
            await until(lambda: len(notes.told) == 2)
            assert notes.told == [first, fake.status]
            assert (watch.status, watch.trouble) == (fake.status, "")
            fake.cut()
            await until(lambda: len(notes.told) >= 3)
            assert notes.told[2] is None
            await until(lambda: len(notes.told) >= 4)  # and it is back
            assert notes.told[3] == fake.status

    play(scene)


def test_a_replica_that_comes_later_and_comes_back_is_found() -> None:
    async def scene() -> None:
        notes, fake = Notes(), FakeReplica()
        async with standing(fake):
            pass
        async with notes.watch(fake.address) as watch:
            await until(lambda: "no connection yet" not in watch.trouble)
            assert (watch.status, notes.told) == (None, [])
            async with standing(fake, int(fake.address.partition(":")[2])):
                await until(lambda: watch.status == fake.status)
            await until(lambda: watch.status is None)
            assert notes.told == [fake.status, None]

    play(scene)


def test_documents_are_answered_or_refused_when_the_link_is_lost() -> None:
    async def scene() -> None:
        async with standing(FakeReplica()) as fake, Notes().watch(fake.address) as watch:
            with pytest.raises(PeerError, match="no connection yet"):
                await watch.ask("cell")
            await until(lambda: watch.status)
            fake.documents["cell"] = b"{}"
            assert await watch.ask("cell") == b"{}"
            asking = [asyncio.create_task(watch.ask("metrics")) for _ in range(3)]
            await until(lambda: len(fake.heard) == 2)
            asking[0].cancel()  # whoever gives up leaves the others their answer
            fake.documents["metrics"] = b"# late"
            await fake.say(watching.replica.encode(watching.Told("metrics", b"# late")))
            assert await asyncio.gather(*asking[1:]) == [b"# late", b"# late"]
            del fake.documents["metrics"]
            again = asyncio.create_task(watch.ask("metrics"))
            await until(lambda: len(fake.heard) == 3)
            fake.cut()
            with pytest.raises(PeerError) as refused:
                await again
            assert refused.value.code == "unreachable"

    play(scene)


def test_budgets_are_sent() -> None:
    async def scene() -> None:
        async with standing(FakeReplica()) as fake, Notes().watch(fake.address) as watch:
            await watch.send(Budgets({"north": 1.0}))  # nobody hears it
            await until(lambda: watch.status)
            await watch.send(Budgets({"north": 2.0}))
            await until(lambda: fake.heard)
            assert fake.heard == [Budgets({"north": 2.0})]

    play(scene)


@pytest.mark.parametrize("said", [b"", b"\xff" * 9, b"\x92\x09\x01"])
def test_garbage_ends_the_link_and_not_the_watch(said: bytes) -> None:
    async def scene() -> None:
        notes = Notes()
        async with standing(FakeReplica()) as fake, notes.watch(fake.address) as watch:
            await until(lambda: watch.status)
            await fake.say(said)
            await until(lambda: None in notes.told)
            await until(lambda: watch.status)  # anew

    play(scene)


def test_a_silent_replica_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "SILENT_S", 0.05)

    async def scene() -> None:
        notes = Notes()
        async with standing(FakeReplica()) as fake, notes.watch(fake.address):
            await until(lambda: None in notes.told)
            assert notes.told[0] == fake.status

    play(scene)


class Noted(Eager):
    """How long each wait might have been."""

    def __init__(self) -> None:
        super().__init__()
        self.bounds: list[float] = []

    def uniform(self, a: float, b: float) -> float:
        self.bounds.append(b)
        return super().uniform(a, b)


@pytest.mark.parametrize(
    ("lasted_s", "bounds"), [(0.0, [0.1, 0.2, 0.4, 0.8, 1.0, 1.0]), (10.0, [0.1] * 5)]
)
def test_attempts_become_rarer_while_links_do_not_last(
    lasted_s: float, bounds: list[float]
) -> None:
    async def scene() -> None:
        rng, moments = Noted(), itertools.count(0.0, lasted_s)
        address = parse_address("127.0.0.1:1")
        watch = ReplicaWatch(address, lambda _: None, clock=lambda: next(moments), rng=rng)
        await until(lambda: len(rng.bounds) >= len(bounds))
        await watch.close()
        assert rng.bounds[: len(bounds)] == bounds

    play(scene)


def test_it_shows_its_token_and_tries_on_where_that_is_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "token"
    file.write_text("msp_wrong")
    file.chmod(0o600)

    async def scene() -> None:
        async with (
            standing(FakeReplica(token="msp_right")) as fake,
            Notes().watch(fake.address, token_file=str(file)) as watch,
        ):
            await until(lambda: "refuses the connection: no" in watch.trouble)
            assert watch.status is None
            file.write_text("msp_right")
            await until(lambda: watch.status)

    with caplog.at_level(logging.WARNING, "multispin.watching"):
        play(scene)
    refusals = [record for record in caplog.records if record.message == "replica_lost"]
    assert len(refusals) == 1  # once, however often it was tried
    assert "msp_" not in caplog.text
