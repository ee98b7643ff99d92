"""`/v1/replica`: who places sessions here, or shares out the uplink, watches and steers the server.

wire/replica.py has the messages. The status is made once for all watchers. Of each one message is
looked at, and answered, before the next is read; who does not read what it is sent is cut off.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from starlette.websockets import WebSocket

from multispin.api.device_socket import EXTENSION
from multispin.core.cells import with_budgets
from multispin.core.controller import SessionKey
from multispin.core.welcome import welcome
from multispin.errors import MultispinError
from multispin.net.server import EdgeServer
from multispin.net.server_link import MAX_UNSENT
from multispin.net.telemetry import Recent
from multispin.net.transport import ServerTransport
from multispin.wire.replica import (
    STATUS_S,
    Ask,
    Condition,
    Document,
    FromWatcher,
    Status,
    Told,
    decode_from_watcher,
    encode,
)

if TYPE_CHECKING:
    from multispin.api.app import ServerState

LOOK_S = 0.1  # between two looks at condition and sessions; a drain is told at once
ANSWER_S = 0.02  # between two answers to a watcher: documents take milliseconds
MAX_WATCHERS = 64

Documents = Mapping[Document, Callable[[], bytes]]


class ReplicaSocket:
    """The endpoint of all watchers."""

    def __init__(self, state: ServerState, documents: Documents) -> None:
        self._state = state
        self._documents = documents
        self._watchers: dict[_Watcher, None] = {}
        self._telling: asyncio.Task[None] | None = None
        self._verdicts = Recent(2)  # how many, and what they took

    async def watch(self, websocket: WebSocket) -> None:
        await websocket.accept()
        await self.serve(websocket.scope["extensions"][EXTENSION])

    async def serve(self, transport: ServerTransport) -> None:
        """One watcher, until it leaves or sends what is no message."""
        if len(self._watchers) >= MAX_WATCHERS:
            self._state.telemetry.refused("overloaded")
            transport.close()
            return
        watcher = _Watcher(transport)
        self._watchers[watcher] = None
        if self._telling is None:
            self._telling = asyncio.create_task(self._tell_all())
        try:
            watcher.write(encode(self._status()))
            while (data := await watcher.read()) is not None:
                self._answer(watcher, decode_from_watcher(data))
                await asyncio.sleep(ANSWER_S)
        except MultispinError as error:
            self._state.telemetry.refused(error.code)
        finally:
            del self._watchers[watcher]
            if not self._watchers:
                self._telling.cancel()
                self._telling = None
            transport.close()

    def _answer(self, watcher: _Watcher, message: FromWatcher) -> None:
        if isinstance(message, Ask):
            body = self._documents[message.document]()
            watcher.write(encode(Told(message.document, body)))
        elif self._state.server is None:
            self._state.budgets = with_budgets(self._state.budgets, message.budgets)
        else:
            self._state.server.set_budgets(message.budgets)

    # --- the status ----------------------------------------------------------------------------

    async def _tell_all(self) -> None:
        told, told_at = self._mark(), time.monotonic()
        while True:
            await self._look()
            mark, now = self._mark(), time.monotonic()
            if mark != told or now - told_at >= STATUS_S:
                told, told_at = mark, now
                status = encode(self._status())
                for watcher in list(self._watchers):
                    watcher.write(status)

    def _mark(self) -> tuple[Condition, list[SessionKey]]:
        """What is told as soon as it changes: whoever places sessions counts those that it placed
        since the last status, and would take a place for taken long after a short text."""
        server = self._state.server
        return self._state.condition, server.core.open_sessions if server else []

    async def _look(self) -> None:
        server = self._state.server
        changed = asyncio.Event() if server is None else server.changed
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LOOK_S):
                await changed.wait()

    def _status(self) -> Status:
        state = self._state
        if state.server is None:
            return _loading(state.name)
        return self._of(state.server, state.condition)

    def _of(self, server: EdgeServer, condition: Condition) -> Status:
        core, fit = server.core, server.core.controller.fit
        counters = core.counters
        self._verdicts.follow(time.monotonic(), counters.num_verdicts, counters.verdict_s)
        num_verdicts, verdict_s = self._verdicts.grown
        return Status(
            name=self._state.name or core.info.target,
            condition=condition,
            welcome=welcome(core),
            num_sessions=core.num_sessions,
            max_sessions=core.info.num_sequences,
            num_rows_waiting=core.num_rows_waiting,
            s_per_verdict=verdict_s / num_verdicts if num_verdicts > 0.5 else 0.0,
            goodput_tokens_per_s=self._state.telemetry.recent_drafts().goodput_tokens_per_s,
            num_committed_tokens=counters.num_committed_tokens,
            pass_fixed_s=fit.fixed_s,
            pass_s_per_session=fit.per_device_s,
            pass_s_per_row=fit.per_token_s,
            cells=core.controller.loads(),
        )


def _loading(name: str) -> Status:
    return Status(name, "loading", None, 0, 0, 0, 0.0, 0.0, 0, 0.0, 0.0, 0.0)


class _Watcher:
    """One of them, from here."""

    def __init__(self, transport: ServerTransport) -> None:
        self._transport = transport
        self._inbox: asyncio.Queue[bytes | None] = asyncio.Queue()
        transport.receiver = self._receive

    def _receive(self, data: bytes | None) -> None:
        if data is not None:
            self._transport.pause(True)
        self._inbox.put_nowait(data)

    async def read(self) -> bytes | None:
        """The next message; None when it has left."""
        if self._inbox.empty():
            self._transport.pause(False)
        return await self._inbox.get()

    def write(self, data: bytes) -> None:
        if self._transport.num_unsent > MAX_UNSENT:
            self._transport.abort()
        else:
            self._transport.write(data)
