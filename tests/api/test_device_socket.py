"""The devices' WebSocket, against the websockets library's client: no network, bytes only."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket
from uvicorn.server import ServerState
from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.http11 import Response
from websockets.uri import parse_uri

from multispin.api.device_socket import EXTENSION, DeviceSocket
from multispin.wire.frames import MAX_FRAME_BYTES

Scene = Callable[["Line"], Awaitable[None]]


class Pipe(asyncio.Transport):
    """What asyncio gives the server's protocol; the client reads what is written to it."""

    def __init__(self, line: Line) -> None:
        super().__init__({"sockname": ("127.0.0.1", 1), "peername": ("127.0.0.1", 2)})
        self._line = line
        self.is_closed = self.is_aborted = self.is_paused = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if data:
            self._line.client.receive_data(bytes(data))

    def get_write_buffer_size(self) -> int:
        return 7

    def pause_reading(self) -> None:
        self.is_paused = True

    def resume_reading(self) -> None:
        self.is_paused = False

    def is_closing(self) -> bool:
        return self.is_closed

    def close(self) -> None:
        if not self.is_closed:
            self.is_closed = True
            asyncio.get_running_loop().call_soon(self._line.server.connection_lost, None)

    def abort(self) -> None:
        self.is_aborted = True
        self.close()


class Line:
    """A client, a server, and what the server's end received."""

    def __init__(self) -> None:
        self.received: list[bytes | None] = []
        self.client = ClientProtocol(parse_uri("ws://127.0.0.1/x"), max_size=None)
        app = Starlette(routes=[WebSocketRoute("/x", self._endpoint)])
        config = uvicorn.Config(app, log_config=None, ws_max_size=MAX_FRAME_BYTES, lifespan="off")
        config.load()
        self.server = DeviceSocket(config, ServerState(), {})
        self.pipe = Pipe(self)
        self._left = asyncio.Event()

    async def _endpoint(self, websocket: WebSocket) -> None:
        await websocket.accept()
        socket: DeviceSocket = websocket.scope["extensions"][EXTENSION]
        socket.receiver = self.received.append
        await self._left.wait()

    async def open(self) -> None:
        self.server.connection_made(self.pipe)
        self.client.send_request(self.client.connect())
        self.send(self.client.data_to_send()[0])
        for _ in range(10):
            await asyncio.sleep(0)
        [answer] = self.client.events_received()
        assert isinstance(answer, Response) and answer.status_code == 101

    def send(self, data: bytes, rng: random.Random | None = None) -> None:
        """In pieces of any size, if a generator cuts them."""
        while data:
            size = rng.choice((1, 2, 7, 100, 70_000)) if rng else len(data)
            self.server.data_received(data[:size])
            data = data[size:]

    def sent(self) -> bytes:
        return b"".join(self.client.data_to_send())

    def answers(self) -> list[Frame]:
        return [event for event in self.client.events_received() if isinstance(event, Frame)]

    async def leave(self) -> None:
        self._left.set()
        for _ in range(10):
            await asyncio.sleep(0)


def play(scene: Scene) -> None:
    async def main() -> None:
        line = Line()
        await line.open()
        await scene(line)
        await line.leave()

    asyncio.run(main())


@pytest.mark.parametrize("seed", range(20))
def test_messages_come_as_they_were_sent_however_they_are_cut(seed: int) -> None:
    async def scene(line: Line) -> None:
        rng = random.Random(seed)
        messages = [rng.randbytes(rng.choice((0, 1, 5, 125, 126, 300, 66_000))) for _ in range(12)]
        pings = 0
        for message in messages:
            if rng.random() < 0.3:
                parts = [message[:3], message[3:60], message[60:]]
                line.client.send_binary(parts[0], fin=False)
                line.client.send_ping(b"between")
                pings += 1
                line.client.send_continuation(parts[1], fin=False)
                line.client.send_continuation(parts[2], fin=True)
            else:
                line.client.send_binary(message)
        line.send(line.sent(), rng)
        assert line.received == messages
        assert [frame.opcode for frame in line.answers()] == [Opcode.PONG] * pings

    play(scene)


