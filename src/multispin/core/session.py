"""One text being written, as the server sees it: committed tokens, drafted ones, verdicts.

The committed text only grows. Behind it stand the drafted tokens that have arrived without a gap.
A draft names its epoch, and the digest of everything before it, drafted tokens included, so that
the server knows whether it continues this text or one that was dropped: what a verdict contradicts
is void, and everything else of its epoch with it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from multispin.core.confidence import Calibration, Levels
from multispin.core.controller import Grant, SessionKey
from multispin.core.engine import Outcome
from multispin.core.text import TextStream
from multispin.errors import PeerError
from multispin.lm.base import Vocabulary
from multispin.types import FinishReason, TokenIds
from multispin.wire.frames import Draft, Open, PrefixDigest, Verdict


class Unpacked(NamedTuple):
    """A draft frame."""

    start: int
    digest: bytes
    ids: TokenIds
    levels: Levels
    proposals: list[tuple[bytes, bytes]]


class Compared(NamedTuple):
    """Of so many drafted tokens the first ``num_same`` are what the text says."""

    num_tokens: int
    num_same: int


class Session:
    """State of a session.

    In mode window the server may go on at any time, with the drafted tokens that are there or
    without. Otherwise it waits for the one draft that is due, unless the grant is 0.
    """

    def __init__(
        self,
        key: SessionKey,
        request: Open,
        prompt: TokenIds,
        max_tokens: int,  # the request's, cut to what the context can hold
        vocabulary: Vocabulary,
        allowed: Grant,
        calibration: Calibration,
        now: float,
        *,
        is_window: bool = False,
    ) -> None:
        self.key = key
        self.request = request
        self.num_prompt = len(prompt)
        self.max_tokens = max_tokens
        self.allowed = allowed
        self.calibration = calibration  # of its device's drafter
        self.is_window = is_window
        self.length = len(prompt)  # committed tokens, the prompt included
        self.end = self.length  # of the drafted tokens behind them
        self.proposals: list[tuple[bytes, bytes]] = []  # of the drafted tokens, or empty
        self.grant = self._next_length()
        self.seq: int | None = None  # the engine's sequence, once there is a free one
        self.num_cached = 0  # so many tokens are in the engine's cache
        self._is_new = True  # its prompt is read while its first draft is on the way
        self.waiting_since = now
        self.turn_since: float | None = now  # of the device: when it was told to draft anew
        self.busy = False  # in the batch that is running
        self.closed = False  # its device is gone; the sequence is freed after the batch
        self.num_crashes = 0
        self.epoch = 0
        self._is_void = False  # nothing more of this epoch can be of use
        self._compared: list[Compared] = []
        self._learned = 0  # up to here drafted tokens were compared with the text
        self._has_draft = False  # the one that is due, where one is
        self._early: dict[int, Unpacked] = {}  # by start: drafts that came before their turn
        self._recorded: tuple[tuple[int, int], Verdict] | None = None  # epoch and start; answer
        self._vocabulary = vocabulary
        room = self.length + max_tokens + request.draft_length + 1
        self._text = np.empty(room, np.dtype("<i4"))  # committed, then drafted
        self._text[: self.length] = prompt
        self._levels = np.zeros(room, np.uint8)  # of the drafted tokens' confidence
        self._digest = PrefixDigest(prompt)
        self._stream = TextStream(request.stop)

    @property
    def num_remaining(self) -> int:
        return self.max_tokens - (self.length - self.num_prompt)

    @property
    def num_drafted(self) -> int:
        """Drafted tokens that the next pass can judge, one more being committed with them."""
        return min(self.end - self.length, self.num_remaining - 1)

    @property
    def ready(self) -> bool:
        """Whether the next verdict can be computed as soon as the cache is full."""
        return self.is_window or self._has_draft or self.grant == 0

    @property
    def needs_place(self) -> bool:
        """Whether the engine could do something for it, had it a sequence: judge, or read on."""
        return self.ready or (self._is_new and self.num_uncached > 1)

    def evict(self) -> tuple[int, TokenIds]:
        """Give up the sequence: which, and what is in it. What is needed again is fed anew."""
        assert self.seq is not None
        seq, tokens = self.seq, self.tokens(0, self.num_cached)
        self.seq, self.num_cached, self._is_new = None, 0, False
        return seq, tokens

    @property
    def num_uncached(self) -> int:
        return self.length - self.num_cached

    def tokens(self, begin: int, end: int) -> TokenIds:
        """A view of the text, drafted tokens included."""
        return self._text[begin:end]

    @property
    def levels(self) -> Levels:
        """Of the drafted tokens that the next pass can judge."""
        return self._levels[self.length : self.length + self.num_drafted]

    # --- drafts --------------------------------------------------------------------------------

    def repeated(self, message: Draft, num_ids: int) -> Verdict | None:
        """The verdict on this very draft, if it is the last one on any."""
        if self._recorded is None or self._recorded[0] != (message.epoch, message.start):
            return None
        is_longer = not self._is_void and message.start + num_ids > self.end
        return None if self.is_window and is_longer else self._recorded[1]

    def is_stale(self, message: Draft) -> bool:
        """Whether the draft follows what was dropped, or is being verified already."""
        if message.epoch < self.epoch or (message.epoch == self.epoch and self._is_void):
            return True
        is_due = (message.epoch, message.start) == (self.epoch, self.length)
        return not self.is_window and self._has_draft and is_due

    def take(
        self,
        message: Draft,
        ids: TokenIds,
        levels: Levels,
        proposals: list[tuple[bytes, bytes]],
    ) -> None:
        """Queue the tokens of a draft that is not stale. Raise PeerError if it cannot belong here.

        In mode window a draft may come late (the server went on meanwhile), early (before one that
        precedes it) or overlap with others; what it adds is kept, as long as it continues the text.
        """
        if not self.is_window:
            self._require_due(message, len(ids))
        if not self.num_prompt <= message.start:
            raise PeerError(
                f"draft.start = {message.start}: lies in the prompt", code="out_of_order"
            )
        if message.start + len(ids) - self.length > self.request.draft_length:
            raise PeerError(
                f"draft = {len(ids)} tokens from {message.start} on: more than "
                f"{self.request.draft_length} ahead of the {self.length} committed ones",
                code="draft_too_long",
            )
        if message.epoch > self.epoch:
            self.epoch = message.epoch
            self._drop()
            self._is_void = False
        draft = Unpacked(message.start, message.digest, ids, levels, proposals)
        self._early[message.start] = draft
        self._join()
        self._has_draft = True

    def _require_due(self, message: Draft, num_ids: int) -> None:
        epoch = self.epoch + self._is_void
        if message.epoch != epoch or message.start != self.length:
            raise PeerError(
                f"draft.start = {message.start} in epoch {message.epoch}: the session stands at "
                f"{self.length} in epoch {epoch}",
                code="out_of_order",
            )
        if self.grant == 0:
            raise PeerError(
                "a draft while none is due: wait for the verdict and its grant", code="out_of_order"
            )
        if num_ids > self.grant:
            raise PeerError(
                f"draft = {num_ids} tokens: the grant is {self.grant}; draft as granted",
                code="draft_too_long",
            )

    def _join(self) -> None:
        """Move the drafts whose turn has come behind the text."""
        while ready := [start for start in self._early if start <= self.end]:
            self._append(self._early.pop(min(ready)))
            if self._is_void:
                self._early.clear()

    def _append(self, draft: Unpacked) -> None:
        num_known = min(self.end - draft.start, len(draft.ids))
        same = self._text[draft.start : draft.start + num_known] == draft.ids[:num_known]
        if draft.digest != self._digest_before(draft.start) or not same.all():
            self._learn(draft, same)
            if not self.is_window:
                raise PeerError(
                    "draft.digest does not match the committed tokens: open the session anew",
                    code="digest_mismatch",
                )
            self._void()
            return
        self._learn(draft, same)
        more = draft.ids[num_known:]
        self._text[self.end : self.end + len(more)] = more
        self._levels[self.end : self.end + len(more)] = draft.levels[num_known:]
        self.end += len(more)
        self.proposals += draft.proposals[num_known:]

    def _learn(self, draft: Unpacked, same: npt.NDArray[np.bool_]) -> None:
        """The server has gone on without these tokens, and knows now what they were worth."""
        begin = max(self._learned - draft.start, 0)
        late = same[begin : max(self.length - draft.start, 0)]
        if len(late):
            num_same = len(late) if late.all() else int(late.argmin())
            self._compare(draft.levels[begin : begin + len(late)], num_same)
            self._learned = draft.start + begin + len(late)

    def _digest_before(self, position: int) -> bytes:
        if position >= self.length:
            return self._digest.digest(self._text[self.length : position])
        return PrefixDigest(self._text[:position]).digest()

    def _void(self) -> None:
        self._is_void = True
        self._drop()

    def _drop(self) -> None:
        self.end = self.length
        self.proposals = []
        self._early.clear()

    # --- verdicts ------------------------------------------------------------------------------

    def learn(self, outcome: Outcome, num_draft: int) -> None:
        """What the judgement, which is yet to be committed, says of the drafter."""
        at = self.length + outcome.num_accepted
        is_same = at < self.end and int(self._text[at]) == outcome.token
        levels = self._levels[self.length : min(self.length + num_draft + 1, self.end)]
        self._compare(levels, outcome.num_accepted + is_same)

    def _compare(self, levels: Levels, num_same: int) -> None:
        if len(levels):
            self.calibration.observe(levels, num_same)
            self._compared.append(Compared(len(levels), num_same))

    def take_compared(self) -> list[Compared]:
        """What was learned of drafted tokens since the last call."""
        taken, self._compared = self._compared, []
        return taken

    def commit(self, outcome: Outcome, num_draft: int, allowed: Grant, now: float) -> Verdict:
        """Apply the judgement of ``num_draft`` tokens: extend the text; the verdict that says so.

        Drafted tokens that were not judged stay if the text still leads to them.
        """
        self.allowed = allowed
        start, at = self.length, self.length + outcome.num_accepted
        judged = [*self._text[start:at].tolist(), outcome.token]
        num_committed, finish = self._cut(judged)
        is_known = at < self.end
        contradicts = is_known and self._text[at] != outcome.token
        if self.end > start:
            self._learned = at + is_known
        self._text[at] = outcome.token
        self.length += num_committed
        self._digest.update(self._text[start : self.length])
        # The cache holds what was fed: all but the newest token.
        self.num_cached, self._is_new = at, False
        if contradicts:
            self._void()
        else:
            self.proposals = self.proposals[outcome.num_accepted + 1 :]
            self.end = max(self.end, self.length)
            self._join()
        verdict = Verdict(
            session=self.key.session,
            epoch=self.epoch,
            start=start,
            num_draft=num_draft,
            num_accepted=outcome.num_accepted,
            num_committed=num_committed,
            token=outcome.token,
            draft_length=0 if finish else self._next_length(),
            upload_bits_per_s=allowed.upload_bits_per_s,
            finish=finish,
            text=self._vocabulary.decode(judged[:num_committed])
            if self.request.wants_text
            else b"",
        )
        if num_draft or not self.is_window:
            self._recorded = ((self.epoch, start), verdict)
        self.grant = verdict.draft_length
        self._has_draft = False
        self.waiting_since = now
        if contradicts or not self.is_window:
            self.turn_since = now
        return verdict

    def _next_length(self) -> int:
        # A verification commits up to one token more than was drafted.
        return min(self.allowed.draft_length, self.num_remaining - 1)

    def _cut(self, judged: list[int]) -> tuple[int, FinishReason | None]:
        """How many of these tokens are committed, and why the text ends there, if it does."""
        for index, token in enumerate(judged):
            if token in self._vocabulary.end_ids:
                return index, "stop"
            if self.request.stop:
                self._stream.push(self._vocabulary.decode([token]))
                if self._stream.stopped:
                    return index + 1, "stop"
            if index + 1 == self.num_remaining:
                return index + 1, "length"
        return len(judged), None
