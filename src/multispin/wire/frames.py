"""The messages between device and server, and their bytes.

One WebSocket binary message carries one frame: a MessagePack array whose first element is the
frame's number. Token ids travel packed, ``id_bits`` bits each, least significant bit first.
docs/protocol.md lists every frame with test vectors.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any, TypeAlias, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

from multispin.acceptance import PROPOSAL_TOTAL
from multispin.errors import MultispinError, PeerError
from multispin.types import AcceptanceRule, FinishReason, Mode, SamplingParams, TokenIds

PROTOCOL_VERSION = 1
MAX_FRAME_BYTES = 4 * 1024 * 1024
LEVEL_BITS = 3
DIGEST_BYTES = 8
TRANSPORT_BITS = 592  # TCP, IP and TLS headers that carry a message


class Hello(msgspec.Struct, array_like=True, frozen=True, tag=0):
    """Device → server, first: who speaks. ``fingerprint`` is None when the drafter has no
    vocabulary of its own (prompt lookup, none) and adopts the target's. ``pads``: it asks for a
    padded link (wire/padding.py). ``cell`` names the radio site whose uplink it shares."""

    version: int
    drafter: str
    fingerprint: str | None = None
    spectral_efficiency: float = 1.0  # bit/s/Hz of its uplink, where the server's budget is in Hz
    pads: bool = False
    cell: str = ""


class Welcome(msgspec.Struct, array_like=True, frozen=True, tag=1):
    """Server → device, answers hello. With ``pads`` all that follows, both ways, is padded. A
    directory serves no sessions itself: it is asked to `find` the replica of each."""

    version: int
    target: str
    fingerprint: str
    vocabulary_size: int
    end_ids: list[int]
    context_length: int
    max_draft_length: int
    reproducible: bool
    mode: Mode
    pads: bool = False
    is_directory: bool = False


class ChatMessage(msgspec.Struct, frozen=True, omit_defaults=True):
    """One turn of a chat, as OpenAI's API has it; ``content`` may be None beside tool calls."""

    role: str
    content: str | None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None


class Open(msgspec.Struct, array_like=True, frozen=True, tag=2):
    """Device → server: begin a session. ``session`` is chosen by the device, unique on its link.

    The prompt is text, or chat messages to which the target's template is applied.
    ``draft_length`` is the most unverified tokens that the device wants to draft ahead; 0 leaves
    all to the server.
    With ``wants_text`` every verdict carries the committed bytes too. ``trace`` is the session's
    place in a trace (W3C traceparent), or empty.
    ``num_logprobs`` is how many of the most likely tokens come with each committed one's
    log-probability, -1 for no log-probabilities at all. ``json_schema`` is a JSON Schema that the
    text follows, ``tools`` a JSON array of tools for the chat template; both as JSON, or empty.
    ``committed`` are packed ids of a text that is to be continued: what some server committed
    after this prompt before the link was lost. They count against ``max_tokens``.
    ``is_placed``: a directory has sent the session here.
    """

    session: int
    prompt: str | list[ChatMessage]
    params: SamplingParams
    rule: AcceptanceRule
    seed: int
    max_tokens: int
    draft_length: int
    stop: list[str] = []
    wants_text: bool = False
    trace: str = ""
    num_logprobs: int = -1
    json_schema: str = ""
    tools: str = ""
    committed: bytes = b""
    is_placed: bool = False


class Opened(msgspec.Struct, array_like=True, frozen=True, tag=3):
    """Server → device: the session exists; these are its prompt's ids and its first grant.

    ``resume`` names it on a later link; empty: it cannot be resumed so. In answer to `resume`,
    ``committed`` are the packed ids that were committed and that the device has not seen, ``text``
    their bytes if it wants text, and ``prompt_ids`` is empty.
    """

    session: int
    prompt_ids: bytes
    draft_length: int
    upload_bits_per_s: int = 0
    resume: bytes = b""
    committed: bytes = b""
    text: bytes = b""


class Resume(msgspec.Struct, array_like=True, frozen=True, tag=10):
    """Device → server: go on with a session of a link that is lost.

    ``token`` is what `opened` called ``resume``; ``session`` is a number of this link. The device
    has ``length`` tokens of the text, the prompt included, and ``digest`` is theirs. Answered by
    `opened`, or by the error unknown_session: then the session is opened anew with what was
    ``committed``.
    """

    session: int
    token: bytes
    length: int
    digest: bytes


