"""One text being written, as the server sees it: committed tokens, drafted ones, verdicts.

The committed text only grows. Behind it stand the drafted tokens that have arrived without a gap.
A draft names its epoch, and the digest of everything before it, drafted tokens included, so that
the server knows whether it continues this text or one that was dropped: what a verdict contradicts
is void, and everything else of its epoch with it.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np

from multispin.core.confidence import Calibration
from multispin.core.controller import Grant, SessionKey
from multispin.core.engine import Outcome, Work
from multispin.core.tenant import Tenant
from multispin.core.text import TextStream
from multispin.errors import PeerError
from multispin.lm.base import Vocabulary
from multispin.types import FinishReason, TokenIds
from multispin.wire.frames import (
    DIGEST_BYTES,
    Draft,
    Open,
    PrefixDigest,
    TokenLogprobs,
    Verdict,
    num_tokens,
)

# Levels of drafted tokens, and how many of these tokens, from the first on, are what the text says.
Compared: TypeAlias = "tuple[bytes | bytearray, int]"


class Session:
    """State of a session.

    In mode window the server may go on at any time, with the drafted tokens that are there or
    without. Otherwise it waits for the one draft that is due, unless the grant is 0.
    """

    # Hundreds are looked at between two passes: slots keep each of them in one piece.
    __slots__ = (
        *("key", "request", "tenant", "resume", "began", "num_prompt", "most", "calibration"),
        *("is_window", "sends_proposals"),
        *("length", "end", "proposals", "allowed", "grant", "epoch", "seq", "num_cached"),
        *("waiting_since", "turn_since", "num_heard", "drafting", "compared", "closed"),
        *("num_crashes", "_is_new", "_is_void", "_learned", "_has_draft", "_early", "_recorded"),
        *("_vocabulary", "_text", "_levels", "_digest", "_num_digested", "_stream"),
    )

    def __init__(
        self,
        key: SessionKey,
        request: Open,
        tokens: TokenIds,  # the prompt, and what is committed already
        num_prompt: int,
        most: int,
        vocabulary: Vocabulary,
        allowed: Grant,
        calibration: Calibration,
        now: float,
        *,
        tenant: Tenant,
        resume: bytes,
        is_window: bool,
    ) -> None:
        self.key = key
        self.request = request
        self.tenant = tenant
        self.resume = resume  # the secret that names it on another link; empty: nothing does
        self.began = now
        self.num_prompt = num_prompt
        self.most = most  # committed tokens, the prompt included, when it ends at the latest
        self.calibration = calibration  # of its device's drafter
        self.is_window = is_window
        self.sends_proposals = request.rule == "rejection" and request.params.temperature > 0
        self.length = len(tokens)  # committed tokens, the prompt included
        self.end = self.length  # of the drafted tokens behind them
        self.proposals: list[tuple[bytes, bytes]] = []  # of the drafted tokens, or empty
        self.allowed = allowed  # by the controller
        self.grant = self._next_length()
        self.seq: int | None = None  # the engine's sequence, once there is a free one
        self.num_cached = 0  # so many tokens are in the engine's cache
        self._is_new = True  # its prompt is read while its first draft is on the way
        self.waiting_since = now
        self.turn_since: float | None = now  # of the device: when it was told to draft anew
        self.num_heard = 0  # tokens of drafts, since somebody learned from it
        self.drafting = 0  # what they took, in units of 100 us
        self.closed = False  # its device is gone; the sequence is freed after the batch
        self.num_crashes = 0
        self.epoch = 0
        self._is_void = False  # nothing more of this epoch can be of use
        self.compared: list[Compared] = []  # since somebody learned from it
        self._learned = 0  # up to here drafted tokens were compared with the text
        self._has_draft = False  # the one that is due, where one is
        # By start: drafts that came before their turn, as they are taken.
        self._early: dict[int, tuple[bytes, list[int], bytes, list[tuple[bytes, bytes]]]] = {}
        self._recorded: Verdict | None = None  # the last one on a draft
        self._vocabulary = vocabulary
        room = self.most + request.draft_length + 1
        # Committed, then drafted; int32. For a few tokens at a time NumPy would take longer.
        self._text = memoryview(bytearray(4 * room)).cast("i")
        self._text[: self.length] = memoryview(tokens.astype(np.int32).tobytes()).cast("i")
        self._levels = bytearray(room)  # of the drafted tokens' confidence
        self._digest = PrefixDigest()
        self._num_digested = 0
        self._stream = TextStream(request.stop)
        if request.stop:  # one may begin in what is committed
            self._stream.push(vocabulary.decode(tokens[num_prompt:].tolist()))

    @property
    def num_drafted(self) -> int:
        """Drafted tokens that the next pass can judge, one more being committed with them."""
        return min(self.end, self.most - 1) - self.length

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
        return np.frombuffer(self._text[begin:end], np.int32)

    def work(self, end: int, num_draft: int, *, samples: bool) -> Work:
        """What the engine has to do: be fed up to ``end``, judge the draft at the end of that."""
        assert self.seq is not None
        request, start = self.request, self.num_cached
        return Work(
            seq=self.seq,
            start=start,
            tokens=self._text[start:end].tobytes(),
            num_draft=num_draft,
            samples=samples,
            num_prompt=self.num_prompt,
            params=request.params,
            rule=request.rule,
            seed=request.seed,
            proposals=self.proposals[:num_draft],
            num_logprobs=request.num_logprobs,
            json_schema=request.json_schema,
        )

    @property
    def levels(self) -> bytearray:
        """Of the drafted tokens that the next pass can judge."""
        return self._levels[self.length : self.length + self.num_drafted]

    # --- drafts --------------------------------------------------------------------------------

    def check_size(self, message: Draft, id_bits: int) -> None:
        """Raise PeerError for a draft that is too long to be looked at, or kept: what is stale is
        nobody's fault, and is unpacked all the same."""
        if num_tokens(message.tokens, id_bits) > self.request.draft_length:
            raise PeerError(
                f"draft = {len(message.tokens)} bytes: more than the {self.request.draft_length} "
                "tokens that the session may draft ahead",
                code="draft_too_long",
            )
        if len(message.digest) != DIGEST_BYTES:
            raise PeerError(
                f"draft.digest = {len(message.digest)} bytes: must be {DIGEST_BYTES}",
                code="bad_frame",
            )

    def repeated(self, message: Draft, num_ids: int) -> Verdict | None:
        """The verdict on this very draft, if it is the last one on any."""
        verdict = self._recorded
        if verdict is None or (verdict.start, verdict.epoch) != (message.start, message.epoch):
            return None
        is_longer = not self._is_void and message.start + num_ids > self.end
        return None if self.is_window and is_longer else verdict

    def is_stale(self, message: Draft) -> bool:
        """Whether the draft follows what was dropped, or is being verified already."""
        if message.epoch < self.epoch or (message.epoch == self.epoch and self._is_void):
            return True
        is_due = (message.epoch, message.start) == (self.epoch, self.length)
        return not self.is_window and self._has_draft and is_due

    def take(
        self, message: Draft, ids: list[int], levels: bytes, proposals: list[tuple[bytes, bytes]]
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
        if message.start > self.end:
            self._early[message.start] = message.digest, ids, levels, proposals
        else:
            self._append(message.start, message.digest, ids, levels, proposals)
            if self._early:
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
        while self._early and (start := min(self._early)) <= self.end:
            self._append(start, *self._early.pop(start))

    def _append(
        self,
        start: int,
        digest: bytes,
        ids: list[int],
        levels: bytes,
        proposals: list[tuple[bytes, bytes]],
    ) -> None:
        text, end = self._text, self.end
        num_known = min(end - start, len(ids))
        num_same = num_known and self._num_same(start, ids[:num_known], levels)
        if digest != self._digest_before(start) or num_same < num_known:
            if not self.is_window:
                raise PeerError(
                    "draft.digest does not match the committed tokens: open the session anew",
                    code="digest_mismatch",
                )
            self._void()
            return
        self._levels[end : end + len(ids) - num_known] = levels[num_known:]
        for token in ids[num_known:]:
            text[end] = token
            end += 1
        self.end = end
        self.proposals += proposals[num_known:]

    def _num_same(self, start: int, ids: list[int], levels: bytes) -> int:
        """How many of a draft's tokens, from the first on, are what the text says there.

        As far as the server has gone on without them, it knows now what they were worth.
        """
        known = self._text[start : start + len(ids)].tolist()
        pairs = enumerate(zip(known, ids, strict=True))
        num_same = next((index for index, (one, other) in pairs if one != other), len(ids))
        begin = max(self._learned - start, 0)
        end = min(self.length - start, len(ids))
        if begin < end and begin <= num_same:
            self.compared.append((levels[begin:end], min(num_same, end) - begin))
            self._learned = start + end
        return num_same

    def _digest_before(self, position: int) -> bytes:
        if position < self.length:
            return PrefixDigest(self._text[:position]).digest()
        self._digest.update(self._text[self._num_digested : self.length])
        self._num_digested = self.length
        return self._digest.digest(self._text[self.length : position])

    def _void(self) -> None:
        self._is_void = True
        self._drop()

    def _drop(self) -> None:
        self.end = self.length
        self.proposals = []
        self._early.clear()

    # --- verdicts ------------------------------------------------------------------------------

    def commit(self, outcome: Outcome, num_draft: int, now: float) -> Verdict:
        """Apply the judgement of ``num_draft`` tokens: extend the text; the verdict that says so.

        Drafted tokens that were not judged stay if the text still leads to them.
        """
        start, token, text = self.length, outcome.token, self._text
        at = start + outcome.num_accepted
        is_known = at < self.end
        contradicts = is_known and text[at] != token
        if self.end > start:
            levels = self._levels[start : min(start + num_draft + 1, self.end)]
            is_same = is_known and not contradicts
            self.compared.append((levels, outcome.num_accepted + is_same))
            self._learned = at + is_known
        text[at] = token
        judged = text[start : at + 1].tolist()
        num_committed, finish = self._cut(judged)
        self.length += num_committed
        # The cache holds what was fed: all but the newest token.
        self.num_cached, self._is_new = at, False
        if contradicts:
            self._void()
        else:
            del self.proposals[: outcome.num_accepted + 1]
            self.end = max(self.end, self.length)
            if self._early:
                self._join()
        verdict = Verdict(
            session=self.key.session,
            epoch=self.epoch,
            start=start,
            num_draft=num_draft,
            num_accepted=outcome.num_accepted,
            num_committed=num_committed,
            token=token,
            draft_length=0 if finish else self._next_length(),
            upload_bits_per_s=self.allowed.upload_bits_per_s,
            finish=finish,
            text=self._vocabulary.decode(judged[:num_committed])
            if self.request.wants_text
            else b"",
            logprobs=_logprobs(outcome, judged[:num_committed], self._vocabulary)
            if outcome.logprobs
            else [],
        )
        if num_draft or not self.is_window:
            self._recorded = verdict
        self.grant = verdict.draft_length
        self._has_draft = False
        self.waiting_since = now
        if contradicts or not self.is_window:
            self.turn_since = now
        return verdict

    def _next_length(self) -> int:
        # A verification commits up to one token more than was drafted.
        return min(self.allowed.draft_length, self.most - 1 - self.length)

    def _cut(self, judged: list[int]) -> tuple[int, FinishReason | None]:
        """How many of these tokens are committed, and why the text ends there, if it does."""
        num_remaining, vocabulary = self.most - self.length, self._vocabulary
        is_plain = len(judged) < num_remaining and not self.request.stop
        if is_plain and vocabulary.end_ids.isdisjoint(judged):
            return len(judged), None
        for index, token in enumerate(judged):
            if token in vocabulary.end_ids:
                return index, "stop"
            if self.request.stop:
                self._stream.push(vocabulary.decode([token]))
                if self._stream.stopped:
                    return index + 1, "stop"
            if index + 1 == num_remaining:
                return index + 1, "length"
        return len(judged), None


def _logprobs(
    outcome: Outcome, committed: list[int], vocabulary: Vocabulary
) -> list[TokenLogprobs]:
    rows = zip(committed, outcome.logprobs, strict=False)  # a token that ends the text has one, too
    return [
        TokenLogprobs(
            token,
            logprob,
            vocabulary.name(token),
            [(other, its_logprob, vocabulary.name(other)) for other, its_logprob in top],
        )
        for token, (logprob, top) in rows
    ]
