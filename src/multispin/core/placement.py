"""Who gets one of the engine's sequences, and who has to give it up."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from multispin.core.caches import MIN_SHARED, Caches, Place
from multispin.core.engine import Copy
from multispin.core.session import Session
from multispin.lm.prefix import num_common

IDLE_S = 5.0  # a session that owes a draft for longer gives up its sequence to one that waits


class Placement:
    """The sessions that hold a sequence. What the sequences hold is kept in ``Caches``."""

    def __init__(self, num_sequences: int, share_prefixes: bool) -> None:
        self._caches = Caches(num_sequences)
        self._share_prefixes = share_prefixes  # between tenants
        self._placed: dict[int, Session] = {}  # by sequence

    @property
    def sessions(self) -> Collection[Session]:
        return self._placed.values()

    def place(self, sessions: Iterable[Session], now: float) -> None:
        """Sequences for the sessions that need one, in this order."""
        for session in sessions:
            if session.seq is not None or not session.needs_place:
                continue
            sharing = self._sharing(session)
            if any(_leads(other, session) for other in sharing):
                continue
            place = self._assign(session, sharing)
            if place is None and (idle := self._longest_idle(now)) is not None:
                self.evict(idle)
                place = self._assign(session, self._sharing(session))
            if place is None:
                return
            session.seq, session.num_cached = place
            self._placed[place.seq] = session

    def _sharing(self, session: Session) -> list[Session]:
        """Those with a sequence whose texts begin like this one's and may be shared with it."""
        seqs = self._caches.sharing(session.tokens(0, session.length), self._owner(session))
        return [self._placed[seq] for seq in seqs if seq in self._placed]

    def _assign(self, session: Session, sharing: list[Session]) -> Place | None:
        cached = {s.seq: s.tokens(0, s.num_cached) for s in sharing if s.seq is not None}
        tokens = session.tokens(0, session.length)
        return self._caches.assign(tokens, cached, self._owner(session))

    def _owner(self, session: Session) -> str:
        """Whose texts a session may share prefixes with: all are one owner's, or its tenant's."""
        return "" if self._share_prefixes else session.tenant.name

    def _longest_idle(self, now: float) -> Session | None:
        """The session that has kept its sequence unused for longest, if for IDLE_S."""
        idle = [session for session in self._placed.values() if not session.needs_place]
        longest = min(idle, key=lambda s: s.waiting_since, default=None)
        return None if longest is None or now - longest.waiting_since < IDLE_S else longest

    def frees_in(self, now: float) -> list[float]:
        """Seconds until each session that does not use its sequence may lose it."""
        idle = [session for session in self._placed.values() if not session.needs_place]
        return [session.waiting_since + IDLE_S - now for session in idle]

    def evict(self, session: Session) -> None:
        seq, tokens = session.evict()
        del self._placed[seq]
        self._caches.release(seq, tokens)

    def take_copies(self) -> list[Copy]:
        """What the engine is to do before its next pass."""
        return self._caches.take_copies()

    def lost(self) -> None:
        """The engine has been restarted: every sequence is empty."""
        self._caches.lost()
        for session in self._placed.values():
            session.num_cached = 0


def _leads(other: Session, session: Session) -> bool:
    """Whether a prompt that is being computed begins in the same way: better wait and copy."""
    if other.num_uncached == 1 or other.num_crashes:
        return False
    common = num_common(session.tokens(0, session.length), other.tokens(0, other.length))
    return common >= other.num_cached + MIN_SHARED
