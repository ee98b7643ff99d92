"""What a padded link shows to whoever watches it: parcels of one size, at a fixed pace.

Sizes and times of messages tell which text is being written, even under TLS (arXiv 2411.01076). On
a padded link all frames after `welcome` are one stream of bytes each way, every frame behind its
length, and the stream is cut into *parcels*:

- the device sends one every PACE_S while it has a session, filled up or empty, and goes on until
  their number is a power of two; then it is silent;
- the server answers each parcel with one, at once, whatever is in it: it keeps the device's pace;
- what opens a text does not wait: it goes in a burst of as many parcels as a power of two;
- whoever has more to say than one parcel a time can carry sends twice as many from then on.

What remains to be seen are powers of two: of the prompt's length, of the time that a text takes,
and of the rate, if it is high. Nothing here does any I/O.
"""

from __future__ import annotations

import msgspec

from multispin.errors import PeerError
from multispin.wire.frames import (
    MAX_FRAME_BYTES,
    Find,
    Open,
    Opened,
    Redirect,
    Resume,
    Tokenize,
    Tokens,
)

PACE_S = 0.05
PARCEL_BYTES = 128
COUNT_BYTES = 2  # in front: how many of the others are of the stream
CARGO_BYTES = PARCEL_BYTES - COUNT_BYTES
LENGTH_BYTES = 4  # in front of each frame
MIN_BURST = 8  # parcels: 1 KB, which most prompts are shorter than
MIN_TICKS = 16

_AT_ONCE = frozenset(
    kind.__struct_config__.tag for kind in (Open, Opened, Resume, Find, Redirect, Tokenize, Tokens)
)


class Parcel(msgspec.Struct, array_like=True, frozen=True, tag=11):
    """Either way, on a padded link: a piece of the stream."""

    data: bytes


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Parcel)


def goes_on(num_ticks: int, is_busy: bool) -> bool:
    """Whether a device that has sent parcels at so many ticks sends at one more."""
    return is_busy or num_ticks < MIN_TICKS or num_ticks & (num_ticks - 1) != 0


class Packer:
    """Frames in, parcels out."""

    def __init__(self) -> None:
        self._stream = bytearray()
        self._width = 1  # parcels a tick

    @property
    def num_waiting(self) -> int:
        """Bytes that are still to leave."""
        return len(self._stream)

    def add(self, frame: bytes) -> list[bytes]:
        """Take a frame; the parcels that leave at once, if it is one that does not wait."""
        self._stream += len(frame).to_bytes(LENGTH_BYTES, "little") + frame
        if _tag(frame) not in _AT_ONCE:
            return []
        num_parcels = max(MIN_BURST, -(-len(self._stream) // CARGO_BYTES))
        return self._parcels(1 << (num_parcels - 1).bit_length())

    def tick(self) -> list[bytes]:
        """The parcels that are due now: as many as ever, or twice that if too much waits."""
        if len(self._stream) > MIN_BURST * CARGO_BYTES * self._width:
            self._width *= 2
        return self._parcels(self._width)

    def rest(self) -> list[bytes]:
        """All that waits, before the link ends."""
        return self._parcels(-(-len(self._stream) // CARGO_BYTES))

    def _parcels(self, count: int) -> list[bytes]:
        cargo = [self._stream[i * CARGO_BYTES : (i + 1) * CARGO_BYTES] for i in range(count)]
        del self._stream[: count * CARGO_BYTES]
        return [_encoder.encode(_parcel(bytes(piece))) for piece in cargo]


class Unpacker:
    """Parcels in, frames out."""

    def __init__(self) -> None:
        self._stream = bytearray()

    def feed(self, message: bytes) -> list[bytes]:
        """The frames that are complete now. Raise PeerError (bad_frame) for what is no parcel."""
        self._stream += _cargo(message)
        frames = []
        while (end := self._end()) <= len(self._stream):
            frames.append(bytes(self._stream[LENGTH_BYTES:end]))
            del self._stream[:end]
        return frames

    def _end(self) -> int:
        """Where the first frame ends."""
        if len(self._stream) < LENGTH_BYTES:
            return LENGTH_BYTES
        length = int.from_bytes(self._stream[:LENGTH_BYTES], "little")
        if not 0 < length <= MAX_FRAME_BYTES:
            raise PeerError(f"a frame of {length} bytes in a parcel", code="bad_frame")
        return LENGTH_BYTES + length


def _parcel(cargo: bytes) -> Parcel:
    count = len(cargo).to_bytes(COUNT_BYTES, "little")
    return Parcel(count + cargo + bytes(CARGO_BYTES - len(cargo)))


def _cargo(message: bytes) -> bytes:
    try:
        data = _decoder.decode(message).data
    except msgspec.DecodeError as error:
        raise PeerError(f"no parcel, on a padded link: {error}", code="bad_frame") from error
    count = int.from_bytes(data[:COUNT_BYTES], "little")
    if len(data) != PARCEL_BYTES or count > CARGO_BYTES:
        raise PeerError("a parcel of another size", code="bad_frame")
    return data[COUNT_BYTES : COUNT_BYTES + count]


def _tag(frame: bytes) -> int:
    """The number of a frame: behind the head of an array of up to 15, or of more elements."""
    return frame[1] if frame[0] < 0xA0 else frame[3]
