"""A child process that answers requests one by one, in their order.

Requests go to its standard input, answers come from its standard output: MessagePack structs, each
behind its length in four bytes.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import BinaryIO, Generic, TypeVar, cast

import msgspec

from multispin.errors import BadInput, MultispinError

Request = TypeVar("Request")
Response = TypeVar("Response")

HEAD = 4  # bytes that hold a message's length


class ChildDied(Exception):
    """The request was not answered, and no other will be."""


class Failed(msgspec.Struct, array_like=True, tag=-1):
    """Answers a request that could not be served; ``bad_input`` (field, value, remedy) if the
    caller erred."""

    code: str
    message: str
    bad_input: tuple[str, str, str] | None = None

    @classmethod
    def of(cls, error: MultispinError) -> Failed:
        bad_input = None
        if isinstance(error, BadInput):
            bad_input = (error.field, str(error.value), error.remedy)
        return cls(error.code, str(error), bad_input)

    def error(self, kind: Callable[..., MultispinError]) -> MultispinError:
        """To be raised by the parent; ``kind`` where nobody erred."""
        if self.bad_input:
            return BadInput(*self.bad_input, code=self.code)
        return kind(self.message, code=self.code)


def requests(stream: BinaryIO) -> Iterator[bytes]:
    """The child's end: what is asked, until the parent is gone."""
    while len(head := stream.read(HEAD)) == HEAD:
        yield stream.read(int.from_bytes(head, "little"))


def reply(stream: BinaryIO, body: bytes) -> None:
    stream.write(_framed(body))
    stream.flush()


def _framed(body: bytes) -> bytes:
    return len(body).to_bytes(HEAD, "little") + body


class Child(asyncio.SubprocessProtocol, Generic[Request, Response]):
    """The parent's end."""

    def __init__(self, decoder: msgspec.msgpack.Decoder[Response]) -> None:
        self._code: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = decoder
        self._asked: deque[asyncio.Future[Response]] = deque()
        self._unread = bytearray()

    @classmethod
    async def start(
        cls, arguments: Sequence[str], decoder: msgspec.msgpack.Decoder[Response]
    ) -> Child[Request, Response]:
        # Ctrl-C is for the parent, which then ends its children in good order.
        _, child = await asyncio.get_running_loop().subprocess_exec(
            lambda: cls(decoder), *arguments, stderr=None, start_new_session=True
        )
        return child

    def ask(self, request: Request) -> asyncio.Future[Response]:
        """Send a request at once; the answer may raise ChildDied."""
        answer = asyncio.get_running_loop().create_future()
        if self._code.done():
            answer.set_exception(ChildDied())
            return answer
        self._asked.append(answer)
        self._stdin.write(_framed(self._encoder.encode(request)))
        return answer

    def kill(self) -> None:
        if self._process.get_returncode() is None:
            self._process.kill()

    async def exit_code(self) -> int:
        """When it has exited."""
        return await asyncio.shield(self._code)

    # --- asyncio.SubprocessProtocol --------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._process = cast(asyncio.SubprocessTransport, transport)
        self._stdin = cast(asyncio.WriteTransport, self._process.get_pipe_transport(0))

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        self._unread += data
        while len(self._unread) >= HEAD:
            end = HEAD + int.from_bytes(self._unread[:HEAD], "little")
            if len(self._unread) < end:
                return
            answer = self._asked.popleft()
            if not answer.done():  # nobody waits for it any more
                answer.set_result(self._decoder.decode(memoryview(self._unread)[HEAD:end]))
            del self._unread[:end]

    def connection_lost(self, exc: Exception | None) -> None:
        """It has exited, and everything that it said is read."""
        code = self._process.get_returncode()
        assert code is not None
        self._process.close()
        self._code.set_result(code)
        for answer in self._asked:
            if not answer.done():
                answer.set_exception(ChildDied())
        self._asked.clear()
