"""Frames that no device sends, over real sockets, to a server that others use meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
from collections import Counter
from collections.abc import Iterator

from multispin.errors import PeerError
from multispin.wire import frames
from multispin.wire.frames import Error, Hello
from tests.fuzz.bystander import bystander
from tests.fuzz.decoder import corpus, mutants
from tests.process import loopback_address, num_descriptors, resident_bytes

ANSWER_S = 10.0  # a server that says nothing for so long hangs
PING, PONG, CLOSE, BINARY = 0x89, 0x8A, 0x88, 0x82
UPGRADE = (
    "GET /v1/device HTTP/1.1\r\nHost: {}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


class RawLink:
    """A WebSocket by hand. Whatever the server says must make sense."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.codes: Counter[str] = Counter()  # of the errors that it told
        self._reader, self._writer = reader, writer
        self._pong = asyncio.Event()
        self._reading = asyncio.create_task(self._read())

    @classmethod
    async def open(cls, address: str, source: tuple[str, int] | None) -> RawLink | None:
        """None where the server does not let this peer in."""
        host, _, port = address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port), local_addr=source)
        writer.write(UPGRADE.format(address).encode())
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            async with asyncio.timeout(ANSWER_S):
                if b" 101 " in await reader.readuntil(b"\r\n\r\n"):
                    return cls(reader, writer)
        writer.transport.abort()
        return None

    @property
    def is_open(self) -> bool:
        return not self._reading.done()

    def send(self, kind: int, data: bytes) -> None:
        mask = os.urandom(4)
        masked = bytes(b ^ mask[i % 4] for i, b in enumerate(data))
        if len(data) < 126:
            head = bytes((kind, 0x80 | len(data)))
        else:
            head = bytes((kind, 0xFF)) + len(data).to_bytes(8, "big")
        self._writer.write(head + mask + masked)

    def send_raw(self, data: bytes) -> None:
        self._writer.write(data)

    async def heard(self) -> bool:
        """Whether the server has taken it all and is still there; AssertionError if it hangs."""
        self._pong.clear()
        self.send(PING, b"")
        pong = asyncio.create_task(self._pong.wait())
        done, _ = await asyncio.wait(
            (pong, self._reading), timeout=ANSWER_S, return_when=asyncio.FIRST_COMPLETED
        )
        pong.cancel()
        assert done, "the server neither answers nor closes"
        return self.is_open

    async def close(self) -> None:
        self._writer.transport.abort()
        self._reading.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._reading

    async def _read(self) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                kind, length = await self._reader.readexactly(2)
                assert length < 128, "a server does not mask"
                if length >= 126:
                    more = await self._reader.readexactly(2 if length == 126 else 8)
                    length = int.from_bytes(more, "big")
                data = await self._reader.readexactly(length)
                if kind == BINARY:
                    frame = frames.decode_from_server(data)
                    if isinstance(frame, Error):
                        self.codes[frame.code] += 1
                elif kind == PONG:
                    self._pong.set()
                elif kind == CLOSE:
                    return
                else:
                    assert kind == PING, hex(kind)
                    self.send(PONG, data)


def _sendings(rng: random.Random) -> Iterator[tuple[int, bytes]]:
    """First byte of the WebSocket frame, and payload; 0 for bytes that are not even that. Most
    decode: what does not ends the link at once."""
    seeds = corpus("device")
    strange = mutants(seeds, rng)
    while True:
        choice = rng.random()
        if choice < 0.3:
            yield BINARY, rng.choice(seeds)
        elif choice < 0.93:
            data = next(strange)
            while not _decodes(data) and rng.random() < 0.9:
                data = next(strange)
            yield BINARY, data
        elif choice < 0.98:
            yield rng.randrange(256), rng.choice(seeds)
        else:
            yield 0, rng.randbytes(rng.choice((1, 3, 20, 1000)))


def _decodes(data: bytes) -> bool:
    try:
        frames.decode_from_device(data)
    except PeerError:
        return False
    return True


async def _attack(
    address: str, num_frames: int, rng: random.Random, codes: Counter[str]
) -> tuple[int, int]:
    """Frames that the server has taken, and links that they took."""
    sendings = _sendings(rng)
    hello = frames.encode(Hello(frames.PROTOCOL_VERSION, "none"))
    num_taken = num_links = 0
    while num_taken < num_frames:
        # Each from another address: what one peer did is not held against the next.
        link = await RawLink.open(address, loopback_address(rng.randrange(1, 1 << 23)))
        num_links += 1
        if link is None:
            continue
        if rng.random() < 0.95:
            link.send(BINARY, hello)
        for _ in range(rng.choice((1, 4, 40))):
            burst = [next(sendings) for _ in range(rng.choice((1, 1, 3)))]
            for kind, data in burst:
                if kind:
                    link.send(kind, data)
                else:
                    link.send_raw(data)
            if not all(kind for kind, _ in burst):  # what follows would be taken for its end
                num_taken += 1
                break
            is_open = await link.heard()
            num_taken += len(burst) if is_open else 1  # it may have read the first only
            if not is_open:
                break
        codes += link.codes
        await link.close()
    return num_taken, num_links


async def fuzz_sockets(
    pid: int, address: str, num_frames: int, seed: int, at_once: int = 4
) -> dict[str, object]:
    """Frames to the server of that process, from several peers at once; what came of it."""
    codes: Counter[str] = Counter()
    async with bystander(address) as beside:
        descriptors = num_descriptors(pid)
        halves, resident = [], []
        for half in range(2):
            portion = num_frames // 2 // at_once
            rngs = [random.Random(f"{seed} {half} {peer}") for peer in range(at_once)]
            halves += await asyncio.gather(*(_attack(address, portion, r, codes) for r in rngs))
            await asyncio.sleep(0.5)
            resident.append(resident_bytes(pid))
        left = num_descriptors(pid) - descriptors
    return {
        "frames": sum(taken for taken, _ in halves),
        "links": sum(links for _, links in halves),
        "bystander_texts": beside.num_texts,
        "growth_in_second_half": resident[1] / max(resident[0], 1) - 1,
        "descriptors_left": left,
        "refusals": dict(codes.most_common()),
    }