class Draft(msgspec.Struct, array_like=True, frozen=True, tag=4):
    """Device → server: tokens proposed for positions ``start``, ``start`` + 1, ….

    ``digest`` is that of the first ``start`` tokens of the session as the device has them, drafted
    ones included; ``epoch`` counts how often it had to drop drafted tokens that it had sent.
    ``tokens`` are packed, each an id and above it the LEVEL_BITS of the drafter's confidence in
    it. ``drafting`` is the time that drafting took, in units of 100 us. ``proposals`` go with the
    rule 'rejection' only: for each token, packed ids and 16-bit counts less one.
    """

    session: int
    epoch: int
    start: int
    digest: bytes
    tokens: bytes
    drafting: int = 0
    proposals: list[tuple[bytes, bytes]] = []


class TokenLogprobs(msgspec.Struct, array_like=True, frozen=True):
    """A committed token, its natural log-probability, its bytes, and the same of the most likely
    tokens in its place, in their order.

    Probabilities are the target's own: before bias, penalties, temperature and any JSON Schema.
    Tokens without bytes of their own are told by their names.
    """

    id: int
    logprob: float
    piece: bytes
    top: list[tuple[int, float, bytes]]


class Verdict(msgspec.Struct, array_like=True, frozen=True, tag=5):
    """Server → device: of the tokens drafted from ``start`` on, ``num_draft`` were verified and
    ``num_accepted`` accepted; ``token`` comes after these: a correction or a bonus.

    The first ``num_committed`` of these tokens are committed: all of them, unless ``finish`` says
    that the text ended earlier. ``draft_length`` is the next grant: 0 means that the server goes
    on alone. Uploads keep to ``upload_bits_per_s``; 0 means no limit. ``logprobs`` are those of the
    committed tokens, where the session asked for them.
    """

    session: int
    epoch: int
    start: int
    num_draft: int
    num_accepted: int
    num_committed: int
    token: int
    draft_length: int
    upload_bits_per_s: int = 0
    finish: FinishReason | None = None
    text: bytes = b""
    logprobs: list[TokenLogprobs] = []


class Close(msgspec.Struct, array_like=True, frozen=True, tag=6):
    """Device → server: the session is no longer wanted."""

    session: int


class Error(msgspec.Struct, array_like=True, frozen=True, tag=7):
    """Either way: ``session`` ended, or with None the whole link. ``retry_after_s``: when it makes
    sense to try again, 0 if it does not or nobody knows."""

    session: int | None
    code: str
    message: str
    retry_after_s: float = 0.0

    @classmethod
    def of(cls, session: int | None, error: MultispinError) -> Error:
        return cls(session, error.code, str(error), error.retry_after_s)


class Tokenize(msgspec.Struct, array_like=True, frozen=True, tag=8):
    """Device → server: the target's token ids of a text, for a drafter that adopts them."""

    request: int
    text: str


class Tokens(msgspec.Struct, array_like=True, frozen=True, tag=9):
    """Server → device, answers tokenize."""

    request: int
    ids: bytes


class Wish(msgspec.Struct, array_like=True, frozen=True):
    """What a session asks of its target: a name, or budgets; 0 asks for nothing."""

    target: str = ""
    max_s_per_token: float = 0.0
    max_joules_per_token: float = 0.0
    max_cost_per_token: float = 0.0
    min_quality: int = 0


class Find(msgspec.Struct, array_like=True, frozen=True, tag=12):
    """Device → directory: which replica serves this session? Answered by `redirect` or `error`.

    ``beginning`` is a digest of what the prompt begins with. ``last`` is the server where the
    session was, ``avoid`` are those that did not answer or did not take it, both as `redirect`
    names them.
    """

    session: int
    beginning: bytes
    wish: Wish = Wish()
    last: str = ""
    avoid: list[str] = []


class Redirect(msgspec.Struct, array_like=True, frozen=True, tag=13):
    """Server → device: the session goes on at ``server`` (HOST:PORT, or with https://). In answer
    to `find` that is a replica. A replica sends it, too: for a session that it does not take or
    no longer serves; then ``server`` is a directory, or empty: the one that the device knows."""

    session: int
    server: str


FromDevice: TypeAlias = Hello | Open | Resume | Draft | Close | Error | Tokenize | Find
FromServer: TypeAlias = Welcome | Opened | Verdict | Error | Tokens | Redirect
Frame: TypeAlias = FromDevice | FromServer
F = TypeVar("F")

_encoder = msgspec.msgpack.Encoder()
_from_device: msgspec.msgpack.Decoder[FromDevice] = msgspec.msgpack.Decoder(FromDevice)
_from_server: msgspec.msgpack.Decoder[FromServer] = msgspec.msgpack.Decoder(FromServer)


def encode(frame: Frame) -> bytes:
    return _encoder.encode(frame)


def decode_from_device(data: bytes) -> FromDevice:
    """Raise PeerError (code bad_frame) unless the bytes are exactly one frame of a device."""
    return decode(_from_device, data)


