"""asyncio around core.server: links come and go, one task runs the batches."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import logging
import secrets
import time
from collections.abc import Callable, Collection, Coroutine, Sequence
from typing import Any

from multispin.core.engine import StepEngine
from multispin.core.gate import being_stopped
from multispin.core.limits import ServerLimits
from multispin.core.prompt import prompt_text, with_bos
from multispin.core.server import Outgoing, ServerCore
from multispin.core.tenant import LOCAL, Tenant
from multispin.core.welcome import welcome
from multispin.errors import EngineLost, IncompatibleModels, MultispinError, PeerError
from multispin.net.observer import Observer
from multispin.net.offences import SHUT_OUT_S, Peers, is_offence
from multispin.net.schema_trial import SchemaTrials
from multispin.net.server_link import Link
from multispin.net.transport import ServerTransport, TransportClosed
from multispin.types import TokenIds
from multispin.wire import frames
from multispin.wire.frames import (
    PROTOCOL_VERSION,
    TRANSPORT_BITS,
    Close,
    Draft,
    Error,
    FromDevice,
    Hello,
    Open,
    Opened,
    Resume,
    Tokenize,
    Tokens,
    Verdict,
)

log = logging.getLogger("multispin.server")

HELLO_TIMEOUT_S = 10.0  # a peer that says nothing for so long is cut off
SWEEP_S = 1.0  # sessions that were abandoned are looked for so often
RESTART_S = 1.0  # a server that is stopped is not asked again before
MAX_TOKENIZED = 1 << 18  # characters of a text that a device may have tokenized


class EdgeServer:
    """The server of one engine: ``run`` drives it, ``serve`` is called once per link."""

    def __init__(
        self,
        engine: StepEngine,
        limits: ServerLimits,
        clock: Callable[[], float] = time.monotonic,
        observers: Sequence[Observer] = (),
        *,
        pads: bool = False,
    ) -> None:
        self.core = ServerCore(engine.info, limits, clock, secrets.token_bytes)
        self.engine = engine
        self._clock = clock
        self._observers = observers
        self._pads = pads  # every link to another host, and not only those that ask for it
        self._peers = Peers(clock)
        self._links: dict[Link, None] = {}
        self._work = asyncio.Event()
        self._left = asyncio.Event()  # a link is gone
        self._swept_at = 0.0  # what was abandoned
        self._failure: str | None = None  # of the policy, that the log has told of
        self._trials = SchemaTrials()

    # --- the batches ---------------------------------------------------------------------------

    async def run(self) -> None:
        """Verify whatever is ready, for ever.

        The next pass begins before the verdicts of the last are sent: sending takes its time, too.
        """
        news: list[Outgoing] = []
        while True:
            self._work.clear()  # before looking: what the news bring about is work, too
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
        waits = [s for s in (self.core.wait_s(), SWEEP_S) if s is not None]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(min(waits) if self.core.num_sessions else None):
                await self._work.wait()

    def _tell(self, news: list[Outgoing]) -> None:
        """What the last pass has brought: to the devices, and to the controller."""
        self._deliver(news)
        self.core.learn()
        self._log_failure()
        if self._clock() - self._swept_at > SWEEP_S:
            self._swept_at = self._clock()
            self._deliver(self.core.end_abandoned())
        if self.core.draining:
            self._send_devices_off()

    def _log_failure(self) -> None:
        """Once, for a policy that fails again and again."""
        failure = self.core.controller.failure
        if failure is not None and failure != self._failure:
            log.error("%s", failure)
        self._failure = failure

    def _deliver(self, outgoing: list[Outgoing]) -> None:
        for link, frame in outgoing:
            if link in self._links:
                self._send(link, frame)

    def _send(self, link: Link, frame: frames.FromServer) -> None:
        link.send(frame)
        for observer in self._observers:
            observer.down(link.number, frame)
        match frame:
            case Opened(session=session) | Verdict(session=session, finish=None):
                link.uploads.grant(session, frame.upload_bits_per_s, self._clock())
            case Verdict(session=session) | Error(session=int(session)):
                link.uploads.end(session)
        if link.is_too_slow:
            self._cut_off(link)

    def _cut_off(self, link: Link) -> None:
        """It does not read: what it was to be told is of use to who watches only."""
        error = Error(None, "too_slow", "the device does not read what it is sent")
        for observer in self._observers:
            observer.down(link.number, error)
        self._let_go(link)
        link.abort()

    # --- the end -------------------------------------------------------------------------------

    async def drain(self, seconds: float) -> None:
        """Nobody new is taken in; devices are sent off, to resume elsewhere or here later, once
        they have the verdicts of the running pass; texts of this process's own endpoint may end."""
        self.core.refuse_new(RESTART_S)
        self._work.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self._links:
                    self._left.clear()
                    await self._left.wait()
        for link in list(self._links):
            self._send_off(link, being_stopped(RESTART_S))

    def _send_devices_off(self) -> None:
        for link in list(self._links):
            if not link.is_local:
                self._send_off(link, being_stopped(RESTART_S))

    @property
    def links(self) -> Collection[Link]:
        return self._links.keys()

    # --- one link ------------------------------------------------------------------------------

    def serve(
        self, transport: ServerTransport, tenant: Tenant = LOCAL
    ) -> Coroutine[Any, Any, None]:
        """Speak with one device until it leaves or breaks the protocol."""
        taken = {link.number for link in self._links}
        link = Link(transport, tenant, next(n for n in itertools.count() if n not in taken))
        self._links[link] = None
        transport.receiver = functools.partial(self._receive, link)
        return self._speak(link)

    def _receive(self, link: Link, data: bytes | None) -> None:
        """A message has come, or the end. A draft is taken at once: that takes microseconds."""
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
            message = frames.decode_from_device(data)
        except PeerError as error:
            self._refuse(link, error)
            return
        if isinstance(message, Draft) and link.is_welcome:
            self._observe(link, message)
            self._answer(link, message, self._draft(link, message, 8 * len(data)))
        else:
            link.put(message, len(data))

    def _pace(self, link: Link, num_frames: int) -> None:
        """So many came, or, on a padded link, were answered with."""
        if link.pace.is_spent(self._clock(), num_frames):
            link.rest()
        if link.is_too_slow and link in self._links:
            self._cut_off(link)

    def _observe(self, link: Link, message: FromDevice) -> None:
        for observer in self._observers:
            observer.up(link.number, message)

    def _draft(self, link: Link, message: Draft, num_bits: int) -> list[Outgoing]:
        session = message.session
        if not link.uploads.is_too_fast(session, num_bits + TRANSPORT_BITS, self._clock()):
            return self.core.draft(link, message)
        self.core.close(link, Close(session))
        text = f"session = {session}: its drafts come faster than the granted upload_bits_per_s"
        return [(link, Error(session, "too_fast", text))]

    def _answer(self, link: Link, message: FromDevice, answers: list[Outgoing]) -> None:
        self._deliver(answers)
        for _, frame in answers:
            if isinstance(frame, Error) and is_offence(message, frame.code):
                self._blame(link)
        self._work.set()

    async def _speak(self, link: Link) -> None:
        try:
            await self._greet(link)
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

    # --- how a link ends -----------------------------------------------------------------------

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
        if link not in self._links:
            return
        del self._links[link]
        link.leave()
        self.core.drop(link)
        for observer in self._observers:
            observer.left(link.number)
        self._work.set()
        self._left.set()

    async def _greet(self, link: Link) -> None:
        if self.core.draining:
            raise being_stopped(RESTART_S)
        if left_s := self._peers.shut_out_s(link.peer):
            raise _abusive(left_s)
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
        self.core.connect(link, hello.spectral_efficiency, tenant=link.tenant)
        link.is_welcome = True
        for observer in self._observers:
            observer.joined(link.number, hello)
        pads = hello.pads or (self._pads and not link.is_local)
        self._send(link, welcome(self.core, link.tenant, pads=pads))
        if pads:
            link.pad(functools.partial(self._pace, link))

    async def _handle(self, link: Link, message: FromDevice) -> list[Outgoing]:
        match message:
            case Open():
                try:
                    self.core.check_open(link, message)
                    if message.json_schema:
                        await self._trials.check(message.json_schema, link.tenant.name)
                    prompt = await self._tokenize_prompt(message)
                except MultispinError as error:
                    return [(link, Error.of(message.session, error))]
                return self.core.open(link, message, prompt)
            case Resume():
                return self.core.resume(link, message)
            case Close():
                link.uploads.end(message.session)
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


def _abusive(retry_after_s: float) -> PeerError:
    return PeerError(
        "too many frames that no honest device sends: not let in for a while",
        code="abusive",
        retry_after_s=retry_after_s,
    )
