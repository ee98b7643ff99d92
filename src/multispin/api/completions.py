"""POST /v1/chat/completions and /v1/completions: order the texts, pass on what is committed."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Sequence
from typing import Any

import msgspec
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from multispin.api.answer import Answer, Begin, Tell, speculation, usage
from multispin.api.auth import ending
from multispin.api.body import decode, read_body
from multispin.api.dialects import Dialect
from multispin.api.errors import ApiError, api_error
from multispin.api.sse import EventStream, while_connected
from multispin.api.texts import AUTO, FindTexts, Texts, texts_of
from multispin.core.device import Committed

TRACEPARENT_LENGTH = 55  # W3C's version 00


class Endpoint:
    """The ASGI application of one dialect. What goes wrong is answered with a status, or, once
    events were sent, with a last event."""

    def __init__(self, find_texts: FindTexts, dialect: Dialect) -> None:
        self._find_texts = find_texts
        self._dialect = dialect

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        events = EventStream(scope, send)
        try:
            await self._answer(events, scope, receive, send)
        except ClientDisconnect:
            pass  # nobody listens
        except asyncio.CancelledError:
            await self._refuse(ending(scope), events, scope, receive, send)
        except Exception as error:
            await self._refuse(api_error(error), events, scope, receive, send)

    async def _answer(
        self, events: EventStream, scope: Scope, receive: Receive, send: Send
    ) -> None:
        dialect = self._dialect
        body = decode(await read_body(receive), dialect.request)
        texts = texts_of(body.model, self._find_texts(scope))
        trace = _trace(scope)
        requests = [request._replace(trace=trace) for request in dialect.requests(body, texts)]
        answers = [Answer(index, request) for index, request in enumerate(requests)]
        call = Call(dialect, texts, answers, body.n or 1)
        if body.stream:
            wants_usage = bool(body.stream_options and body.stream_options.include_usage)
            await while_connected(receive, call.stream(events, wants_usage))
        else:
            await while_connected(receive, call.whole(scope, receive, send))

    async def _refuse(
        self, error: ApiError, events: EventStream, scope: Scope, receive: Receive, send: Send
    ) -> None:
        if events.has_started:
            await events.fail(error)
            return
        if error.param is not None:
            error.param = self._dialect.fields.get(error.param, error.param)
        await error.response()(scope, receive, send)


def _trace(scope: Scope) -> str:
    """Of which trace the client says that its request is a part."""
    trace = Headers(scope=scope).get("traceparent", "")
    return trace if len(trace) == TRACEPARENT_LENGTH else ""


class Call:
    """One request and its answers."""

    def __init__(
        self, dialect: Dialect, texts: Texts, answers: Sequence[Answer], num_per_prompt: int
    ) -> None:
        self._dialect = dialect
        self._texts = texts
        self._answers = answers
        self._num_per_prompt = num_per_prompt
        self._head = {
            "id": dialect.id_prefix + secrets.token_hex(12),
            "created": int(time.time()),
            "model": texts.target,
        }

    async def whole(self, scope: Scope, receive: Receive, send: Send) -> None:
        """All at once."""

        async def nothing(*news: Any) -> None: ...

        await self._write(self._began, nothing)
        document = self._dialect.whole(
            object=self._dialect.whole_object,
            choices=[self._dialect.choice(answer) for answer in self._answers],
            **self._head,
            **self._summary(),
        )
        response = Response(msgspec.json.encode(document), media_type="application/json")
        await response(scope, receive, send)

    async def stream(self, events: EventStream, wants_usage: bool) -> None:
        """Every commit as soon as it is made."""
        dialect = self._dialect

        async def begin(answer: Answer) -> None:
            await self._began(answer)
            await events.start()
            if opening := dialect.opening(answer):
                await events.send(self._chunk(opening))

        async def tell(answer: Answer, committed: Committed) -> None:
            chunks = []
            if committed.text or committed.logprobs or committed.replaces:
                piece = dialect.piece(answer, committed)
                chunks.append(self._chunk([piece], **_caveats(committed)))
            if committed.finish:
                chunks.append(self._chunk([dialect.closing(answer)]))
            if chunks:
                await events.send(*chunks)

        await self._write(begin, tell)
        if wants_usage:
            await events.send(self._chunk([], **self._summary()))
        await events.end()

    async def _began(self, answer: Answer) -> None:
        if self._texts.target == AUTO:  # now it is known what that is
            self._head["model"] = answer.model

    async def _write(self, begin: Begin, tell: Tell) -> None:
        """All answers side by side; if one fails, the others are given up."""
        try:
            async with asyncio.TaskGroup() as group:
                for answer in self._answers:
                    group.create_task(answer.write(self._texts, begin, tell))
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None

    def _chunk(self, choices: Sequence[Any], **summary: Any) -> bytes:
        kind = self._dialect.chunk_object
        chunk = self._dialect.chunk(object=kind, choices=choices, **self._head, **summary)
        return msgspec.json.encode(chunk)

    def _summary(self) -> dict[str, Any]:
        return {
            "usage": usage(self._answers, self._num_per_prompt),
            "seed": self._answers[0].request.seed,
            "speculation": speculation(self._answers).report(),
        }


def _caveats(committed: Committed) -> dict[str, Any]:
    """What a reader has to know of it, if anything."""
    caveats: dict[str, Any] = {}
    if committed.provisional:
        caveats["provisional"] = True
    if committed.replaces:
        caveats["replaces"] = committed.replaces
    return caveats
