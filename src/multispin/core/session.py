"""One text being written, as the server sees it: committed tokens, a draft, a verdict."""

from __future__ import annotations

from dataclasses import dataclass, field

from multispin.core.controller import Grant, SessionKey
from multispin.core.engine import Outcome
from multispin.core.text import TextStream
from multispin.errors import PeerError
from multispin.lm.base import Vocabulary
from multispin.types import FinishReason, TokenIds
from multispin.wire.frames import Draft, Open, PrefixDigest, Verdict


@dataclass
class Session:
    """State of a session. ``tokens`` is the prompt followed by everything committed.

    The session moves when it has a draft, or when its grant is 0 and the server writes alone.
    """

    key: SessionKey
    request: Open
    tokens: list[int]
    max_tokens: int  # the request's, cut to what the context can hold
    vocabulary: Vocabulary
    allowed: Grant
    seq: int | None = None  # the engine's sequence, once there is a free one
    num_cached: int = 0  # tokens[:num_cached] are in the engine's cache
    epoch: int = 0
    grant: int = 0
    draft: TokenIds | None = None
    proposals: list[tuple[bytes, bytes]] = field(default_factory=list)
    waiting_since: float = 0.0
    busy: bool = False  # in the batch that is running
    closed: bool = False  # its device is gone; the sequence is freed after the batch
    num_crashes: int = 0
    recorded: Verdict | None = None

    def __post_init__(self) -> None:
        self.num_prompt = len(self.tokens)
        self._digest = PrefixDigest()
        self._digest.update(self.tokens)
        self._text = TextStream(self.request.stop)
        self.grant = self._next_length()

    @property
    def num_remaining(self) -> int:
        return self.max_tokens - (len(self.tokens) - self.num_prompt)

    @property
    def ready(self) -> bool:
        """Whether the next verdict can be computed as soon as the cache is full."""
        return self.draft is not None or self.grant == 0

    @property
    def num_uncached(self) -> int:
        return len(self.tokens) - self.num_cached

    def check(self, message: Draft) -> Verdict | None:
        """None if the draft is due now; the recorded verdict if it is a repetition of the last.

        Raise PeerError if it cannot belong here, with code 'stale', which nobody is told, for a
        repetition of the draft that is being verified and for one of an earlier epoch.
        """
        if self.recorded is not None and (message.epoch, message.start) == (
            self.recorded.epoch,
            self.recorded.start,
        ):
            return self.recorded
        if message.epoch < self.epoch:
            raise PeerError("a draft of an earlier epoch", code="stale")
        if self.draft is not None and (message.epoch, message.start) == (
            self.epoch,
            len(self.tokens),
        ):
            raise PeerError("a draft that is being verified already", code="stale")
        if message.epoch > self.epoch or message.start != len(self.tokens):
            raise PeerError(
                f"draft.start = {message.start} in epoch {message.epoch}: the session stands at "
                f"{len(self.tokens)} in epoch {self.epoch}",
                code="out_of_order",
            )
        if self.grant == 0:
            raise PeerError(
                "a draft while none is due: wait for the verdict and its grant", code="out_of_order"
            )
        if message.digest != self._digest.digest():
            raise PeerError(
                "draft.digest does not match the committed tokens: open the session anew",
                code="digest_mismatch",
            )
        return None

    def commit(self, outcome: Outcome, allowed: Grant) -> Verdict:
        """Apply a judgement: extend the text, record the verdict, which carries the next grant."""
        self.allowed = allowed
        draft = [] if self.draft is None else self.draft.tolist()
        start = len(self.tokens)
        judged = [*draft[: outcome.num_accepted], outcome.token]
        num_committed, finish = self._cut(judged)
        committed = judged[:num_committed]
        self.tokens += committed
        self._digest.update(committed)
        # The cache holds what was fed: all but the newest token.
        self.num_cached = start + outcome.num_accepted
        verdict = Verdict(
            session=self.key.session,
            epoch=self.epoch,
            start=start,
            num_accepted=outcome.num_accepted,
            num_committed=num_committed,
            token=outcome.token,
            draft_length=0 if finish else self._next_length(),
            upload_bits_per_s=allowed.upload_bits_per_s,
            finish=finish,
            text=self.vocabulary.decode(committed) if self.request.wants_text else b"",
        )
        if outcome.num_accepted < len(draft):
            self.epoch += 1
        self.grant = verdict.draft_length
        self.draft, self.proposals = None, []
        self.recorded = verdict
        return verdict

    def _next_length(self) -> int:
        # A verification commits up to one token more than was drafted.
        return min(self.allowed.draft_length, self.num_remaining - 1)

    def _cut(self, judged: list[int]) -> tuple[int, FinishReason | None]:
        """How many of these tokens are committed, and why the text ends there, if it does."""
        for index, token in enumerate(judged):
            if token in self.vocabulary.end_ids:
                return index, "stop"
            if self.request.stop:
                self._text.push(self.vocabulary.decode([token]))
                if self._text.stopped:
                    return index + 1, "stop"
            if index + 1 == self.num_remaining:
                return index + 1, "length"
        return len(judged), None
