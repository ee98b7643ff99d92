"""Sessions whose link is lost: kept for a while, so that their devices can go on with them.

A detached session is no more than its request and its text so far: it holds no sequence of the
engine's, and nothing is generated for it.
"""

from __future__ import annotations

from typing import NamedTuple

from multispin.errors import PeerError
from multispin.types import TokenIds
from multispin.wire.frames import Open, PrefixDigest, Resume

RESUME_S = 120.0
MAX_DETACHED = 256  # at most so many; the first to go is the one that is kept for longest
TOKEN_BYTES = 16  # of the secret that names a session


class Detached(NamedTuple):
    tenant: str  # its name: nobody else may go on with it
    request: Open
    tokens: TokenIds  # the prompt, then what was committed
    num_prompt: int
    since: float

    def check(self, message: Resume) -> None:
        """Raise PeerError unless the device stands where this text has been."""
        length = message.length
        is_within = self.num_prompt <= length <= len(self.tokens)
        if not is_within or PrefixDigest(self.tokens[:length]).digest() != message.digest:
            raise PeerError(
                f"resume.digest: the first {length} tokens of the session are others: open it anew",
                code="digest_mismatch",
            )


class DetachedSessions:
    """By their resume tokens, the one that is kept for longest first."""

    def __init__(self) -> None:
        self._kept: dict[bytes, Detached] = {}

    def keep(self, token: bytes, detached: Detached) -> None:
        self._kept[token] = detached
        if len(self._kept) > MAX_DETACHED:
            del self._kept[next(iter(self._kept))]

    def find(self, token: bytes, tenant: str) -> Detached | None:
        detached = self._kept.get(token)
        return detached if detached is not None and detached.tenant == tenant else None

    def remove(self, token: bytes) -> None:
        del self._kept[token]

    def forget_old(self, now: float) -> int:
        """Forget what has been kept for RESUME_S; how many are left."""
        for token, detached in list(self._kept.items()):
            if now - detached.since < RESUME_S:
                break
            del self._kept[token]
        return len(self._kept)
