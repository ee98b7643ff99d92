"""Which replica serves a session: rendezvous hashing among those that are open and have room.

    replica(key) = argmax over open replicas r with room of  mix(key XOR seed_r)

(Thaler and Ravishankar 1998.) No table is kept, and whoever decides, decides the same. While
nothing changes a session stays. Beside n replicas a new one takes 1 / (n + 1) of the sessions and
moves no other; one that leaves gives up its own and moves no other. Whose first replica is full
goes to its next one, so that equal keys stay together as far as there is room. What counts as room
is bounded by what the others have (`has_room`; Mirrokni, Thorup and Zadimoghaddam 2018), so that
one key that everybody has does not leave replicas idle.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b

import numpy as np
import numpy.typing as npt

from multispin.acceptance.noise import mix

Keys = npt.NDArray[np.uint64]
Counts = npt.NDArray[np.int64]
NOWHERE = -1
CHUNK = 1 << 21  # scores held at a time
BALANCE = 1.25  # times its part of all sessions is what a replica may have ...
SLACK = 8  # ... and so many more
_NOBODY = np.empty(0, np.int64)


def session_key(tenant: str, session: bytes) -> int:
    """64 bits. ``session`` names it: its own name, or the beginning of its prompt, so that equal
    beginnings of one tenant land together and those of others elsewhere."""
    digest = blake2b(session, digest_size=8, key=tenant.encode()[:64]).digest()
    return int.from_bytes(digest, "little")


def replica_seeds(names: Iterable[str]) -> Keys:
    """One word for each replica, by its name alone [R]."""
    digests = [blake2b(name.encode(), digest_size=8).digest() for name in names]
    return np.frombuffer(b"".join(digests), "<u8").astype(np.uint64)


def has_room(num_sessions: Counts, max_sessions: Counts) -> npt.NDArray[np.bool_]:
    """Who takes a further session [R]: n_r < m_r, and n_r < ceil(1.25 m_r sum(n) / sum(m)) + 8.

    m_r = 0: it takes none, and does not count. If any has n_r < m_r, one at least has room: not all
    can be above their part of the sum.
    """
    return room_of(num_sessions, max_sessions, 0) > 0


def room_of(num_sessions: Counts, max_sessions: Counts, num_more: int) -> Counts:
    """How many of so many further sessions each replica takes at most [R], by the same rule."""
    held = int(num_sessions[max_sessions > 0].sum()) + num_more
    bound = np.ceil(BALANCE * held * max_sessions / max(int(max_sessions.sum()), 1)) + SLACK
    most = np.minimum(max_sessions, bound.astype(np.int64))
    return np.asarray(np.maximum(most - num_sessions, 0))


def place(key: int, seeds: Keys, has_room: npt.NDArray[np.bool_]) -> int:
    """The replica of one session, by index; NOWHERE if none has room."""
    scores = seeds ^ np.uint64(key)
    mix(scores)
    scores |= np.uint64(1)  # 0 is for those that are full
    scores *= has_room
    best = int(scores.argmax())
    return best if has_room[best] else NOWHERE


def place_all(keys: Keys, seeds: Keys, room: Counts) -> Counts:
    """As `place`, for sessions that come one after the other and fill up the room [R] -> [N]."""
    room = room.copy()
    step = max(1, CHUNK // len(seeds))
    chunks = [keys[begin : begin + step] for begin in range(0, len(keys), step)]
    return np.concatenate([_place(chunk, seeds, room) for chunk in chunks] or [_NOBODY])


def _place(keys: Keys, seeds: Keys, room: Counts) -> Counts:
    """Takes the room. All go to their best replica until one is too many there; that replica is
    closed, who else wanted it looks for the next best, and so on from there."""
    chosen = np.full(len(keys), NOWHERE, np.int64)
    scores = keys[:, None] ^ seeds
    mix(scores)
    scores |= np.uint64(1)
    scores[:, room <= 0] = 0
    best, begin = scores.argmax(axis=1), 0
    while begin < len(keys) and room.any():
        end = begin + _num_that_fit(best[begin:], room)
        chosen[begin:end] = best[begin:end]
        room -= np.bincount(best[begin:end], minlength=len(room))
        if end < len(keys):
            full = best[end]
            scores[end:, full] = 0
            again = end + np.flatnonzero(best[end:] == full)
            best[again] = scores[again].argmax(axis=1)
        begin = end
    return chosen


def _num_that_fit(chosen: Counts, room: Counts) -> int:
    """How many, from the first on, find room where they go."""
    order = np.argsort(chosen, kind="stable")
    there = chosen[order]
    rank = np.arange(len(there)) - np.searchsorted(there, there, side="left")
    beyond = order[rank >= room[there]]
    return int(beyond.min()) if len(beyond) else len(chosen)
