"""asyncio around core.server: links come and go, one task runs the batches."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable

from multispin.core.engine import StepEngine
from multispin.core.prompt import prompt_text, with_bos
from multispin.core.server import Outgoing, ServerCore, ServerLimits
from multispin.errors import EngineLost, IncompatibleModels, MultispinError, PeerError
from multispin.net.transport import Transport, TransportClosed
from multispin.types import TokenIds
from multispin.wire import frames
from multispin.wire.frames import (
    PROTOCOL_VERSION,
    Close,
    Draft,
    Error,
    Frame,
    Hello,
    Open,
    Tokenize,
    Tokens,
    Welcome,
)

log = logging.getLogger("multispin.server")

HELLO_TIMEOUT_S = 10.0  # a peer that says nothing for so long is cut off
MAX_TOKENIZED = 1 << 18  # characters of a text that a device may have tokenized
MAX_QUEUED_FRAMES = 1024  # a device that reads more slowly than this is cut off


class Link:
    """One device's connection: frames queue here, so that a slow reader stops nobody else."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._queue: asyncio.Queue[bytes] = asyncio.Queue(MAX_QUEUED_FRAMES)
        self._too_slow = False
        self._writer = asyncio.create_task(self._write())

    def send(self, frame: Frame) -> None:
        if self._too_slow:
            return
        try:
            self._queue.put_nowait(frames.encode(frame))
        except asyncio.QueueFull:
            self._too_slow = True
            log.warning("a device reads too slowly: link closed")
            self._writer.cancel()

    async def close(self) -> None:
        """Deliver what is queued, then close."""
        with contextlib.suppress(TimeoutError, asyncio.CancelledError):
            async with asyncio.timeout(1.0):
                await self._queue.join()
        self._writer.cancel()
        await self._transport.close()

    async def _write(self) -> None:
        try:
            while True:
                await self._transport.send(await self._queue.get())
                self._queue.task_done()
        except TransportClosed:
            pass
        finally:
            await self._transport.close()


class EdgeServer:
    """The server of one engine: ``run`` drives it, ``serve`` is called once per link."""

    def __init__(
        self,
        engine: StepEngine,
        limits: ServerLimits,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.core = ServerCore(engine.info, limits, clock)
        self.engine = engine
        self._links: dict[Link, None] = {}
        self._work = asyncio.Event()

    # --- the batches ---------------------------------------------------------------------------

    async def run(self) -> None:
        """Verify whatever is ready, for ever; EngineFailed if the engine cannot restart.

        The next pass begins before the verdicts of the last are sent: sending takes its time, too.
        """
        news: list[Outgoing] = []
        while True:
            batch = self.core.next_batch()
            if batch is None:
                self._deliver(news)
                news = []
                await self._wait_for_work()
                continue
            step = asyncio.create_task(self.engine.step(batch))
            try:
                await asyncio.sleep(0)  # the pass begins
                self._deliver(news)
                news = self.core.complete(await step)
            except EngineLost as error:
                log.error("%s", error)
                news = self.core.engine_lost()
            finally:
                step.cancel()

    async def _wait_for_work(self) -> None:
        self._work.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.core.wait_s()):
                await self._work.wait()

    def _deliver(self, outgoing: list[Outgoing]) -> None:
        for link, frame in outgoing:
            if link in self._links:
                link.send(frame)
        self._work.set()

    # --- one link ------------------------------------------------------------------------------

    async def serve(self, transport: Transport) -> None:
        """Speak with one device until it leaves or breaks the protocol."""
        link = Link(transport)
        self._links[link] = None
        try:
            await self._greet(link, transport)
            while True:
                message = frames.decode_from_device(await transport.receive())
                self._deliver(await self._handle(link, message))
        except TransportClosed:
            pass
        except MultispinError as error:
            link.send(Error(None, error.code, str(error)))
        finally:
            del self._links[link]
            self.core.drop(link)
            self._work.set()
            await link.close()

    async def _greet(self, link: Link, transport: Transport) -> None:
        try:
            async with asyncio.timeout(HELLO_TIMEOUT_S):
                hello = frames.decode_from_device(await transport.receive())
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
        link.send(
            Welcome(
                version=PROTOCOL_VERSION,
                target=info.target,
                fingerprint=info.fingerprint,
                vocabulary_size=self.core.vocabulary.size,
                end_ids=info.end_ids,
                context_length=info.context_length,
                max_draft_length=self.core.limits.max_draft_length,
                reproducible=info.reproducible,
                mode=self.core.limits.batch.mode,
            )
        )

    async def _handle(self, link: Link, message: frames.FromDevice) -> list[Outgoing]:
        match message:
            case Open():
                try:
                    self.core.check_open(link, message)
                    prompt = await self._tokenize_prompt(message)
                except MultispinError as error:
                    return [Outgoing(link, Error(message.session, error.code, str(error)))]
                return self.core.open(link, message, prompt)
            case Draft():
                return self.core.draft(link, message)
            case Close():
                return self.core.close(link, message)
            case Tokenize():
                if len(message.text) > MAX_TOKENIZED:
                    raise PeerError(
                        f"tokenize.text = {len(message.text)} characters: at most {MAX_TOKENIZED}",
                        code="bad_frame",
                    )
                ids = await self.engine.tokenize(message.text, parse_special=False)
                return [
                    Outgoing(link, Tokens(message.request, frames.pack_ids(ids, self.core.id_bits)))
                ]
            case _:
                raise PeerError(
                    f"{type(message).__name__.lower()} is out of place here", code="out_of_order"
                )

    async def _tokenize_prompt(self, message: Open) -> TokenIds:
        vocabulary = self.core.vocabulary
        text, parse_special = prompt_text(message.prompt, vocabulary)
        ids = await self.engine.tokenize(text, parse_special=parse_special)
        return with_bos(ids, message.prompt, vocabulary)
