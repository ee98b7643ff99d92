"""asyncio around core.server: links come and go, one task runs the batches."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Callable, Mapping, Sequence

from multispin.core.controller import SessionKey
from multispin.core.engine import StepEngine
from multispin.core.gate import being_stopped
from multispin.core.limits import ServerLimits
from multispin.core.prompt import prompt_text, with_bos
from multispin.core.server import Outgoing, ServerCore
from multispin.core.welcome import welcome
from multispin.errors import EngineLost, IncompatibleModels, MultispinError, PeerError
from multispin.net.links import RESTART_S, Links, out_of_place
from multispin.net.observer import Observer
from multispin.net.schema_trial import SchemaTrials
from multispin.net.server_link import Link
from multispin.types import TokenIds
from multispin.wire import frames
from multispin.wire.frames import (
    TRANSPORT_BITS,
    Close,
    Draft,
    Error,
    FromDevice,
    Hello,
    Open,
    Opened,
    Redirect,
    Resume,
    Tokenize,
    Tokens,
    Verdict,
)

log = logging.getLogger("multispin.server")

SWEEP_S = 1.0  # sessions that were abandoned are looked for so often
HAND_OVER_S = 0.1  # for a session to begin elsewhere before the next one is sent there
MAX_TOKENIZED = 1 << 18  # characters of a text that a device may have tokenized


class EdgeServer(Links):
    """The server of one engine: ``run`` drives it, ``serve`` is called once per link."""

    def __init__(
        self,
        engine: StepEngine,
        limits: ServerLimits,
        clock: Callable[[], float] = time.monotonic,
        observers: Sequence[Observer] = (),
        *,
        pads: bool = False,
        directory: str = "",
    ) -> None:
        """``directory`` tells devices where to go: it sends those here who are to be served."""
        super().__init__(clock, observers)
        self.core = ServerCore(engine.info, limits, clock, secrets.token_bytes)
        self.engine = engine
        self._pads = pads  # every link to another host, and not only those that ask for it
        self._directory = directory  # or empty: there is none
        self._work = asyncio.Event()
        self.changed = asyncio.Event()  # the condition; set, and replaced, by each change
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
        if self.core.draining and not self._directory:
            self._send_devices_off()

    def _log_failure(self) -> None:
        """Once, for a policy that fails again and again."""
        failure = self.core.controller.failure
        if failure is not None and failure != self._failure:
            log.error("%s", failure)
        self._failure = failure

    def _send(self, link: Link, frame: frames.FromServer) -> None:
        match frame:
            case Opened(session=session) | Verdict(session=session, finish=None):
                link.uploads.grant(session, frame.upload_bits_per_s, self._clock())
            case Verdict(session=session) | Error(session=int(session)) | Redirect(session=session):
                link.uploads.end(session)
        super()._send(link, frame)

    # --- the end -------------------------------------------------------------------------------

    async def drain(self, seconds: float) -> None:
        """Nobody new is taken in; devices are sent off, to resume elsewhere or here later, once
        they have the verdicts of the running pass; with a directory, they are handed over one by
        one. Texts of this process's own endpoint may end."""
        self.core.refuse_new(RESTART_S)
        self._work.set()
        self._tell_change()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                if self._directory:
                    await self._hand_over(seconds)
                while self._links:
                    await self._one_left()
        for link in list(self._links):
            self._send_off(link, being_stopped(RESTART_S))

    async def _hand_over(self, seconds: float) -> None:
        """Devices' sessions, one after the other: who takes them has to read each anew. In half as
        many seconds; all verdicts so far have been sent, and what a pass is at is not told."""
        keys = [key for key in self.core.open_sessions if not _link(key).is_local]
        pause_s = min(HAND_OVER_S, 0.5 * seconds / (len(keys) + 1))
        last: Link | None = None
        for key in keys:  # before the first, the directory is to hear of it
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    while last is None or last in self._links:
                        await self._one_left()
            self._deliver(self.core.hand_over(key, self._directory))
            last = _link(key)
        self._send_devices_off()

    def _send_devices_off(self) -> None:
        for link in list(self._links):
            if not link.is_local:
                self._send_off(link, being_stopped(RESTART_S))

    def _tell_change(self) -> None:
        changed, self.changed = self.changed, asyncio.Event()
        changed.set()

    def set_budgets(self, budgets: Mapping[str, float]) -> None:
        """Of radio cells; see core.cells. Raise BadInput for what none can be."""
        self.core.controller.set_budgets(budgets)
        for observer in self._observers:
            observer.shared_out(self.core.controller.budgets)

    # --- one link ------------------------------------------------------------------------------

    @property
    def is_draining(self) -> bool:
        return self.core.draining

    def _take(self, link: Link, message: FromDevice, num_bytes: int) -> None:
        """A draft is taken at once: that takes microseconds."""
        if isinstance(message, Draft) and link.is_welcome:
            self._observe(link, message)
            self._answer(link, message, self._draft(link, message, 8 * num_bytes))
        else:
            super()._take(link, message, num_bytes)

    def _draft(self, link: Link, message: Draft, num_bits: int) -> list[Outgoing]:
        session = message.session
        if not link.uploads.is_too_fast(session, num_bits + TRANSPORT_BITS, self._clock()):
            return self.core.draft(link, message)
        self.core.close(link, Close(session))
        text = f"session = {session}: its drafts come faster than the granted upload_bits_per_s"
        return [(link, Error(session, "too_fast", text))]

    def _answer(self, link: Link, message: FromDevice, answers: list[Outgoing]) -> None:
        super()._answer(link, message, answers)
        self._work.set()

    def _let_go(self, link: Link) -> None:
        if link in self._links:
            self.core.drop(link)
            super()._let_go(link)
            self._work.set()

    async def _greet(self, link: Link, hello: Hello) -> None:
        info = self.core.info
        if hello.fingerprint not in (None, info.fingerprint):
            raise IncompatibleModels(
                "drafter",
                hello.drafter,
                f"its vocabulary differs from that of the target {info.target}: draft with a "
                "model of the target's family, or with lookup",
            )
        self.core.connect(link, hello.spectral_efficiency, tenant=link.tenant, cell=hello.cell)
        pads = hello.pads or (self._pads and not link.is_local)
        self._welcome(link, hello, welcome(self.core, link.tenant, pads=pads))

    async def _handle(self, link: Link, message: FromDevice) -> list[Outgoing]:
        match message:
            case Open():
                return await self._open(link, message)
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
                raise out_of_place(message)

    async def _open(self, link: Link, message: Open) -> list[Outgoing]:
        if self._belongs_elsewhere(link, message):
            return [(link, Redirect(message.session, self._directory))]
        try:
            self.core.check_open(link, message)
            if message.json_schema:
                await self._trials.check(message.json_schema, link.tenant.name)
            prompt = await self._tokenize_prompt(message)
        except MultispinError as error:
            return [(link, Error.of(message.session, error))]
        if self._belongs_elsewhere(link, message):  # by now
            return [(link, Redirect(message.session, self._directory))]
        return self.core.open(link, message, prompt)

    def _belongs_elsewhere(self, link: Link, message: Open) -> bool:
        """Whether a directory has to say where."""
        is_placed = message.is_placed and not self.core.draining
        return bool(self._directory) and not link.is_local and not is_placed

    async def _tokenize_prompt(self, message: Open) -> TokenIds:
        vocabulary = self.core.vocabulary
        text, parse_special = prompt_text(message.prompt, vocabulary, message.tools)
        ids = await self.engine.tokenize(text, parse_special=parse_special)
        return with_bos(ids, message.prompt, vocabulary)


def _link(key: SessionKey) -> Link:
    assert isinstance(key.link, Link)
    return key.link
