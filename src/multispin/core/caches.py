"""Which session holds which of the engine's sequences, and what is in them.

A prefix that is in some sequence already is not computed again: a session that shares it with
another begins as a copy, and one that goes on where an ended one stopped (the next turn of a chat)
takes over what that left behind. What ended sessions leave is kept until the room is needed, the
longest unused first. Texts of different owners have nothing to do with each other, however they
begin: how fast a prompt is read would tell one owner what another has asked.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping
from typing import NamedTuple, TypeAlias

from multispin.core.engine import Copy, emptied
from multispin.lm.prefix import num_common
from multispin.types import TokenIds

MIN_SHARED = 16  # tokens; a shorter common prefix is computed as fast as it is copied
Head: TypeAlias = tuple[str, bytes]


class Place(NamedTuple):
    """A sequence for a session, and how many of its tokens are in it already."""

    seq: int
    num_cached: int


class Caches:
    """Assigns sequences. ``copies`` is what the engine is to do before its next pass, in order."""

    def __init__(self, num_sequences: int) -> None:
        # A heap: reproducible mode is quickest with low, adjacent sequences.
        self._empty = list(range(num_sequences))
        self._kept: dict[int, TokenIds] = {}  # what ended sessions left, longest unused first
        # By owner and first MIN_SHARED tokens: who differs there has too little to share.
        self._heads: dict[int, Head] = {}
        self._with_head: dict[Head, set[int]] = {}
        self.copies: list[Copy] = []

    def sharing(self, tokens: TokenIds, owner: str) -> set[int]:
        """Sequences of the owner's whose texts begin like these tokens."""
        return self._with_head.get(_head(tokens, owner), set())

    def assign(self, tokens: TokenIds, running: Mapping[int, TokenIds], owner: str) -> Place | None:
        """A sequence for a session with these tokens; ``running``: what those that share hold.

        None if there is no room.
        """
        best, num_cached = self._longest_shared(self.sharing(tokens, owner), tokens, running)
        seq = self._make_room(None) if best is None else self._place_beside(best, num_cached)
        if seq is None:
            return None
        self._heads[seq] = _head(tokens, owner)
        self._with_head.setdefault(self._heads[seq], set()).add(seq)
        return Place(seq, num_cached)

    def _longest_shared(
        self, seqs: Iterable[int], tokens: TokenIds, running: Mapping[int, TokenIds]
    ) -> tuple[int | None, int]:
        """The sequence that holds most of these tokens, and how many: MIN_SHARED, or none."""
        best, most_shared = None, 0
        for seq in seqs:
            held = self._kept[seq] if seq in self._kept else running[seq]
            # At least one token is fed: its logits say what comes next.
            shared = num_common(held[: len(tokens) - 1], tokens)
            if shared >= MIN_SHARED and shared > most_shared:
                best, most_shared = seq, shared
        return best, most_shared

    def _place_beside(self, best: int, num_shared: int) -> int | None:
        """A sequence that begins as a copy of ``best``, or is it."""
        goes_on = best in self._kept and 2 * num_shared >= len(self._kept[best])
        seq = None if goes_on else self._make_room(best)
        if seq is None and best in self._kept:
            seq = best
            self._forget(best)
        if seq is not None:
            self.copies.append(Copy(best, seq, num_shared))
        return seq

    def _make_room(self, spared: int | None) -> int | None:
        """An empty sequence; what is in ``spared`` is wanted."""
        if self._empty:
            return heapq.heappop(self._empty)
        for seq in self._kept:
            if seq != spared:
                self._forget(seq)
                self.copies.append(emptied(seq))
                return seq
        return None

    def _forget(self, seq: int) -> None:
        self._kept.pop(seq, None)
        head = self._heads.pop(seq)
        self._with_head[head].discard(seq)
        if not self._with_head[head]:
            del self._with_head[head]

    def release(self, seq: int, tokens: TokenIds) -> None:
        """A session no longer needs its sequence, which holds these tokens."""
        if len(tokens) >= MIN_SHARED:
            self._kept[seq] = tokens.copy()
        else:
            self._forget(seq)
            heapq.heappush(self._empty, seq)
            self.copies.append(emptied(seq))

    def take_copies(self) -> list[Copy]:
        copies, self.copies = self.copies, []
        return copies

    def lost(self) -> None:
        """The engine has been restarted: every sequence is empty."""
        for seq in list(self._kept):
            self._forget(seq)
            heapq.heappush(self._empty, seq)
        self.copies = []


def _head(tokens: TokenIds, owner: str) -> Head:
    return owner, tokens[:MIN_SHARED].tobytes()