def test_while_it_is_paused_nothing_is_told_and_afterwards_everything() -> None:
    async def scene(line: Line) -> None:
        def one_at_a_time(message: bytes | None) -> None:
            received.append(message)
            line.server.pause(True)

        received: list[bytes | None] = []
        line.server.receiver = one_at_a_time
        for number in range(100):
            line.client.send_binary(bytes([number]))
        line.send(line.sent())
        assert received == [b"\0"]
        for number in range(1, 100):
            line.server.pause(False)
            await asyncio.sleep(0)
            assert len(received) == number + 1
        assert received == [bytes([number]) for number in range(100)]

    play(scene)


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65_535, 65_536, 300_000])
def test_what_is_written_arrives(size: int) -> None:
    async def scene(line: Line) -> None:
        message = random.Random(size).randbytes(size)
        line.server.write(message)
        [frame] = line.answers()
        assert (frame.opcode, frame.fin, bytes(frame.data)) == (Opcode.BINARY, True, message)
        assert line.server.num_unsent == 7

    play(scene)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"\x82\x03abc", 1002),  # not masked
        (b"\x82\xff" + (MAX_FRAME_BYTES + 1).to_bytes(8, "big") + bytes(4), 1009),
        (b"\xc2\x80" + bytes(4), 1002),  # a reserved bit
        (b"\x80\x80" + bytes(4), 1002),  # goes on with nothing
        (b"\x02\x80" + bytes(4) + b"\x82\x81" + bytes(5), 1002),  # anew amid a message
    ],
)
def test_what_is_no_websocket_is_told_so_and_ends(data: bytes, code: int) -> None:
    async def scene(line: Line) -> None:
        line.send(data, random.Random(0))
        await asyncio.sleep(0)
        [frame] = line.answers()
        assert (frame.opcode, int.from_bytes(frame.data[:2], "big")) == (Opcode.CLOSE, code)
        assert line.pipe.is_closed
        assert line.received == [b"", None]  # no frame, and the end

    play(scene)


class FakeLoop:
    """Time passes when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0
        self.due: list[tuple[float, Callable[[], None]]] = []

    def time(self) -> float:
        return self.now

    def call_later(self, seconds: float, work: Callable[[], None]) -> asyncio.TimerHandle:
        self.due.append((self.now + seconds, work))
        return asyncio.get_running_loop().call_later(3600, work)

    def pass_until(self, moment: float) -> None:
        while self.due and self.due[0][0] <= moment:
            self.now, work = self.due.pop(0)
            work()
        self.now = moment


def test_a_peer_that_is_gone_is_found_in_ten_seconds_and_only_then() -> None:
    async def scene(line: Line) -> None:
        line.server.stop_keepalive()
        loop = line.server.loop = FakeLoop()  # type: ignore[assignment]
        line.server.start_keepalive()
        loop.pass_until(4.9)
        assert line.answers() == []
        loop.pass_until(5.1)
        assert [frame.opcode for frame in line.answers()] == [Opcode.PING]
        line.send(line.sent())  # the client's pong
        loop.pass_until(15.0)
        assert not line.pipe.is_aborted
        loop.pass_until(15.2)
        assert line.pipe.is_aborted

    play(scene)


def test_who_sends_whatever_is_there_and_who_may_not_send_is_not_asked() -> None:
    async def scene(line: Line) -> None:
        line.server.stop_keepalive()
        loop = line.server.loop = FakeLoop()  # type: ignore[assignment]
        line.server.start_keepalive()
        line.client.send_binary(bytes(100))
        [slow] = line.client.data_to_send()
        for second in range(60):  # one message takes longer than anybody may be silent
            loop.pass_until(4.0 * second)
            line.send(slow[second : second + 1])
        line.server.pause(True)
        loop.pass_until(1000.0)
        assert not line.pipe.is_aborted
        line.server.pause(False)
        loop.pass_until(1004.0)
        assert line.answers() == []
        loop.pass_until(1011.0)
        assert line.pipe.is_aborted

    play(scene)


def test_the_end_is_told_once_whoever_ends_it() -> None:
    async def by_the_device(line: Line) -> None:
        line.client.send_close(1000)
        line.send(line.sent())
        await asyncio.sleep(0)
        assert line.received == [None]

    async def by_the_server(line: Line) -> None:
        line.server.pause(True)
        line.server.close()
        line.server.close()
        line.server.write(b"too late")
        [frame] = line.answers()
        assert frame.opcode is Opcode.CLOSE
        assert not line.pipe.is_paused  # to hear the answer
        line.send(line.sent())
        await asyncio.sleep(0)
        assert line.received == [None]

    async def at_once(line: Line) -> None:
        line.server.abort()
        await asyncio.sleep(0)
        assert line.received == [None]
        assert line.answers() == []

    for scene in (by_the_device, by_the_server, at_once):
        play(scene)


def test_a_device_that_does_not_answer_a_close_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("multispin.api.device_socket.CLOSE_S", 0.01)

    async def scene(line: Line) -> None:
        line.server.close()
        await asyncio.sleep(0.05)
        assert line.pipe.is_aborted

    play(scene)