def decode_from_server(data: bytes) -> FromServer:
    """Raise PeerError (code bad_frame) unless the bytes are exactly one frame of a server."""
    return decode(_from_server, data)


def decode(
    decoder: msgspec.msgpack.Decoder[F], data: bytes, what: str = "a frame of this protocol"
) -> F:
    """Raise PeerError (code bad_frame) unless the bytes are exactly one message of the decoder's,
    and not too many."""
    if len(data) > MAX_FRAME_BYTES:
        raise PeerError(f"a frame of {len(data)} bytes is too large", code="bad_frame")
    try:
        return decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise PeerError(f"not {what}: {error}", code="bad_frame") from error


# --- token ids ---------------------------------------------------------------------------------


def id_bits(vocabulary_size: int) -> int:
    """Bits of one packed id; at least 8, so that the number of ids follows from the bytes."""
    return max(8, (vocabulary_size - 1).bit_length())


def pack_ids(ids: Iterable[int] | TokenIds, bits: int) -> bytes:
    """Concatenate ``bits``-bit integers, least significant bit first, zero-padded to bytes."""
    values = ids.tolist() if isinstance(ids, np.ndarray) else [int(i) for i in ids]
    packed = b""
    for begin in range(0, len(values), 8):  # eight fill whole bytes
        group = values[begin : begin + 8]
        number = 0
        for value in reversed(group):
            number = number << bits | value
        packed += number.to_bytes((len(group) * bits + 7) // 8, "little")
    return packed


def unpack_ids(data: bytes, bits: int, vocabulary_size: int) -> TokenIds:
    """Inverse of pack_ids; raise PeerError (bad_frame) for an id outside the vocabulary."""
    ids = _unpack(data, bits)
    _check(ids, vocabulary_size)
    return np.array(ids, np.int32)


def pack_tokens(ids: TokenIds, levels: npt.NDArray[np.uint8], bits: int) -> bytes:
    """A draft's ids of ``bits`` bits, each with its level above it."""
    return pack_ids(ids | levels.astype(np.int32) << bits, bits + LEVEL_BITS)


def num_tokens(data: bytes, bits: int) -> int:
    """How many tokens a draft's bytes hold."""
    return 8 * len(data) // (bits + LEVEL_BITS)


def unpack_tokens(data: bytes, bits: int, vocabulary_size: int) -> tuple[list[int], bytes]:
    """Inverse of pack_tokens: ids and levels; raise PeerError as unpack_ids does."""
    values = _unpack(data, bits + LEVEL_BITS)
    mask = (1 << bits) - 1
    ids = [value & mask for value in values]
    _check(ids, vocabulary_size)
    return ids, bytes([value >> bits for value in values])


def _unpack(data: bytes, bits: int) -> list[int]:
    values = []
    mask = (1 << bits) - 1
    for begin in range(0, len(data), bits):
        number = int.from_bytes(data[begin : begin + bits], "little")
        for _ in range(min(8, (len(data) - begin) * 8 // bits)):
            values.append(number & mask)
            number >>= bits
    return values


def _check(ids: list[int], vocabulary_size: int) -> None:
    if ids and max(ids) >= vocabulary_size:
        raise PeerError(
            f"token id {max(ids)} is outside the vocabulary of {vocabulary_size}", code="bad_frame"
        )


def is_proposal(ids: TokenIds, counts: bytes) -> bool:
    """Whether ids ascend and are as many as the counts (uint16, less one), which sum right."""
    if len(counts) != 2 * len(ids):
        return False
    values = np.frombuffer(counts, "<u2").astype(np.int64) + 1
    return int(values.sum()) == PROPOSAL_TOTAL and bool(np.all(np.diff(ids) > 0))


class PrefixDigest:
    """Digest of a text's beginning: BLAKE2b-64 over its ids as little-endian 32-bit integers.

    Incremental, so that a session pays for each committed token once.
    """

    def __init__(self, ids: Iterable[int] | TokenIds | memoryview = ()) -> None:
        self._hash = hashlib.blake2b(digest_size=DIGEST_BYTES)
        self.update(ids)

    def update(self, ids: Iterable[int] | TokenIds | memoryview) -> None:
        self._hash.update(_id_bytes(ids))

    def digest(self, more: Iterable[int] | TokenIds | memoryview = ()) -> bytes:
        """The digest, as it would be after ``more``."""
        longer = self._hash.copy()
        longer.update(_id_bytes(more))
        return longer.digest()


def _id_bytes(ids: Iterable[int] | TokenIds | memoryview) -> bytes | memoryview:
    if isinstance(ids, memoryview):
        return ids
    if isinstance(ids, np.ndarray):
        return ids.astype("<i4", copy=False).tobytes()
    return np.fromiter(ids, dtype="<i4").tobytes()
