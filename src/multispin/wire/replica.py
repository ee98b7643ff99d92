"""The messages between a replica and who watches it: directories, and the supervisor.

A watcher opens a WebSocket at WATCH_PATH of the replica's port (an access token with the scope
`operate`, where there are tokens). The replica sends its `status` at once, every STATUS_S, and soon
after its sessions or its condition have changed; a watcher may ask for documents, and the
supervisor sets the budgets. One binary message carries one MessagePack array, as in wire/frames.py.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

from multispin.wire.frames import Welcome, decode

WATCH_PATH = "/v1/replica"
STATUS_S = 1.0

Condition: TypeAlias = Literal["loading", "ok", "engine_lost", "draining"]
Document: TypeAlias = Literal["cell", "metrics"]  # what /api/cell and /metrics answer


class CellLoad(msgspec.Struct, array_like=True, frozen=True):
    """One radio site's devices on this replica. ``budget`` is the replica's share of the site's
    uplink, in the unit in which the site states it, 0 where none is in force; ``price`` the
    goodput that one more unit would bring (tokens/s per unit), by the controller's estimates."""

    cell: str
    num_devices: int  # with a drafter and a session
    budget: float
    price: float


class Status(msgspec.Struct, array_like=True, frozen=True, tag=0):
    """Replica → watcher. ``welcome`` is what it tells devices, None while it loads."""

    name: str
    condition: Condition
    welcome: Welcome | None
    num_sessions: int  # open, waiting ones included
    max_sessions: int  # that have a place at the same time
    num_rows_waiting: int  # that are ready for a pass and were not in the last one
    s_per_verdict: float  # from a draft's arrival, or the last verdict, to the verdict; of late
    goodput_tokens_per_s: float  # of late
    num_committed_tokens: int  # since it began
    pass_fixed_s: float  # the time of a pass, as fitted: fixed, per session, per row
    pass_s_per_session: float
    pass_s_per_row: float
    cells: list[CellLoad] = []


class Ask(msgspec.Struct, array_like=True, frozen=True, tag=1):
    """Watcher → replica: send this document."""

    document: Document


class Told(msgspec.Struct, array_like=True, frozen=True, tag=2):
    """Replica → watcher, answers ask."""

    document: Document
    body: bytes


class Budgets(msgspec.Struct, array_like=True, frozen=True, tag=3):
    """Supervisor → replica: its share of the uplink of these radio sites. They stand until the
    next ones, whatever becomes of who sent them."""

    budgets: dict[str, float]


FromReplica: TypeAlias = Status | Told
FromWatcher: TypeAlias = Ask | Budgets

_encoder = msgspec.msgpack.Encoder()
_from_replica: msgspec.msgpack.Decoder[FromReplica] = msgspec.msgpack.Decoder(FromReplica)
_from_watcher: msgspec.msgpack.Decoder[FromWatcher] = msgspec.msgpack.Decoder(FromWatcher)


def encode(message: FromReplica | FromWatcher) -> bytes:
    return _encoder.encode(message)


def decode_from_replica(data: bytes) -> FromReplica:
    """Raise PeerError (code bad_frame) unless the bytes are exactly one message of a replica."""
    return decode(_from_replica, data, "a message of a replica")


def decode_from_watcher(data: bytes) -> FromWatcher:
    """Raise PeerError (code bad_frame) unless the bytes are exactly one message of a watcher."""
    return decode(_from_watcher, data, "a message of a watcher")
