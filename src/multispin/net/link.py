"""A device's link to the server: hello, welcome, then frames sorted by session."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeVar

from multispin.errors import BadInput, PeerError
from multispin.net.observer import Observer
from multispin.net.padded import PaddedTransport
from multispin.net.transport import Transport, TransportClosed
from multispin.types import TokenIds
from multispin.wire import frames
from multispin.wire.frames import (
    PROTOCOL_VERSION,
    Error,
    Frame,
    Hello,
    Redirect,
    Tokenize,
    Tokens,
    Welcome,
)

F = TypeVar("F", bound=Frame)

WELCOME_TIMEOUT_S = 10.0


class LinkLost(PeerError):
    """The link ended, and not only a session; ``code`` says why."""


class Redirected(PeerError):
    """The server does not serve the session, or no longer: a directory knows who does."""

    def __init__(self, directory: str) -> None:
        super().__init__("the server sends the session elsewhere", code="redirected")
        self.directory = directory  # empty: the one that the device knows


class Received(NamedTuple):
    frame: frames.FromServer
    num_bytes: int


class Channel:
    """The frames of one session (or of one question) on a link, and their bytes."""

    def __init__(self, link: DeviceLink, number: int) -> None:
        self.number = number
        self.uplink_bytes = 0
        self.downlink_bytes = 0
        self.link = link
        self._inbox: asyncio.Queue[Received | BaseException] = asyncio.Queue()

    async def send(self, frame: frames.FromDevice) -> None:
        self.uplink_bytes += await self.link.send(frame)

    async def receive(self, kind: type[F]) -> F:
        """The next frame, which must be a ``kind``. What the server refuses is raised, Redirected
        when the session is to go on elsewhere, and LinkLost when nothing more can come."""
        received = await self._inbox.get()
        if isinstance(received, BaseException):
            raise received
        self.downlink_bytes += received.num_bytes
        if isinstance(received.frame, Error):
            raise _refusal(received.frame)
        if isinstance(received.frame, Redirect) and kind is not Redirect:
            raise Redirected(received.frame.server)
        if not isinstance(received.frame, kind):
            raise PeerError(
                f"the server sent {type(received.frame).__name__.lower()} where "
                f"{kind.__name__.lower()} was due",
                code="out_of_order",
            )
        return received.frame

    def deliver(self, received: Received) -> None:
        self._inbox.put_nowait(received)

    def fail(self, error: BaseException) -> None:
        """Raise the error where frames are received."""
        self._inbox.put_nowait(error)


class DeviceLink:
    """One connection after hello and welcome, shared by any number of channels.

    ``number`` tells a device's links apart, for observers.
    """

    def __init__(
        self,
        transport: Transport,
        welcome: Welcome,
        observers: Sequence[Observer] = (),
        number: int = 0,
    ) -> None:
        self.welcome = welcome
        self.observers = observers
        self.number = number
        self.id_bits = frames.id_bits(welcome.vocabulary_size)
        self._channels: dict[int, Channel] = {}
        self._transport = (
            PaddedTransport(transport, lambda: bool(self._channels)) if welcome.pads else transport
        )
        self._next_number = 0
        self._end: Error | None = None
        self._has_ended = asyncio.Event()
        self._reader = asyncio.create_task(self._read())

    @classmethod
    async def greet(
        cls,
        transport: Transport,
        drafter: str,
        fingerprint: str | None,
        spectral_efficiency: float = 1.0,
        observers: Sequence[Observer] = (),
        *,
        pads: bool = False,
        cell: str = "",
        number: int = 0,
    ) -> DeviceLink:
        """Say hello; with ``pads`` ask for a padded link. Raise PeerError if the server declines or
        does not answer."""
        hello = Hello(PROTOCOL_VERSION, drafter, fingerprint, spectral_efficiency, pads, cell)
        try:
            async with asyncio.timeout(WELCOME_TIMEOUT_S):
                with contextlib.suppress(TransportClosed):  # it may have said why
                    await transport.send(frames.encode(hello))
                answer = frames.decode_from_server(await transport.receive())
        except TransportClosed:
            raise PeerError("the server closed the link at hello", code="unreachable") from None
        except TimeoutError:
            raise PeerError(
                f"the server did not answer hello within {WELCOME_TIMEOUT_S:g} s: is it one of "
                "multispin?",
                code="unreachable",
            ) from None
        match answer:
            case Welcome(version=version) if version != PROTOCOL_VERSION:
                raise PeerError(
                    f"welcome.version = {version}: this device speaks {PROTOCOL_VERSION}; "
                    "install the same version of multispin on both sides",
                    code="version_mismatch",
                )
            case Welcome():
                for observer in observers:
                    observer.joined(number, hello)
                return cls(transport, answer, observers, number)
            case Error():
                raise _refusal(answer)
            case _:
                raise PeerError("the server's first message must be welcome", code="out_of_order")

    @property
    def is_up(self) -> bool:
        """Whether the server can be heard."""
        return self._end is None

    @property
    def loss(self) -> PeerError:
        """Why it is not up."""
        assert self._end is not None
        return _refusal(self._end)

    async def ended(self) -> PeerError:
        """Wait for the end; why it came."""
        await self._has_ended.wait()
        return self.loss

    @property
    def num_channels(self) -> int:
        """That are in use."""
        return len(self._channels)

    @property
    def num_used(self) -> int:
        """Channels that there ever were."""
        return self._next_number

    @contextlib.contextmanager
    def channel(self) -> Iterator[Channel]:
        channel = Channel(self, self._next_number)
        self._next_number += 1
        self._channels[channel.number] = channel
        if self._end is not None:
            channel.deliver(Received(self._end, 0))
        try:
            yield channel
        finally:
            del self._channels[channel.number]

    async def tokenize(self, text: str) -> TokenIds:
        """The target's token ids of a text."""
        with self.channel() as channel:
            await channel.send(Tokenize(channel.number, text))
            tokens = await channel.receive(Tokens)
        return frames.unpack_ids(tokens.ids, self.id_bits, self.welcome.vocabulary_size)

    async def send(self, frame: frames.FromDevice) -> int:
        """Send, and return the number of bytes of payload."""
        data = frames.encode(frame)
        if len(data) > frames.MAX_FRAME_BYTES:
            raise BadInput(
                "prompt",
                f"{len(data)} bytes",
                f"a message holds {frames.MAX_FRAME_BYTES}: shorten it",
            )
        with contextlib.suppress(TransportClosed):  # the reader tells every channel
            await self._transport.send(data)
        for observer in self.observers:
            observer.up(self.number, frame)
        return len(data)

    async def close(self) -> None:
        """Whoever still waits for a frame is told."""
        self._reader.cancel()
        self._ends(Error(None, "unreachable", "the link is closed"))
        await self._transport.close()

    async def _read(self) -> None:
        end = Error(None, "unreachable", "the server closed the link")
        try:
            while True:
                data = await self._transport.receive()
                frame = frames.decode_from_server(data)
                match frame:
                    case Error(session=None):
                        self._tell(frame)
                        end = frame
                        break
                    case Tokens(request=number) | frames.Opened(session=number):
                        pass
                    case frames.Verdict(session=number) | Error(session=number):
                        pass
                    case Redirect(session=number):
                        pass
                    case _:
                        raise PeerError("a second welcome", code="out_of_order")
                # A channel that is gone has closed its session; what still arrives is late.
                if number in self._channels:
                    self._tell(frame)
                    self._channels[number].deliver(Received(frame, len(data)))
        except TransportClosed:
            pass
        except PeerError as error:
            end = Error(None, error.code, str(error))
        finally:
            self._ends(end)
        await self._transport.close()

    def _ends(self, end: Error) -> None:
        if self._end is not None:
            return
        self._end = end
        self._has_ended.set()
        for observer in self.observers:
            observer.left(self.number)
        for channel in self._channels.values():
            channel.deliver(Received(end, 0))

    def _tell(self, frame: frames.FromServer) -> None:
        for observer in self.observers:
            observer.down(self.number, frame)


def _refusal(error: Error) -> PeerError:
    kind = PeerError if error.session is not None else LinkLost
    return kind(error.message, code=error.code, retry_after_s=error.retry_after_s)
