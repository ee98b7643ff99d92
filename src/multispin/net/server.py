"""asyncio around core.server: links come and go, one task runs the batches."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import logging
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from multispin.core.engine import StepEngine
from multispin.core.prompt import prompt_text, with_bos
from multispin.core.server import Outgoing, ServerCore, ServerLimits
from multispin.core.welcome import welcome
from multispin.errors import EngineLost, IncompatibleModels, MultispinError, PeerError
from multispin.net.observer import Observer
from multispin.net.schema_trial import SchemaTrials
from multispin.net.transport import ServerTransport, TransportClosed
from multispin.types import TokenIds
from multispin.wire import frames
from multispin.wire.frames import (
    PROTOCOL_VERSION,
    Close,
    Draft,
    Error,
    Frame,
    FromDevice,
    Hello,
    Open,
    Tokenize,
    Tokens,
)

log = logging.getLogger("multispin.server")

HELLO_TIMEOUT_S = 10.0  # a peer that says nothing for so long is cut off
MAX_TOKENIZED = 1 << 18  # characters of a text that a device may have tokenized
MAX_UNSENT = 1 << 20  # bytes; a device that reads more slowly than this is cut off


class Link:
    """One device's connection. What has come waits here for its turn, drafts excepted."""

    def __init__(self, transport: ServerTransport, number: int) -> None:
        self.number = number
        self.is_welcome = False  # it said hello
        self._transport = transport
        self._inbox: asyncio.Queue[FromDevice | Exception] = asyncio.Queue()

    def send(self, frame: Frame) -> None:
        self._transport.write(frames.encode(frame))
        if self._transport.num_unsent > MAX_UNSENT:
            log.warning("too_slow", extra={"fields": {"device": self.number}})
            self._transport.abort()

    def put(self, message: FromDevice | Exception) -> None:
        self._inbox.put_nowait(message)
        self._transport.pause(True)  # what waits must not pile up

    async def receive(self) -> FromDevice:
        message = await self._inbox.get()
        if self._inbox.empty():
            self._transport.pause(False)
        if isinstance(message, Exception):
            raise message
        return message

    def close(self) -> None:
        self._transport.close()


