"""Who breaks the protocol again and again is cut off, and not let in again for a while.

An *offence* is a frame that no honest device sends, whatever its users ask of it. Each is refused
by itself and ends its session or its link; these classes count. Nothing here does any I/O.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable

from multispin.wire.frames import Draft, FromDevice

MAX_OFFENCES = 8  # of a link, or of a peer over all its links; one more is too many
FORGIVE_S = 60.0  # an offence is forgotten each so often
SHUT_OUT_S = 10.0
MAX_PEERS = 1024  # that are remembered
MAX_FRAMES_PER_S = 5000  # of a link, which take the server about a twentieth of that second
REST_S = 0.1
# How far uploads may run ahead of their grant: nothing is held up longer on the way, because a link
# that says nothing for so long is dead (KEEPALIVE_S).
AHEAD_S = 10.0

# Refusals of frames other than drafts that are offences. What else is refused may be a mistake of
# a device's user (bad_input, context_overflow) or nobody's (overloaded, unknown_session).
HOSTILE_CODES = frozenset({"bad_frame", "digest_mismatch", "out_of_order"})


def is_offence(message: FromDevice | None, code: str) -> bool:
    """Whether the frame, None for bytes that are none, was refused for the device's own doing."""
    return code in HOSTILE_CODES or (isinstance(message, Draft) and code != "engine_failed")


class Offences:
    """How many there were of late."""

    def __init__(self) -> None:
        self._count = 0.0
        self._at = 0.0

    def add(self, now: float) -> bool:
        """One more; whether these are too many."""
        self._count = max(0.0, self._count - (now - self._at) / FORGIVE_S) + 1
        self._at = now
        return self._count > MAX_OFFENCES


class Peers:
    """Offences of each peer over all its links: a new link does not wipe them out."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._offences: dict[Hashable, Offences] = {}  # the one that offended last comes last
        self._shut_out: dict[Hashable, float] = {}  # until when

    def offended(self, peer: Hashable) -> None:
        offences = self._offences.pop(peer, None) or Offences()
        self._offences[peer] = offences
        if len(self._offences) > MAX_PEERS:
            forgotten = next(iter(self._offences))
            del self._offences[forgotten]
            self._shut_out.pop(forgotten, None)
        if offences.add(self._clock()):
            self._shut_out[peer] = self._clock() + SHUT_OUT_S

    def shut_out_s(self, peer: Hashable) -> float:
        """How long the peer is not let in; 0: it is welcome."""
        left = self._shut_out.get(peer, 0.0) - self._clock()
        if left <= 0:
            self._shut_out.pop(peer, None)
        return max(left, 0.0)


class Pace:
    """How many frames a link may send: MAX_FRAMES_PER_S, and as many at once."""

    def __init__(self) -> None:
        self._free_at = -math.inf

    def is_spent(self, now: float, num_frames: int = 1) -> bool:
        """So many more have come; whether nothing should be read for REST_S."""
        self._free_at = max(self._free_at, now - 1.0) + num_frames / MAX_FRAMES_PER_S
        return self._free_at > now


class Uploads:
    """Whether a device keeps to the rates that it was granted.

    It waits until max(free_at, now) + bits / rate before each draft (net.device); this side adds
    up the same and minds what comes AHEAD_S earlier than that.
    """

    def __init__(self) -> None:
        self._rates: dict[int, _Rate] = {}  # of each session
        self._free_at = 0.0

    def grant(self, session: int, bits_per_s: int, now: float) -> None:
        rate = self._rates.get(session)
        if rate is None:
            self._rates[session] = _Rate(bits_per_s)
        elif rate.bits_per_s != bits_per_s:
            rate.before, rate.bits_per_s, rate.since = rate.bits_per_s, bits_per_s, now

    def end(self, session: int) -> None:
        self._rates.pop(session, None)

    def is_too_fast(self, session: int, num_bits: int, now: float) -> bool:
        """A draft of so many bits has come. Whoever is too fast once starts anew."""
        rate = self._rates.get(session)
        allowed = rate.allowed(now) if rate else 0
        if allowed == 0:  # no limit
            return False
        self._free_at = max(self._free_at, now) + num_bits / allowed
        if self._free_at - now <= AHEAD_S:
            return False
        self._free_at = now
        return True


class _Rate:
    """What a session is granted, and was before."""

    def __init__(self, bits_per_s: int) -> None:
        self.bits_per_s = self.before = bits_per_s
        self.since = 0.0

    def allowed(self, now: float) -> int:
        """The device may not know of the last change yet. 0: as much as it likes."""
        if now - self.since > AHEAD_S:
            return self.bits_per_s
        return 0 if 0 in (self.bits_per_s, self.before) else max(self.bits_per_s, self.before)
