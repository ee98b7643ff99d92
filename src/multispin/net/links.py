"""Links of devices, whoever serves them: greeted, heard frame by frame, refused, ended."""

from __future__ import annotations

import asyncio
import functools
import itertools
import time
from collections.abc import Callable, Collection, Coroutine, Sequence
from typing import Any

from multispin.core.gate import being_stopped
from multispin.core.server import Outgoing
from multispin.core.tenant import LOCAL, Tenant
from multispin.errors import MultispinError, PeerError
from multispin.net.observer import Observer
from multispin.net.offences import SHUT_OUT_S, Peers, is_offence
from multispin.net.server_link import Link
from multispin.net.transport import ServerTransport, TransportClosed
from multispin.wire import frames
from multispin.wire.frames import (
    PROTOCOL_VERSION,
    Error,
    FromDevice,
    FromServer,
    Hello,
    Welcome,
)

HELLO_TIMEOUT_S = 10.0  # a peer that says nothing for so long is cut off
RESTART_S = 1.0  # who is stopped is not asked again before


class Links:
    """``serve`` is called once per link. What is said on it is for who derives from this."""

    max_bytes = frames.MAX_FRAME_BYTES  # of a frame

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        observers: Sequence[Observer] = (),
    ) -> None:
        self._clock = clock
        self._observers = observers
        self._peers = Peers(clock)
        self._links: dict[Link, None] = {}
        self._left = asyncio.Event()  # a link is gone

    @property
    def is_draining(self) -> bool:
        """Whether nobody is let in any more."""
        raise NotImplementedError

    async def _greet(self, link: Link, hello: Hello) -> None:
        """Answer with `_welcome`, or raise a MultispinError."""
        raise NotImplementedError

    async def _handle(self, link: Link, message: FromDevice) -> list[Outgoing]:
        """The answers to a message after hello. A MultispinError that is raised ends the link."""
        raise NotImplementedError

    @property
    def links(self) -> Collection[Link]:
        return self._links.keys()

    def serve(
        self, transport: ServerTransport, tenant: Tenant = LOCAL
    ) -> Coroutine[Any, Any, None]:
        """Speak with one device until it leaves or breaks the protocol."""
        taken = {link.number for link in self._links}
        link = Link(transport, tenant, next(n for n in itertools.count() if n not in taken))
        self._links[link] = None
        transport.receiver = functools.partial(self._receive, link)
        return self._speak(link)

    async def _one_left(self) -> None:
        self._left.clear()
        await self._left.wait()

    # --- what is said --------------------------------------------------------------------------

    def _receive(self, link: Link, data: bytes | None) -> None:
        """A message has come, or the end."""
        if link not in self._links:
            return
        if data is None:
            self._let_go(link)
            return
        link.num_received += len(data)
        self._pace(link, 1)
        if link not in self._links:  # cut off: what it says is no offence any more
            return
        try:
            if len(data) > self.max_bytes:
                raise PeerError(f"a frame of {len(data)} bytes is too large here", code="bad_frame")
            message = frames.decode_from_device(data)
        except PeerError as error:
            self._refuse(link, error)
            return
        self._take(link, message, len(data))

    def _take(self, link: Link, message: FromDevice, num_bytes: int) -> None:
        """It waits for its turn."""
        link.put(message, num_bytes)

    def _pace(self, link: Link, num_frames: int) -> None:
        """So many came, or, on a padded link, were answered with."""
        if link.pace.is_spent(self._clock(), num_frames):
            link.rest()
        if link.is_too_slow and link in self._links:
            self._cut_off(link)

    def _observe(self, link: Link, message: FromDevice) -> None:
        for observer in self._observers:
            observer.up(link.number, message)

    async def _speak(self, link: Link) -> None:
        try:
            await self._greet(link, await self._hello(link))
            while True:
                message = await link.receive()
                self._observe(link, message)
                self._answer(link, message, await self._handle(link, message))
                await asyncio.sleep(0)  # the others have their turn, and the answer leaves
        except TransportClosed:
            pass
        except MultispinError as error:
            self._refuse(link, error)
        finally:
            self._let_go(link)
            link.close()

    async def _hello(self, link: Link) -> Hello:
        if self.is_draining:
            raise being_stopped(RESTART_S)
        if left_s := self._peers.shut_out_s(link.peer):
            raise _abusive(left_s)
        try:
            async with asyncio.timeout(HELLO_TIMEOUT_S):
                hello = await link.receive()
        except TimeoutError:
            message = f"no hello within {HELLO_TIMEOUT_S:g} s"
            raise PeerError(message, code="out_of_order") from None
        if not isinstance(hello, Hello):
            raise PeerError("the first message must be hello", code="out_of_order")
        if hello.version != PROTOCOL_VERSION:
            raise PeerError(
                f"hello.version = {hello.version}: this server speaks {PROTOCOL_VERSION}; "
                "install the same version of multispin on both sides",
                code="version_mismatch",
            )
        return hello

    def _welcome(self, link: Link, hello: Hello, welcome: Welcome) -> None:
        """Whoever said hello is let in; what follows is padded if the welcome says so."""
        link.is_welcome = True
        for observer in self._observers:
            observer.joined(link.number, hello)
        self._send(link, welcome)
        if welcome.pads:
            link.pad(functools.partial(self._pace, link))

    def _answer(self, link: Link, message: FromDevice, answers: list[Outgoing]) -> None:
        self._deliver(answers)
        for _, frame in answers:
            if isinstance(frame, Error) and is_offence(message, frame.code):
                self._blame(link)

    def _deliver(self, outgoing: list[Outgoing]) -> None:
        for link, frame in outgoing:
            if link in self._links:
                self._send(link, frame)

    def _send(self, link: Link, frame: FromServer) -> None:
        link.send(frame)
        for observer in self._observers:
            observer.down(link.number, frame)
        if link.is_too_slow:
            self._cut_off(link)

    # --- how a link ends -----------------------------------------------------------------------

    def _cut_off(self, link: Link) -> None:
        """It does not read: what it was to be told is of use to who watches only."""
        error = Error(None, "too_slow", "the device does not read what it is sent")
        for observer in self._observers:
            observer.down(link.number, error)
        self._let_go(link)
        link.abort()

    def _blame(self, link: Link) -> None:
        """It offended; after too many times it has to go, and so do its next links for a while."""
        self._peers.offended(link.peer)
        if link.offences.add(self._clock()):
            self._send_off(link, _abusive(SHUT_OUT_S))

    def _refuse(self, link: Link, error: MultispinError) -> None:
        """What the device sent ends its link."""
        if is_offence(None, error.code):
            self._peers.offended(link.peer)
        self._send_off(link, error)

    def _send_off(self, link: Link, error: MultispinError) -> None:
        """Say why, then close."""
        if link in self._links:
            self._send(link, Error.of(None, error))
            self._let_go(link)
            link.close()

    def _let_go(self, link: Link) -> None:
        """Nothing more is done for it."""
        if link in self._links:
            del self._links[link]
            link.leave()
            for observer in self._observers:
                observer.left(link.number)
            self._left.set()


def out_of_place(message: FromDevice) -> PeerError:
    name = type(message).__name__.lower()
    return PeerError(f"{name} is out of place here", code="out_of_order")


def _abusive(retry_after_s: float) -> PeerError:
    return PeerError(
        "too many frames that no honest device sends: not let in for a while",
        code="abusive",
        retry_after_s=retry_after_s,
    )