class EdgeServer:
    """The server of one engine: ``run`` drives it, ``serve`` is called once per link."""

    def __init__(
        self,
        engine: StepEngine,
        limits: ServerLimits,
        clock: Callable[[], float] = time.monotonic,
        observers: Sequence[Observer] = (),
    ) -> None:
        self.core = ServerCore(engine.info, limits, clock)
        self.engine = engine
        self._observers = observers
        self._links: dict[Link, None] = {}
        self._work = asyncio.Event()
        self._trials = SchemaTrials()

    # --- the batches ---------------------------------------------------------------------------

    async def run(self) -> None:
        """Verify whatever is ready, for ever; EngineFailed if the engine cannot restart.

        The next pass begins before the verdicts of the last are sent: sending takes its time, too.
        """
        news: list[Outgoing] = []
        while True:
            batch = self.core.next_batch()
            if batch is None:
                self._tell(news)
                news = []
                await self._wait_for_work()
                continue
            step = self.engine.step(batch)
            for observer in self._observers:
                observer.pass_began()
            self._tell(news)
            try:
                result = await step
                for observer in self._observers:
                    observer.pass_ended(batch.num_rows, result.forward_s)
                news = self.core.complete(result)
            except EngineLost as error:
                log.error("%s", error)
                news = self.core.engine_lost()

    async def _wait_for_work(self) -> None:
        self._work.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.core.wait_s()):
                await self._work.wait()

    def _tell(self, news: list[Outgoing]) -> None:
        """What the last pass has brought: to the devices, and to the controller."""
        self._deliver(news)
        self.core.learn()

    def _deliver(self, outgoing: list[Outgoing]) -> None:
        for link, frame in outgoing:
            if link in self._links:
                self._send(link, frame)

    def _send(self, link: Link, frame: frames.FromServer) -> None:
        link.send(frame)
        for observer in self._observers:
            observer.down(link.number, frame)

    # --- one link ------------------------------------------------------------------------------

    def serve(self, transport: ServerTransport) -> Coroutine[Any, Any, None]:
        """Speak with one device until it leaves or breaks the protocol."""
        taken = {link.number for link in self._links}
        link = Link(transport, next(n for n in itertools.count() if n not in taken))
        self._links[link] = None
        transport.receiver = functools.partial(self._receive, link)
        return self._speak(link)

    def _receive(self, link: Link, data: bytes | None) -> None:
        """A message has come, or the end. A draft is taken at once: that takes microseconds."""
        if link not in self._links:
            return
        try:
            message = None if data is None else frames.decode_from_device(data)
        except PeerError as error:
            link.put(error)
            return
        if message is None:
            link.put(TransportClosed())
        elif isinstance(message, Draft) and link.is_welcome:
            self._observe(link, message)
            self._deliver(self.core.draft(link, message))
            self._work.set()
        else:
            link.put(message)

    def _observe(self, link: Link, message: FromDevice) -> None:
        for observer in self._observers:
            observer.up(link.number, message)

    async def _speak(self, link: Link) -> None:
        try:
            await self._greet(link)
            while True:
                message = await link.receive()
                self._observe(link, message)
                self._deliver(await self._handle(link, message))
                self._work.set()
        except TransportClosed:
            pass
        except MultispinError as error:
            self._send(link, Error(None, error.code, str(error)))
        finally:
            del self._links[link]
            self.core.drop(link)
            for observer in self._observers:
                observer.left(link.number)
            self._work.set()
            link.close()

    async def _greet(self, link: Link) -> None:
        try:
            async with asyncio.timeout(HELLO_TIMEOUT_S):
                hello = await link.receive()
        except TimeoutError:
            raise PeerError("no hello within 10 s", code="out_of_order") from None
        if not isinstance(hello, Hello):
            raise PeerError("the first message must be hello", code="out_of_order")
        info = self.core.info
        if hello.version != PROTOCOL_VERSION:
            raise PeerError(
                f"hello.version = {hello.version}: this server speaks {PROTOCOL_VERSION}; "
                "install the same version of multispin on both sides",
                code="version_mismatch",
            )
        if hello.fingerprint not in (None, info.fingerprint):
            raise IncompatibleModels(
                "drafter",
                hello.drafter,
                f"its vocabulary differs from that of the target {info.target}: draft with a "
                "model of the target's family, or with lookup",
            )
        self.core.connect(link, hello.spectral_efficiency)
        link.is_welcome = True
        for observer in self._observers:
            observer.joined(link.number, hello)
        self._send(link, welcome(self.core))

    async def _handle(self, link: Link, message: FromDevice) -> list[Outgoing]:
        match message:
            case Open():
                try:
                    self.core.check_open(link, message)
                    if message.json_schema:
                        await self._trials.check(message.json_schema)
                    prompt = await self._tokenize_prompt(message)
                except MultispinError as error:
                    return [(link, Error(message.session, error.code, str(error)))]
                return self.core.open(link, message, prompt)
            case Close():
                return self.core.close(link, message)
            case Tokenize():
                if len(message.text) > MAX_TOKENIZED:
                    raise PeerError(
                        f"tokenize.text = {len(message.text)} characters: at most {MAX_TOKENIZED}",
                        code="bad_frame",
                    )
                ids = await self.engine.tokenize(message.text, parse_special=False)
                return [(link, Tokens(message.request, frames.pack_ids(ids, self.core.id_bits)))]
            case _:
                raise PeerError(
                    f"{type(message).__name__.lower()} is out of place here", code="out_of_order"
                )

    async def _tokenize_prompt(self, message: Open) -> TokenIds:
        vocabulary = self.core.vocabulary
        text, parse_special = prompt_text(message.prompt, vocabulary, message.tools)
        ids = await self.engine.tokenize(text, parse_special=parse_special)
        return with_bos(ids, message.prompt, vocabulary)
