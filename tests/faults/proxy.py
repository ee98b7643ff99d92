"""A bad link: a relay in front of a server that knows where messages begin and end.

After the handshake each WebSocket message of either way is shown to a script, which says what
becomes of it: it may pass, come late, twice, or after the next one; the link may be cut before,
inside or behind it; or nothing passes any more, either way, while both sides believe it does.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections import Counter
from collections.abc import AsyncIterator, Callable
from enum import Enum
from typing import Literal, NamedTuple, TypeAlias

from tests.process import loopback_address

Way: TypeAlias = Literal["up", "down"]  # up: from the device
LONG_ARRAY = b"\xdc"  # MessagePack's mark of more than 15 elements, whose number follows it
BINARY = 0x82  # first byte of a frame that is a message of its own
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: a close is a reset, at once


class Message(NamedTuple):
    """What a script sees: the n-th binary message of its way; ``kind`` is the frame's number."""

    way: Way
    number: int
    kind: int
    num_bytes: int


class Act(Enum):
    PASS = "passed"
    CUT_BEFORE = "cut before a message"
    CUT_INSIDE = "cut inside a message"
    CUT_BEHIND = "cut behind a message"
    TWICE = "sent twice"
    SWAP = "overtaken by the next"
    SILENCE = "half-open from here"


class Deed(NamedTuple):
    act: Act = Act.PASS
    late_s: float = 0.0  # whatever follows waits, too


Script: TypeAlias = Callable[[Message], Deed]


def honest(message: Message) -> Deed:
    return Deed()


class Proxy:
    """Relays connections to ``target`` (HOST:PORT), which may change; each has its own script."""

    def __init__(self, target: str, script_of: Callable[[int], Script] = lambda number: honest):
        self.target = target
        self.address = ""  # HOST:PORT, once it listens
        self.done: Counter[Act] = Counter()
        self.num_late = 0
        self.num_links = 0
        self._script_of = script_of
        self._relays: set[Relay] = set()

    async def __aenter__(self) -> Proxy:
        self._server = await asyncio.start_server(self._relay, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        self.cut()
        for _ in range(100):
            if not self._relays:
                return
            await asyncio.sleep(0.01)
        raise AssertionError(f"{len(self._relays)} relays do not end")

    def cut(self) -> None:
        """All links that there are."""
        for relay in list(self._relays):
            relay.cut()

    async def _relay(self, near: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        relay = Relay(self, self._script_of(self.num_links), back)
        self.num_links += 1
        self._relays.add(relay)
        try:
            await relay.run(near)
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # an end like any other
        finally:
            relay.cut()
            self._relays.discard(relay)


class Relay:
    """One connection."""

    def __init__(self, proxy: Proxy, script: Script, back: asyncio.StreamWriter) -> None:
        self._proxy = proxy
        self._script = script
        self._is_silent = False
        self._writers = [back]
        self._pumps: list[asyncio.Task[None]] = []

    async def run(self, near: asyncio.StreamReader) -> None:
        host, _, port = self._proxy.target.rpartition(":")
        # Each from an address of its own, as devices have: one's offences are not another's.
        source = loopback_address(self._proxy.num_links) if host.startswith("127.") else None
        far, out = await asyncio.open_connection(host, int(port), local_addr=source)
        [back] = self._writers
        self._writers.append(out)
        out.write(await near.readuntil(b"\r\n\r\n"))
        answer = await far.readuntil(b"\r\n\r\n")
        back.write(answer)
        if b" 101 " not in answer.split(b"\r\n", 1)[0]:
            while data := await far.read(1 << 16):
                back.write(data)
            await back.drain()
            return
        self._pumps = [
            asyncio.create_task(self._pump("up", near, out)),
            asyncio.create_task(self._pump("down", far, back)),
        ]
        try:
            _, open_ = await asyncio.wait(self._pumps, return_when=asyncio.FIRST_COMPLETED)
            if open_:  # what is on the way is delivered; silent, no side learns of the other's end
                await asyncio.wait(open_, timeout=None if self._is_silent else 0.2)
        finally:
            for pump in self._pumps:
                pump.cancel()

    def cut(self, *, is_reset: bool = False) -> None:
        for writer in self._writers:
            if is_reset and (sock := writer.get_extra_info("socket")) is not None:
                with contextlib.suppress(OSError):
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            writer.transport.abort()
        for pump in self._pumps:
            pump.cancel()

    async def _pump(
        self, way: Way, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Messages keep their order and come when they are due, however late others are."""
        line: asyncio.Queue[tuple[float, bytes, Act] | None] = asyncio.Queue()
        reading = asyncio.create_task(self._read(way, reader, line))
        try:
            await self._write(line, writer)
        finally:
            reading.cancel()
            if self._is_silent:
                writer = self._writers[0 if way == "up" else 1]
                writer.transport.abort()  # of the side that has ended

    async def _read(self, way: Way, reader: asyncio.StreamReader, line) -> None:  # type: ignore[no-untyped-def]
        clock = asyncio.get_running_loop().time
        number, due = 0, 0.0
        async for frame, kind, num_bytes in _frames(reader):
            deed = Deed()
            if frame[0] == BINARY:
                deed = self._script(Message(way, number, kind, num_bytes))
                number += 1
            due = max(due, clock() + deed.late_s)
            self._proxy.num_late += deed.late_s > 0
            line.put_nowait((due, frame, deed.act))
        line.put_nowait(None)

    async def _write(self, line, writer: asyncio.StreamWriter) -> None:  # type: ignore[no-untyped-def]
        clock = asyncio.get_running_loop().time
        held = b""
        while (item := await line.get()) is not None:
            due, frame, act = item
            await asyncio.sleep(max(due - clock(), 0.0))
            if self._is_silent or writer.is_closing():
                continue
            if act is not Act.PASS:
                self._proxy.done[act] += 1
            match act:
                case Act.CUT_BEFORE:
                    self.cut(is_reset=True)
                case Act.CUT_INSIDE:
                    writer.write(frame[: len(frame) // 2])
                    await asyncio.sleep(0)
                    self.cut(is_reset=True)
                case Act.CUT_BEHIND:
                    writer.write(frame)
                    await writer.drain()
                    await asyncio.sleep(0)
                    self.cut()
                case Act.SILENCE:
                    self._is_silent = True
                case Act.TWICE:
                    writer.write(frame + frame)
                case Act.SWAP:
                    held += frame
                    continue
                case Act.PASS:
                    writer.write(frame)
            if held and not self._is_silent:
                writer.write(held)
                held = b""


async def _frames(reader: asyncio.StreamReader) -> AsyncIterator[tuple[bytes, int, int]]:
    """Each WebSocket frame as it came, the byte of its payload where a frame has its number (-1:
    there is none), and the payload's length."""
    with contextlib.suppress(asyncio.IncompleteReadError, OSError):
        while True:
            head = await reader.readexactly(2)
            is_masked, length = head[1] & 0x80, head[1] & 0x7F
            if length >= 126:
                more = await reader.readexactly(2 if length == 126 else 8)
                head, length = head + more, int.from_bytes(more, "big")
            mask = await reader.readexactly(4) if is_masked else b""
            data = await reader.readexactly(length)
            begins = bytes(b ^ m for b, m in zip(data[:4], mask or bytes(4), strict=False))
            at = 3 if begins[:1] == LONG_ARRAY else 1
            yield head + mask + data, begins[at] if len(begins) > at else -1, length
