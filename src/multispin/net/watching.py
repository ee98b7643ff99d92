"""A watch link to a replica: its status as it changes, and the documents that one asks it for."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Callable
from typing import NoReturn

from multispin.errors import BadInput, MultispinError, PeerError
from multispin.net.address import Address
from multispin.net.line import Backoff
from multispin.net.transport import TransportClosed
from multispin.net.websocket import WebSocketTransport
from multispin.wire import replica
from multispin.wire.replica import STATUS_S, WATCH_PATH, Ask, Budgets, Document, Status, Told

log = logging.getLogger("multispin.watching")

MOST_WAIT_S = 1.0  # a replica that is back is found within this
SILENT_S = 5 * STATUS_S  # who has said nothing for so long is gone


class ReplicaWatch:
    """Keeps a link to one replica for ever, until `close`. ``on_status`` is told each status as it
    comes, and None as soon as the link is lost."""

    def __init__(
        self,
        address: Address,
        on_status: Callable[[Status | None], None],
        *,
        clock: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
    ) -> None:
        self.address = address
        self.status: Status | None = None  # None: no link, or nothing has come on it yet
        self.trouble = "no connection yet"  # why there is none; empty while there is
        self._on_status = on_status
        self._clock = clock
        self._backoff = Backoff(rng or random.Random(), MOST_WAIT_S)
        self._transport: WebSocketTransport | None = None
        self._asked: dict[Document, asyncio.Future[bytes | None]] = {}
        self._task = asyncio.create_task(self._keep())

    async def ask(self, document: Document) -> bytes:
        """What the replica answers; raise PeerError (code unreachable) when the link is lost.

        It may take as long as the replica likes; who asks meanwhile gets the same answer.
        """
        answer = self._asked.get(document)
        if answer is None:
            if self._transport is None:
                raise self._unreachable()
            answer = self._asked[document] = asyncio.get_running_loop().create_future()
            await self._send(Ask(document))
        body = await asyncio.shield(answer)  # others may wait for it, too
        if body is None:
            raise self._unreachable()
        return body

    async def send(self, budgets: Budgets) -> None:
        """Lost where there is no link: send them anew with the first status of the next."""
        await self._send(budgets)

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])

    async def _send(self, message: Ask | Budgets) -> None:
        if self._transport is not None:
            with contextlib.suppress(TransportClosed):  # which the reader finds out, too
                await self._transport.send(replica.encode(message))

    def _unreachable(self) -> PeerError:
        return PeerError(f"{self.address}: {self.trouble}", code="unreachable")

    # --- one link after another ----------------------------------------------------------------

    async def _keep(self) -> None:
        while True:
            began = self._clock()
            try:
                await self._watch()
            except MultispinError as error:
                self._tell(error.remedy if isinstance(error, BadInput) else str(error))
                least_s = min(error.retry_after_s, MOST_WAIT_S)
            # Where links are cut as soon as they are made, attempts go on to become rarer.
            if self._clock() - began > self._backoff.bound_s:
                self._backoff.reset()
            await asyncio.sleep(self._backoff.next_s(least_s))

    def _tell(self, trouble: str) -> None:
        """Once, for what is the same again and again."""
        if trouble != self.trouble:
            fields = {"server": str(self.address), "reason": trouble}
            log.warning("replica_lost", extra={"fields": fields})
        self.trouble = trouble

    async def _watch(self) -> NoReturn:
        """Raise MultispinError when there is no link, or none any more."""
        transport = await WebSocketTransport.connect(self.address, WATCH_PATH)
        self._transport = transport
        try:
            while True:
                async with asyncio.timeout(SILENT_S):
                    data = await transport.receive()
                self._take(replica.decode_from_replica(data))
        except TransportClosed:
            raise PeerError("the replica closed the link", code="unreachable") from None
        except TimeoutError:
            raise PeerError(f"no news for {SILENT_S:g} s", code="unreachable") from None
        finally:
            self._lose()
            await transport.close()

    def _take(self, message: Status | Told) -> None:
        match message:
            case Status():
                if self.trouble:
                    log.info("replica_found", extra={"fields": {"server": str(self.address)}})
                self.status, self.trouble = message, ""
                self._on_status(message)
            case Told(document=document, body=body):
                if (asked := self._asked.pop(document, None)) is not None:
                    asked.set_result(body)

    def _lose(self) -> None:
        """Before anything else is done, those who look are told."""
        self._transport = None
        asked, self._asked = self._asked, {}
        for answer in asked.values():
            answer.set_result(None)
        if self.status is not None:
            self.status = None
            self._on_status(None)
