"""A directory's port for devices: hello, welcome, then a redirect for each session."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence

from msgspec.structs import replace

from multispin.core.gate import being_stopped
from multispin.core.server import Outgoing
from multispin.errors import MultispinError
from multispin.net.directory import Directory
from multispin.net.links import RESTART_S, Links, out_of_place
from multispin.net.observer import Observer
from multispin.net.server_link import Link
from multispin.wire.frames import (
    Close,
    Draft,
    Error,
    Find,
    FromDevice,
    FromServer,
    Hello,
    Open,
    Redirect,
    Resume,
)

MAX_BYTES = 1 << 15  # of a frame: nobody has more to ask
FIND_FRAMES = 10  # frames that take the server as long as an answer to find


class DirectoryServer(Links):
    """``answers`` counts what devices were told: redirect, welcome, or the code of an error."""

    is_draining = False
    max_bytes = MAX_BYTES

    def __init__(
        self,
        directory: Directory,
        clock: Callable[[], float] = time.monotonic,
        observers: Sequence[Observer] = (),
    ) -> None:
        super().__init__(clock, observers)
        self.directory = directory
        self.answers: Counter[str] = Counter()
        self._hellos: dict[Link, Hello] = {}

    def send_all_off(self) -> None:
        """Nobody is let in any more; who is here goes elsewhere, or comes back later."""
        self.is_draining = True
        for link in list(self._links):
            self._send_off(link, being_stopped(RESTART_S))

    async def _greet(self, link: Link, hello: Hello) -> None:
        welcome = self.directory.welcome(link.tenant, hello.drafter, hello.fingerprint)
        self._hellos[link] = hello
        self._welcome(link, hello, replace(welcome, pads=hello.pads))

    async def _handle(self, link: Link, message: FromDevice) -> list[Outgoing]:
        match message:
            case Find():
                return [(link, self._find(link, message))]
            case Close():
                return []  # of a session that is elsewhere
            case Open(session=session) | Resume(session=session) | Draft(session=session):
                text = f"session = {session}: a directory serves none; find its replica first"
                return [(link, Error(session, "out_of_order", text))]
            case _:
                raise out_of_place(message)

    def _find(self, link: Link, message: Find) -> Redirect | Error:
        hello = self._hellos[link]
        self._pace(link, FIND_FRAMES - 1)
        try:
            return self.directory.find(link.tenant, message, hello.drafter, hello.fingerprint)
        except MultispinError as error:
            return Error.of(message.session, error)

    def refused(self, code: str) -> None:
        """A connection or a request was, before anybody asked the directory."""
        self.answers[code] += 1

    def _send(self, link: Link, frame: FromServer) -> None:
        self.answers[frame.code if isinstance(frame, Error) else type(frame).__name__.lower()] += 1
        super()._send(link, frame)

    def _let_go(self, link: Link) -> None:
        super()._let_go(link)
        self._hellos.pop(link, None)
