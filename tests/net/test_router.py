"""Texts behind a directory: where they are written, and that they are the same wherever it is."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, get_args

import msgspec
import pytest

from multispin.core.beginning import beginning_of
from multispin.errors import BadInput, MultispinError, PeerError
from multispin.net.device import Device, Request
from multispin.net.line import Line
from multispin.net.link import DeviceLink
from multispin.net.router import IDLE_S, MAX_AVOIDED, MAX_REDIRECTS, Router
from multispin.net.transport import MemoryTransport
from multispin.net.writing import Writing
from multispin.types import Mode
from multispin.wire import frames
from multispin.wire.frames import (
    Error,
    Find,
    Hello,
    Open,
    Opened,
    Redirect,
    Resume,
    Welcome,
    Wish,
)
from tests.net.replicas import Known, Site, site
from tests.net.road import Road, Stretch, serving
from tests.net.test_line import Latest
from tests.net.test_offline import Reader
from tests.net.test_server import wanted
from tests.net.test_writing import cut_after, joined, play, told, undisturbed, until
from tests.sim.virtual_loop import VirtualLoop


def counted(place: Site, name: str) -> int:
    server = place.servers[name]
    assert server is not None
    return server.core.counters.num_committed_tokens


def opened_at(stretch: Stretch, kinds: tuple[type, ...]) -> list[Any]:
    """What of these kinds was sent there, from now on."""
    seen: list[Any] = []
    send = stretch.send

    async def watched(data: bytes) -> None:
        frame = frames.decode_from_device(data)
        if isinstance(frame, kinds):
            seen.append(frame)
        await send(data)

    stretch.send = watched  # type: ignore[method-assign]
    return seen


# --- where a text is written ---------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["none", "lookup", "weaker"])
def test_it_is_written_where_the_directory_says_and_nobody_asks_again(kind: str) -> None:
    async def scene() -> None:
        async with site("a", "b") as place, place.device(kind) as device:
            place.known.servers = ["b", "a"]
            order = wanted(wish=Wish("chat", min_quality=2))
            assert joined(await told(device, order)) == undisturbed()
            assert place.known.asked == [Find(0, beginning_of(order.prompt), order.wish)]
            assert place.dialled == ["b"]
            assert joined(await told(device, wanted())) == undisturbed()
            assert place.dialled == ["b"], "one link serves many texts"

    play(scene())


def test_many_that_need_the_same_replica_at_once_dial_it_once() -> None:
    async def scene() -> None:
        async with site("a", "b") as place, place.device("lookup") as device:
            texts = await asyncio.gather(*(told(device, wanted(seed=s)) for s in range(5)))
            for seed, news in enumerate(texts):
                assert joined(news) == undisturbed(seed=seed)
            assert place.dialled == ["a"]

    play(scene())


def test_one_that_dials_may_leave_without_disturbing_the_other() -> None:
    async def scene() -> None:
        async with site("a") as place, place.device("none") as device:
            impatient = asyncio.create_task(told(device, wanted(seed=1)))
            patient = asyncio.create_task(told(device, wanted()))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            impatient.cancel()
            assert joined(await patient) == undisturbed()
            assert place.dialled == ["a"]

    play(scene())


# --- from one replica to another -----------------------------------------------------------------


@pytest.mark.parametrize("kind", ["none", "lookup", "weaker"])
@pytest.mark.parametrize("mode", get_args(Mode))
def test_a_replica_that_dies_costs_no_token(mode: Mode, kind: str) -> None:
    async def scene() -> None:
        async with site("a", "b", mode=mode) as place, place.device(kind) as device:
            first = place.servers["a"]
            assert first is not None
            async with device.write(wanted()) as writing:
                news = []
                async for committed in writing:
                    news.append(committed)
                    if place.servers["a"]:
                        place.kill("a")
            assert joined(news) == undisturbed()
            assert first.core.counters.num_committed_tokens < 40
            assert counted(place, "b") > 8
            # Once with the hope that it was only the link; then the next one at once.
            assert [(f.last, f.avoid) for f in place.known.asked] == [
                ("", []),
                ("a", []),
                ("a", ["a"]),
            ]

    play(scene())


def test_one_whose_link_was_cut_comes_back_and_resumes() -> None:
    async def scene() -> None:
        async with site("a", "b") as place, place.device() as device:
            news = []
            async with device.write(wanted()) as writing:
                async for committed in writing:
                    news.append(committed)
                    if len(place.stretches["a"]) < 4:
                        place.known.servers = ["b", "a"]  # who now comes first
                        place.cut("a")
            assert joined(news) == undisturbed()
            assert place.dialled == ["a"] * 4
            assert place.servers["a"].engine.num_tokenized == 1  # type: ignore[union-attr]

    play(scene())


@pytest.mark.parametrize("mode", get_args(Mode))
@pytest.mark.parametrize("num_messages", range(6, 12))
def test_links_that_carry_a_few_messages_each(mode: Mode, num_messages: int) -> None:
    """Wherever a text is cut, it goes on there or elsewhere."""

    async def scene() -> None:
        async with site("a", "b", mode=mode) as place, place.device() as device:
            place.prepare = lambda name, stretch: cut_after(num_messages)(stretch)
            assert joined(await told(device, wanted())) == undisturbed()
            assert len(place.dialled) > 3

    play(scene())


def test_a_server_that_takes_it_and_gets_nowhere_is_left() -> None:
    async def scene() -> None:
        async with site("a", "b") as place, place.device("none") as device:
            place.prepare = lambda name, stretch: cut_after(2)(stretch) if name == "a" else None
            assert joined(await told(device, wanted())) == undisturbed()
            assert place.dialled == ["a", "b"]

    play(scene())


def test_the_secret_of_a_session_is_shown_to_the_replica_that_gave_it_alone() -> None:
    async def scene() -> None:
        seen: list[Any] = []
        async with site("a", "b") as place, place.device("none") as device:

            def prepare(name: str, stretch: Stretch) -> None:
                if name == "b":
                    seen.append(opened_at(stretch, (Open, Resume)))

            place.prepare = prepare
            async with device.write(wanted()) as writing:
                async for _ in writing:
                    if place.servers["a"]:
                        place.kill("a")
            [[only]] = seen
            assert isinstance(only, Open) and only.is_placed and only.committed

    play(scene())


@pytest.mark.parametrize("mode", get_args(Mode))
@pytest.mark.parametrize("kind", ["none", "weaker", "same"])
def test_a_drained_replica_hands_over_what_it_writes(mode: Mode, kind: str) -> None:
    async def scene() -> None:
        async with site("a", "b", mode=mode) as place, place.device(kind) as device:
            drained: asyncio.Task[None] | None = None
            news = []
            async with device.write(wanted(max_tokens=200)) as writing:
                async for committed in writing:
                    news.append(committed)
                    if drained is None:
                        drained = asyncio.create_task(place.servers["a"].drain(5.0))  # type: ignore[union-attr]
            ids, text = joined(news)
            assert (ids[:48], len(ids)) == (undisturbed()[0], 200)
            assert "".join(one.text for one in news) == text
            assert counted(place, "b") > 8
            assert place.known.asked[1].avoid == ["a"]
            assert drained is not None
            await drained

    play(scene())


def redirecting(stretch: Stretch, after: int, server: str = "") -> None:
    """In place of that message from the server it has the session go on elsewhere."""
    replacing(stretch, after, Redirect(0, server))


def replacing(stretch: Stretch, after: int, frame: Error | Redirect) -> None:
    receive, left = stretch.receive, after

    async def bent() -> bytes:
        nonlocal left
        data = await receive()
        left -= 1
        return data if left else frames.encode(frame)

    stretch.receive = bent  # type: ignore[method-assign]


@pytest.mark.parametrize("mode", get_args(Mode))
@pytest.mark.parametrize("after", range(2, 9))
def test_redirected_at_any_moment_with_drafts_in_flight(mode: Mode, after: int) -> None:
    async def scene() -> None:
        async with site("a", "b", mode=mode) as place, place.device("same") as device:
            place.prepare = lambda name, stretch: name == "a" and redirecting(stretch, after)
            assert joined(await told(device, wanted())) == undisturbed()
            assert place.dialled == ["a", "b"]
            assert counted(place, "b") > 10

    play(scene())


@pytest.mark.parametrize("code", ["draining", "loading", "overloaded"])
def test_a_text_that_is_given_up_in_its_midst_goes_on_elsewhere(code: str) -> None:
    async def scene() -> None:
        async with site("a", "b") as place, place.device("same") as device:
            error = Error(0, code, "leave", 30.0)
            place.prepare = lambda name, stretch: name == "a" and replacing(stretch, 4, error)
            assert joined(await told(device, wanted())) == undisturbed()
            assert place.dialled == ["a", "b"]

    play(scene())


@pytest.mark.parametrize("code", ["draining", "loading", "overloaded"])
@pytest.mark.parametrize("is_whole_link", [False, True])
def test_who_does_not_take_it_is_avoided_and_nobody_waits(code: str, is_whole_link: bool) -> None:
    async def scene() -> None:
        async with site("a", "b") as place, place.device("none") as device:

            def prepare(name: str, stretch: Stretch) -> None:
                if name == "a":
                    session = None if is_whole_link else 0
                    refusing(stretch, Error(session, code, "not now", 30.0))

            place.prepare = prepare
            loop = asyncio.get_running_loop()
            began = loop.time()
            assert joined(await told(device, wanted())) == undisturbed()
            assert loop.time() - began < 5.0
            assert place.dialled == ["a", "b"]
            assert place.known.asked[1].avoid == ["a"]

    play(scene())


def refusing(stretch: Stretch, answer: Error | Redirect) -> None:
    """Whatever is opened is answered with that."""
    receive, send = stretch.receive, stretch.send
    answers: asyncio.Queue[bytes] = asyncio.Queue()

    async def sending(data: bytes) -> None:
        message = frames.decode_from_device(data)
        if isinstance(message, Hello):
            await send(data)
            answers.put_nowait(await receive())
        elif isinstance(message, Open):
            answers.put_nowait(frames.encode(_for(message, answer)))

    stretch.send, stretch.receive = sending, answers.get  # type: ignore[method-assign]


def _for(message: Open, answer: Error | Redirect) -> Error | Redirect:
    if answer.session is None:
        return answer
    return msgspec.structs.replace(answer, session=message.session)


def test_another_target_does_not_go_on_with_a_text() -> None:
    for changed in ({"target": "other"}, {"fingerprint": "other"}, {"reproducible": False}):

        async def scene(changed: dict[str, Any] = changed) -> None:
            async with site("a", "b", "c") as place, place.device("none") as device:
                other = place.servers["b"]
                assert other is not None
                other.core.info = msgspec.structs.replace(other.core.info, **changed)
                async with device.write(wanted()) as writing:
                    news = []
                    async for committed in writing:
                        news.append(committed)
                        if place.servers["a"]:
                            place.kill("a")
                assert joined(news) == undisturbed()
                assert place.dialled == ["a", "a", "b", "c"]
                assert place.known.asked[-1].avoid == ["a", "b"]

        play(scene())


def test_what_a_drafter_is_worth_is_learned_for_each_target() -> None:
    async def scene() -> None:
        async with site("a", "b") as place, place.device("weaker") as device:
            other = place.servers["b"]
            assert other is not None
            other.core.info = msgspec.structs.replace(other.core.info, target="other")
            for name in ("a", "b", "a"):
                place.known.servers = [name]
                await told(device, wanted())
            assert set(device._calibrations) == {"ngram", "other"}
            seen = [tuple(c.acceptance) for c in device._calibrations.values()]
            assert seen[0] != seen[1], "one has seen twice as much"

    play(scene())


def test_where_only_another_target_is_left_the_text_ends_and_says_so() -> None:
    async def scene() -> None:
        async with site("a", "b") as place, place.device("none") as device:
            other = place.servers["b"]
            assert other is not None
            other.core.info = msgspec.structs.replace(other.core.info, target="other")
            with pytest.raises(PeerError, match="target other") as caught:
                async with device.write(wanted()) as writing:
                    async for _ in writing:
                        place.kill("a")
            assert caught.value.code == "target_changed"

    play(scene())


def test_a_text_that_moves_asks_for_the_target_that_it_has() -> None:
    async def scene() -> None:
        async with site("a", "b") as place, place.device("none") as device:
            order = wanted(wish=Wish(max_cost_per_token=1e-6))
            async with device.write(order) as writing:
                async for _ in writing:
                    if place.servers["a"]:
                        place.kill("a")
            assert place.known.asked[0].wish == order.wish
            assert place.known.asked[-1].wish == Wish(writing.target)

    play(scene())


# --- nobody is left ------------------------------------------------------------------------------


def test_when_nobody_else_is_known_it_waits_and_begins_again() -> None:
    async def scene() -> None:
        async with site("a", "b") as place, place.device("none") as device:
            servers = dict(place.servers)
            loop = asyncio.get_running_loop()
            async with device.write(wanted()) as writing:
                news = []
                async for committed in writing:
                    news.append(committed)
                    if len(news) == 1:
                        place.kill("a")
                        place.kill("b")
                        loop.call_later(0.1, place.servers.update, servers)
            assert joined(news) == undisturbed()
            rounds = [find.avoid for find in place.known.asked]
            assert rounds[:6] == [[], [], ["a"], ["a", "b"], [], ["a"]]

    play(scene())


def test_who_has_begun_waits_for_room() -> None:
    async def scene() -> None:
        async with site("a") as place, place.device("none") as device:
            later = asyncio.get_running_loop().call_later
            async with device.write(wanted()) as writing:
                news = []
                async for committed in writing:
                    news.append(committed)
                    if len(news) == 1:
                        place.known.servers.clear()
                        place.cut("a")
                        later(0.05, place.known.servers.append, "a")
            assert joined(news) == undisturbed()
            assert len(place.known.asked) > 2

    play(scene())


@pytest.mark.parametrize("code", ["infeasible", "unknown_target", "overloaded"])
def test_what_the_directory_refuses_is_told(code: str) -> None:
    async def scene() -> None:
        async with site("a") as place, place.device("none") as device:
            place.known.servers = []
            place.known.refusal = PeerError("not to be had", code=code)
            with pytest.raises(PeerError, match="not to be had") as caught:
                await told(device, wanted())
            assert caught.value.code == code
            assert len(place.known.asked) == 1

    play(scene())


def test_a_directory_whose_replicas_still_load_is_waited_for() -> None:
    async def scene() -> None:
        async with site("a") as place, place.device("none") as device:
            place.known.servers = []
            place.known.refusal = PeerError("not yet", code="loading", retry_after_s=0.01)
            asyncio.get_running_loop().call_later(0.1, place.known.servers.append, "a")
            assert joined(await told(device, wanted())) == undisturbed()
            assert len(place.known.asked) > 2

    play(scene())


@pytest.mark.parametrize("names", ["the same", "new ones"])
def test_a_directory_that_names_whoever_fails_is_asked_less_and_less(names: str) -> None:
    async def scene() -> None:
        known, dialled = Known(), []
        known.rng = Latest()

        async def find(find: Find, *, waits: bool = True) -> Redirect:
            known.asked.append(find)
            return Redirect(0, "a" if names == "the same" else f"a{len(known.asked)}")

        async def dial(name: str, number: int) -> DeviceLink:
            dialled.append(name)
            raise NOBODY

        known.find = find  # type: ignore[method-assign]
        device = Device(Router(known, dial), None)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(60):
                await begun(device)
        num_rounds = 17  # within a minute, one every 5 s at last
        assert len(dialled) == num_rounds * (1 if names == "the same" else MAX_AVOIDED)
        await device.close()

    play_virtually(scene)


def test_sent_in_circles_it_ends_with_a_clear_error() -> None:
    async def scene() -> None:
        async with site("a", "b") as place, place.device("none") as device:
            place.prepare = lambda name, stretch: refusing(stretch, Redirect(0, ""))
            with pytest.raises(PeerError, match="served nowhere") as caught:
                await told(device, wanted())
            assert caught.value.code == "redirected"
            assert len([find for find in place.known.asked if not find.avoid]) <= MAX_REDIRECTS
            assert place.dialled == ["a", "b"]

    play(scene())


def test_a_refused_token_is_told_once_nobody_takes_it() -> None:
    async def scene() -> None:
        async with site("a", "b") as place:
            reached: list[str] = []

            async def dial(name: str, number: int) -> DeviceLink:
                reached.append(name)
                if name == "a" or refuses_all:
                    raise PeerError(f"{name} does not know the token", code="unauthorized")
                return await place.dial(name, number)

            device = Device(Router(place.known, dial), None)
            refuses_all = False
            assert joined(await told(device, wanted())) == undisturbed()
            place.cut("b")
            refuses_all = True
            with pytest.raises(PeerError, match="does not know the token") as caught:
                await told(device, wanted())
            assert caught.value.code == "unauthorized"
            assert reached == ["a", "b", "a", "b"]
            await device.close()

    play(scene())


def test_who_will_not_wait_fails_over_and_fails_only_when_nobody_is_left() -> None:
    async def scene() -> None:
        async with site("a", "b") as place, place.device("none", offline="fail") as device:
            with pytest.raises(PeerError) as caught:
                async with device.write(wanted()) as writing:
                    async for _ in writing:
                        if place.servers["a"]:
                            place.kill("a")
                        elif counted(place, "b") > 8:
                            place.kill("b")
            assert caught.value.code == "unreachable"
            assert place.known.asked[-1].avoid == ["b", "a"]

    play(scene())


# --- without the directory -----------------------------------------------------------------------


def test_while_the_directory_is_gone_texts_go_on_and_resume_where_they_were() -> None:
    async def scene() -> None:
        async with site("a", "b") as place, place.device() as device:
            news = []
            async with device.write(wanted()) as writing:
                async for committed in writing:
                    news.append(committed)
                    place.known.is_up = False
                    if len(place.stretches["a"]) < 3:
                        place.cut("a")
            assert joined(news) == undisturbed()
            assert place.dialled == ["a"] * 3
            assert len(place.known.asked) == 1

    play(scene())


def test_a_text_that_was_sent_away_does_not_go_back() -> None:
    async def scene() -> None:
        async with site("a", "b") as place, place.device("lookup") as device:
            seen: list[Any] = []

            async def return_once(writing: Writing) -> None:
                await until(lambda: writing._seeking is not None)
                await asyncio.sleep(0.05)
                place.known.is_up = True

            def prepare(name: str, stretch: Stretch) -> None:
                if name == "a":
                    redirecting(stretch, 5)
                    seen.extend([opened_at(stretch, (Open, Resume))])

            place.prepare = prepare
            async with device.write(wanted()) as writing:
                news = []
                async for committed in writing:
                    news.append(committed)
                    if len(news) == 1:
                        place.known.is_up = False
                        back = asyncio.create_task(return_once(writing))
            await back
            assert joined(news) == undisturbed()
            assert [len(messages) for messages in seen] == [1]
            assert place.known.asked[1].avoid == ["a"]

    play(scene())


def test_a_text_that_cannot_go_back_waits_for_the_directory_and_new_ones_do_too() -> None:
    async def scene() -> None:
        async with site("a", "b") as place, place.device("lookup") as device:
            loop = asyncio.get_running_loop()
            news = []
            async with device.write(wanted()) as writing:
                async for committed in writing:
                    news.append(committed)
                    if place.servers["a"]:
                        place.known.is_up = False
                        place.kill("a")
                        other = asyncio.create_task(told(device, wanted(seed=2)))
                        loop.call_later(0.5, setattr, place.known, "is_up", True)
            assert joined(news) == undisturbed()
            assert joined(await other) == undisturbed(seed=2)
            assert place.dialled == ["a", "a", "a", "b"], "once before the directory is back"
            # What failed while nobody could say better is not held against the replica.
            assert next(find.avoid for find in place.known.asked if find.last) == []

    play(scene())


def test_meanwhile_a_small_model_goes_on_alone() -> None:
    async def scene() -> None:
        async with site("a", "b") as place, place.device("same", offline="draft") as device:
            reader = Reader()
            async with device.write(wanted(provisional=True)) as writing:
                async for one in writing:
                    reader.take(one)
                    if place.servers["a"]:
                        place.known.is_up = False
                        place.kill("a")
                    elif reader.num_provisional >= 20:
                        place.known.is_up = True
            assert (reader.ids, reader.text) == undisturbed()
            assert reader.num_provisional >= 20 and reader.num_replaced == 0

    play(scene())


@pytest.mark.parametrize("is_shared", [False, True])
@pytest.mark.parametrize("moment", ["writing", "waiting"])
def test_a_device_that_is_closed_keeps_nobody_waiting(moment: str, is_shared: bool) -> None:
    """Whether or not who finds it replicas goes on without it."""

    async def scene() -> None:
        async with site("a") as place, place.device("none") as device:
            if is_shared:
                place.known.close = lambda: asyncio.sleep(0)  # type: ignore[method-assign]
            place.known.rng = Latest()
            async with device.write(wanted(max_tokens=400)) as writing:
                closing = None
                with pytest.raises(PeerError, match="the link is closed"):
                    async for _ in writing:
                        if moment == "waiting" and place.servers["a"]:
                            place.kill("a")
                            asyncio.get_running_loop().call_later(
                                0.05, lambda: tasks.append(asyncio.create_task(device.close()))
                            )
                        elif closing is None and moment == "writing":
                            closing = asyncio.create_task(device.close())
            assert not device.router._links and not device.router._keepers

    tasks: list[asyncio.Task[None]] = []
    play(scene())


# --- from a server to its directory --------------------------------------------------------------


def test_a_replica_sends_a_device_that_nobody_placed_to_the_directory() -> None:
    async def scene() -> None:
        async with site("a", "b", directory="there") as place:
            directory = Directing(place.known)
            reached: list[tuple[str, int]] = []

            async def dial(name: str, number: int) -> DeviceLink:
                reached.append((name, number))
                if name == "there":
                    await asyncio.sleep(0.02)  # both texts are sent there
                    return await directory.dial()
                return await place.dial(name, number)

            first = await place.dial("a", 0)
            device = Device(Router(Line(first, [lambda: dial("a", 0)]), dial), None)
            texts = await asyncio.gather(told(device, wanted()), told(device, wanted(seed=2)))
            assert [joined(news) for news in texts] == [undisturbed(), undisturbed(seed=2)]
            assert reached == [("there", 1), ("a", 2)]
            assert not first.is_up, "the line is the directory's now"
            assert device.line.welcome.is_directory
            directory.cut()  # which is dialled again as any server is
            await until(lambda: len(reached) == 3)
            assert joined(await told(device, wanted())) == undisturbed()
            await device.close()

    play(scene())


@pytest.mark.parametrize("directory", ["", "b"])
def test_a_replica_that_names_no_directory_is_a_clear_error(directory: str) -> None:
    async def scene() -> None:
        async with site("a", "b", directory=directory or "x") as place:
            first = await place.dial("a", 0)
            if not directory:
                refusing(place.stretches["a"][0], Redirect(0, ""))
            device = Device(Router(Line(first, [lambda: place.dial("a", 0)]), place.dial), None)
            with pytest.raises(PeerError, match="names none" if not directory else "no directory"):
                await told(device, wanted())
            await device.close()

    play(scene())


class Directing:
    """A directory at the other end of links, for each a task."""

    def __init__(self, known: Known, **fields: Any) -> None:
        self.known = known
        self.welcome = Welcome(1, "x", "p", 300, [256], 512, 32, True, "window", is_directory=True)
        self.fars: list[MemoryTransport] = []
        self.hellos: list[Hello] = []
        self.is_silent = False

    async def dial(self, **hello: Any) -> DeviceLink:
        near, far = MemoryTransport.pair()
        far.receiver = lambda data: data is not None and self._take(far, data)  # type: ignore[assignment]
        self.fars.append(near)
        return await DeviceLink.greet(near, "none", None, **hello)

    def _take(self, far: Any, data: bytes) -> None:
        frame = frames.decode_from_device(data)
        if isinstance(frame, Hello):
            self.hellos.append(frame)
            far.write(frames.encode(self.welcome))
        elif isinstance(frame, Find) and not self.is_silent:
            self._answering = asyncio.ensure_future(self._answer(far, frame))

    async def _answer(self, far: Any, find: Find) -> None:
        try:
            answer: Any = await self.known.find(find, waits=False)
            answer = Redirect(find.session, answer.server)
        except PeerError as error:
            answer = Error.of(find.session, error)
        far.write(frames.encode(answer))

    def cut(self) -> None:
        self.fars[-1]._far.close()


# --- over a line, on a virtual clock -------------------------------------------------------------


def play_virtually(scene: Callable[[], Coroutine[Any, Any, None]]) -> None:
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(scene())


class Fakes:
    """Replicas that answer what they were told to, in turn: an error that is raised to who dials,
    another to who opens. ``tried`` says when."""

    def __init__(self, **answers: list[MultispinError | Error]) -> None:
        self.answers = answers
        self.tried: list[tuple[str, float]] = []
        self.links: list[DeviceLink] = []
        self.keeps = True  # what it opened

    async def dial(self, name: str, number: int) -> DeviceLink:
        answers = self.answers[name]
        if answers and isinstance(answers[0], MultispinError):
            self._note(name)
            raise answers.pop(0)  # type: ignore[misc]
        near, far = MemoryTransport.pair()
        far.write(frames.encode(Welcome(1, "x", "p", 300, [256], 512, 32, True, "window")))

        def take(data: bytes | None) -> None:
            if data is None or not isinstance(message := frames.decode_from_device(data), Open):
                return
            self._note(name)
            said = Opened(message.session, frames.pack_ids([1, 2], 9), 0)
            far.write(frames.encode(_for(message, answers.pop(0)) if answers else said))  # type: ignore[arg-type]
            if not self.keeps:
                far.write(frames.encode(Redirect(message.session, "")))

        far.receiver = take
        self.links.append(await DeviceLink.greet(near, "none", None, number=number))
        return self.links[-1]

    def _note(self, name: str) -> None:
        assert len(self.tried) < 1000, "without a pause, time does not go on here"
        self.tried.append((name, asyncio.get_running_loop().time()))


async def begun(device: Device, order: Request | None = None) -> None:
    async with device.write(order or wanted()):
        pass


NOBODY = BadInput("--server", "there", "nobody answers", code="unreachable")
FULL = Error(0, "draining", "leave", 7.0)


def test_waits_come_only_when_nobody_is_left_and_become_longer() -> None:
    async def scene() -> None:
        fakes = Fakes(a=[NOBODY, FULL, FULL], b=[FULL, FULL, FULL])
        known = Known("a", "b")
        known.rng = Latest()
        known.refusal = PeerError("nobody has room", code="overloaded", retry_after_s=1.0)
        device = Device(Router(known, fakes.dial), None)
        await begun(device)
        expected = [("a", 0.0), ("b", 0.0), ("a", 1.1), ("b", 1.1), ("a", 2.3), ("b", 2.3)]
        expected += [("a", 3.7)]
        assert [name for name, _ in fakes.tried] == [name for name, _ in expected]
        assert [at for _, at in fakes.tried] == pytest.approx([at for _, at in expected])
        await device.close()

    play_virtually(scene)


def test_a_text_that_everybody_takes_and_nobody_keeps_is_offered_less_and_less() -> None:
    async def scene() -> None:
        fakes, known = Fakes(a=[], b=[]), Known("a", "b")
        fakes.keeps, known.rng = False, Latest()
        device = Device(Router(known, fakes.dial), None)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(60):
                await told(device, wanted())
        times = [at for _, at in fakes.tried]
        assert times[:4] == [0.0] * 4  # to begin with there is no hurry to wait
        assert len(times) == 4 + 16  # within a minute, one every 5 s at last
        await device.close()

    play_virtually(scene)


def test_who_has_not_begun_is_told_of_a_full_directory_once_nothing_else_is_the_matter() -> None:
    async def scene() -> None:
        fakes, known = Fakes(a=[NOBODY]), Known("a")
        known.rng = Latest()
        device = Device(Router(known, fakes.dial), None)
        asyncio.get_running_loop().call_later(0.01, known.servers.clear)
        async with asyncio.timeout(60):
            with pytest.raises(PeerError, match="nobody has room"):
                await begun(device)
        await device.close()

    play_virtually(scene)


def test_a_link_that_carries_no_text_for_a_while_is_closed() -> None:
    async def scene() -> None:
        fakes = Fakes(a=[], b=[])
        known = Known("a", "b")
        device = Device(Router(known, fakes.dial), None)
        await begun(device)
        for _ in range(3):
            await asyncio.sleep(0.9 * IDLE_S)
            await begun(device)
        assert [link.is_up for link in fakes.links] == [True]
        async with device.write(wanted()):
            await asyncio.sleep(5 * IDLE_S)
            assert fakes.links[0].is_up, "one that is in use stays"
        await asyncio.sleep(2.1 * IDLE_S)
        assert not fakes.links[0].is_up
        assert device.router._numbers == {0}
        await begun(device)
        assert len(fakes.links) == 2
        await device.close()

    play_virtually(scene)


def test_over_a_line_the_directory_is_asked_and_dialled_again_when_it_is_gone() -> None:
    async def scene() -> None:
        fakes, known = Fakes(a=[]), Known("a")
        directory = Directing(known)
        dials = [directory.dial]
        clock = asyncio.get_running_loop().time
        line = Line(await directory.dial(cell="north"), dials, clock=clock, rng=Latest())
        assert directory.hellos[0].cell == "north"
        device = Device(Router(line, fakes.dial), None)
        assert device.outlasts_links and device.router.has_directory
        await begun(device)
        directory.cut()
        await asyncio.sleep(0)
        await begun(device, wanted(wish=Wish("chat")))
        assert clock() == pytest.approx(0.1)
        assert [find.session for find in known.asked] == [0, 0]
        assert known.asked[1].wish == Wish("chat")
        assert len(fakes.links) == 1
        await device.close()

    play_virtually(scene)


def test_a_directory_may_die_while_it_is_asked_and_come_back_with_other_targets() -> None:
    async def scene() -> None:
        fakes, known = Fakes(a=[]), Known("a")
        directory = Directing(known)
        line = Line(await directory.dial(), [directory.dial], rng=Latest())
        device = Device(Router(line, fakes.dial), None)
        directory.is_silent = True
        asking = asyncio.create_task(begun(device))
        await asyncio.sleep(1)
        directory.is_silent = False
        directory.welcome = msgspec.structs.replace(directory.welcome, target="y", fingerprint="q")
        directory.cut()
        await asking
        assert len(known.asked) == 1 and line.welcome.target == "y"
        await device.close()

    play_virtually(scene)


def test_a_directory_that_does_not_answer_is_a_clear_error() -> None:
    async def scene() -> None:
        directory = Directing(Known("a"))
        directory.is_silent = True
        device = Device(Router(Line(await directory.dial()), Fakes(a=[]).dial), None)
        with pytest.raises(PeerError, match="did not answer within 10 s"):
            await begun(device)
        await device.close()

    play_virtually(scene)


# --- wishes at a server that is alone ------------------------------------------------------------


def test_a_server_that_is_alone_grants_what_it_has_and_says_what_it_cannot() -> None:
    async def scene() -> None:
        async with serving() as server, Road(server).device("none") as device:
            assert joined(await told(device, wanted(wish=Wish("ngram")))) == undisturbed()
            with pytest.raises(BadInput, match="target = chat: this server has ngram only") as no:
                await told(device, wanted(wish=Wish("chat")))
            assert no.value.code == "unknown_target"
            with pytest.raises(BadInput, match=r"max_cost_per_token = 0\.5: goes with a directory"):
                await told(device, wanted(wish=Wish(max_cost_per_token=0.5)))
            with pytest.raises(BadInput, match="min_quality = 2: goes with a directory"):
                await told(device, wanted(wish=Wish("ngram", min_quality=2)))

    play(scene())
