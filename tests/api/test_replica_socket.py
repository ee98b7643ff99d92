"""`/v1/replica`: the status is the state, watchers steer, and a bad one harms nobody."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
import websockets.asyncio.client
import websockets.exceptions

from multispin.api import replica_socket
from multispin.api.app import LOADING, ServerState, create_app
from multispin.api.replica_socket import ReplicaSocket
from multispin.api.serving import Protection, address_of, bind, serve_app
from multispin.core.cells import MAX_NAME
from multispin.core.controller import ControlSettings
from multispin.core.limits import ServerLimits
from multispin.core.welcome import welcome
from multispin.net.engine_process import LocalEngine
from multispin.net.server import EdgeServer
from multispin.net.server_link import MAX_UNSENT
from multispin.net.tokens import Tokens
from multispin.wire.frames import Hello
from multispin.wire.replica import (
    WATCH_PATH,
    Ask,
    Budgets,
    FromReplica,
    FromWatcher,
    Status,
    Told,
    decode_from_replica,
    encode,
)
from tests.core.harness import new_engine
from tests.identity import add
from tests.net.raw import HELLO, Served, play, until


class Watcher:
    def __init__(self, socket: websockets.asyncio.client.ClientConnection) -> None:
        self.socket = socket

    @classmethod
    async def connect(cls, address: str, **headers: str) -> Watcher:
        url = f"ws://{address}{WATCH_PATH}"
        connect = websockets.asyncio.client.connect
        return cls(await connect(url, compression=None, proxy=None, additional_headers=headers))

    async def send(self, message: FromWatcher) -> None:
        await self.socket.send(encode(message))

    async def receive(self) -> FromReplica:
        return decode_from_replica(await self.socket.recv(decode=False))

    async def status(self) -> Status:
        while not isinstance(message := await self.receive(), Status):
            pass
        return message

    async def told(self) -> Told:
        while not isinstance(message := await self.receive(), Told):
            pass
        return message

    async def is_cut_off(self) -> None:
        with pytest.raises(websockets.exceptions.ConnectionClosed):
            while True:
                await self.receive()

    async def leave(self) -> None:
        await self.socket.close()


def test_the_status_is_the_state() -> None:
    async def scene(it: Served) -> None:
        core = it.server.core
        devices = [await it.connect(HELLO) for _ in range(3)]
        num_tokens = len(await devices[0].text(9, max_tokens=100))
        for device in devices:
            await device.open()  # which waits for a draft
        watcher = await Watcher.connect(it.address)
        first = await watcher.status()
        assert (first.name, first.condition) == (core.info.target, "ok")
        assert first.welcome == welcome(core)
        assert (first.num_sessions, first.max_sessions) == (3, 8)
        assert first.num_committed_tokens == num_tokens
        fit = core.controller.fit
        fitted = first.pass_fixed_s, first.pass_s_per_session, first.pass_s_per_row
        assert fitted == (fit.fixed_s, fit.per_device_s, fit.per_token_s)
        assert 0 < first.s_per_verdict < 10
        for device in devices:
            await device.leave()
        await it.is_empty()
        status = await watcher.status()
        while status.num_sessions:
            status = await watcher.status()
        assert status.cells == []
        await watcher.leave()

    play(scene)


def test_a_drain_is_told_before_anybody_is_handed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replica_socket, "LOOK_S", 60.0)

    async def scene(it: Served) -> None:
        device = await it.connect(HELLO)
        await device.open(is_placed=True)
        watcher = await Watcher.connect(it.address)
        assert (await watcher.status()).condition == "ok"
        draining = asyncio.create_task(it.server.drain(5.0))
        status = await watcher.status()
        assert (status.condition, status.num_sessions) == ("draining", 1)
        await draining
        await watcher.leave()

    play(scene, directory="127.0.0.1:1")


def test_documents_are_what_the_pages_say() -> None:
    async def scene(it: Served) -> None:
        watcher = await Watcher.connect(it.address)
        for _ in range(3):
            await watcher.send(Ask("cell"))
            await watcher.send(Ask("metrics"))
        for _ in range(3):
            told = await watcher.told()
            assert told.document == "cell"
            assert json.loads(told.body)["target"] == it.server.core.info.target
            told = await watcher.told()
            assert told.document == "metrics"
            assert b"\nmultispin_sessions 0.0\n" in told.body
        await watcher.leave()

    play(scene)


@pytest.mark.parametrize(
    "garbage",
    [
        b"",
        b"\xc1",
        b"\x92\x01\xa5nobody"[:-1],
        encode(Told("cell", b"")),
        b"\x92\x03\x81\xa1a\xcb\x7f\xf8" + bytes(6),  # a budget that is no number
        encode(Budgets({"a": -1.0})),
        encode(Budgets({"x" * (MAX_NAME + 1): 1.0})),
        b"\x93" * 10_000,
        bytes(1 << 20),
        "text",
    ],
    ids=range(10),
)
def test_garbage_closes_that_socket_only(garbage: bytes | str) -> None:
    async def scene(it: Served) -> None:
        device = await it.connect(HELLO)
        await device.open()
        good, bad = await Watcher.connect(it.address), await Watcher.connect(it.address)
        await bad.socket.send(garbage)
        await bad.is_cut_off()
        assert sum(it.telemetry.refusals.values()) == 1
        assert (await good.status()).num_sessions == 1
        assert (await good.status()).num_sessions == 1
        assert it.server.core.controller.budgets == {}
        await good.leave()

    play(scene)


class Stuck:
    """A transport whose other end reads nothing, but for a while; and sends without end."""

    address = "10.0.0.1"

    def __init__(self) -> None:
        self.num_unsent = 0
        self.receiver = None
        self.is_paused = self.is_closed = False

    def write(self, data: bytes) -> None:
        self.num_unsent += len(data)

    def pause(self, is_paused: bool) -> None:
        self.is_paused = is_paused

    def close(self) -> None:
        self.is_closed = True

    def abort(self) -> None:
        self.is_closed = True
        asyncio.get_running_loop().call_soon(self.receiver, None)


def test_who_does_not_read_is_cut_off_and_who_asks_too_much_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(replica_socket, "ANSWER_S", 0.0)

    async def main() -> None:
        page = ReplicaSocket(ServerState(), {"cell": lambda: bytes(100_000)})
        stuck = Stuck()
        serving = asyncio.create_task(page.serve(stuck))
        await asyncio.sleep(0.01)
        for _ in range(100):
            if stuck.is_closed:
                break
            while not stuck.is_paused:  # as a network does
                stuck.receiver(encode(Ask("cell")))
            await asyncio.sleep(0.001)
        await asyncio.wait_for(serving, 5)
        assert stuck.is_closed
        assert stuck.num_unsent <= MAX_UNSENT + 101_000
        assert not page._watchers

    asyncio.run(main())


def test_only_so_many_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replica_socket, "MAX_WATCHERS", 2)

    async def scene(it: Served) -> None:
        watchers = [await Watcher.connect(it.address) for _ in range(3)]
        await watchers[2].is_cut_off()
        await watchers[0].status()
        await watchers[0].leave()
        await until(lambda: it.telemetry.refusals)
        again = await Watcher.connect(it.address)
        await again.status()
        for watcher in (again, watchers[1]):
            await watcher.leave()

    play(scene)


def test_it_is_watched_while_it_loads_and_while_its_engine_is_lost() -> None:
    async def main() -> None:
        control = ControlSettings("heterogeneous")
        state = ServerState(name="chat-0")
        listening = bind("127.0.0.1", 0)
        stop = asyncio.Event()
        serving = asyncio.create_task(serve_app(create_app(state), listening, stop.wait()))
        watcher = await Watcher.connect(address_of(listening))
        loading = await watcher.status()
        assert (loading.name, loading.condition, loading.welcome) == ("chat-0", "loading", None)
        await watcher.send(Ask("cell"))
        assert b"loaded" in (await watcher.told()).body
        await watcher.send(Budgets({"site": 7e3}))
        await until(lambda: state.budgets)
        engine = LocalEngine(new_engine())
        state.begin(EdgeServer(engine, ServerLimits(control=control), observers=[state.telemetry]))
        status = await watcher.status()
        while status.condition == "loading":
            status = await watcher.status()
        assert (status.name, status.condition) == ("chat-0", "ok")
        assert state.server is not None
        state.server.core.connect("link", 1.0, cell="site")  # it knows what was said before
        engine.ready = False
        while status.condition != "engine_lost":
            status = await watcher.status()
        [cell] = status.cells
        assert (cell.cell, cell.num_devices, cell.budget) == ("site", 0, 7e3)
        engine.ready = True
        assert (await watcher.status()).condition == "ok"
        await watcher.leave()
        stop.set()
        await serving

    asyncio.run(main())


def test_budgets_reach_the_devices_of_their_cell() -> None:
    async def scene(it: Served) -> None:
        watcher = await Watcher.connect(it.address)
        await watcher.send(Budgets({"east": 9_000.0}))
        await until(lambda: it.server.core.controller.budgets)
        rates = {}
        for name in ("east", "west"):
            device = await it.connect(Hello(1, "lookup", cell=name))
            opened = await device.open(draft_length=8, max_tokens=400)
            rates[name] = opened.upload_bits_per_s
        assert rates == {"east": 9_000, "west": 20_000}
        while len((status := await watcher.status()).cells) < 2:
            pass
        told = {cell.cell: (cell.num_devices, cell.budget) for cell in status.cells}
        assert told == {"east": (1, 9_000.0), "west": (1, 20_000.0)}
        await watcher.send(Budgets({"west": 0.0}))  # the other stays
        await until(lambda: len(it.server.core.controller.budgets) == 2)
        device = await it.connect(Hello(1, "lookup", cell="west"))
        opened = await device.open(draft_length=8)
        assert (opened.draft_length, opened.upload_bits_per_s) == (0, 1)
        await watcher.leave()

    play(scene, control=ControlSettings("heterogeneous", 20_000.0))


def test_who_watches_needs_a_token_that_operates(tmp_path: Path) -> None:
    file = tmp_path / "tokens.json"
    tokens = {scope: add(file, scope, scope) for scope in ("generate", "operate")}

    async def refused(it: Served, path: str = WATCH_PATH, **headers: str) -> int:
        with pytest.raises(websockets.exceptions.InvalidStatus) as told:
            await websockets.asyncio.client.connect(
                f"ws://{it.address}{path}", additional_headers=headers, proxy=None
            )
        return told.value.response.status_code

    async def scene(it: Served) -> None:
        operate = {"Authorization": f"Bearer {tokens['operate']}"}
        generate = {"Authorization": f"Bearer {tokens['generate']}"}
        assert await refused(it) == 401
        assert await refused(it, **generate) == 403
        for path in (WATCH_PATH + "%0A", "/v1/%72eplica"):  # routers take these for the path
            assert await refused(it, path, **generate) == 403
        # A browser that has signed in may look at things, and this is for more.
        assert await refused(it, Cookie=f"multispin_token={tokens['operate']}") == 401
        watcher = await Watcher.connect(it.address, **operate)
        assert (await watcher.status()).condition == "ok"
        await watcher.leave()

    play(scene, protection=Protection(tokens=Tokens(str(file))))


def test_people_are_told_what_a_server_without_its_model_does() -> None:
    state = ServerState()
    assert (state.condition, state.status) == ("loading", LOADING)
    state.begin(EdgeServer(LocalEngine(new_engine()), ServerLimits()))
    assert (state.condition, state.status) == ("ok", "ok")
    assert state.server is not None
    state.server.core.refuse_new(1.0)
    assert (state.condition, state.status) == ("draining", "draining")
