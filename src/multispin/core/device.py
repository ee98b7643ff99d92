"""One text being written, as its device sees it: draft, send, take the verdict, commit."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from multispin.acceptance import Proposal
from multispin.core.confidence import Calibration, level_of
from multispin.core.drafter import Drafted, Drafter, Sampler
from multispin.core.text import TextStream
from multispin.errors import PeerError
from multispin.types import FinishReason, TokenIds
from multispin.wire import frames
from multispin.wire.frames import (
    Draft,
    Open,
    Opened,
    PrefixDigest,
    TokenLogprobs,
    Verdict,
    Welcome,
)


@dataclass
class SpeculationStats:
    """Counters of one or several sessions; docs/how-it-works.md defines each."""

    num_verifications: int = 0
    num_drafts: int = 0
    num_draft_tokens: int = 0
    num_accepted_tokens: int = 0
    num_committed_tokens: int = 0
    uplink_bytes: int = 0
    downlink_bytes: int = 0
    drafted_at: list[int] = field(default_factory=list)  # [i]: drafts verified at least i+1 long
    accepted_at: list[int] = field(default_factory=list)  # [i]: of them, 0…i all accepted

    def count(self, verdict: Verdict) -> None:
        num_draft = verdict.num_draft
        self.num_verifications += 1
        self.num_committed_tokens += verdict.num_committed
        if num_draft == 0:
            return
        self.num_drafts += 1
        self.num_draft_tokens += num_draft
        self.num_accepted_tokens += verdict.num_accepted
        self.drafted_at += [0] * (num_draft - len(self.drafted_at))
        self.accepted_at += [0] * (num_draft - len(self.accepted_at))
        for position in range(num_draft):
            self.drafted_at[position] += 1
            self.accepted_at[position] += position < verdict.num_accepted

    def add(self, other: SpeculationStats) -> None:
        for name in (
            "num_verifications",
            "num_drafts",
            "num_draft_tokens",
            "num_accepted_tokens",
            "num_committed_tokens",
            "uplink_bytes",
            "downlink_bytes",
        ):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        missing = len(other.drafted_at) - len(self.drafted_at)
        self.drafted_at += [0] * missing
        self.accepted_at += [0] * missing
        for position in range(len(other.drafted_at)):
            self.drafted_at[position] += other.drafted_at[position]
            self.accepted_at[position] += other.accepted_at[position]

    def report(self) -> dict[str, object]:
        """The ``speculation`` object of the contract."""
        return {
            "num_verifications": self.num_verifications,
            "num_drafts": self.num_drafts,
            "num_draft_tokens": self.num_draft_tokens,
            "num_accepted_tokens": self.num_accepted_tokens,
            "mean_acceptance_length": self.mean_acceptance_length,
            "acceptance_by_position": [
                accepted / drafted
                for accepted, drafted in zip(self.accepted_at, self.drafted_at, strict=True)
            ],
            "uplink_bytes": self.uplink_bytes,
            "downlink_bytes": self.downlink_bytes,
        }

    @property
    def mean_acceptance_length(self) -> float:
        """Committed tokens per verification; 1 without drafts."""
        if self.num_drafts == 0:
            return 1.0
        return self.num_committed_tokens / self.num_verifications


class Committed(NamedTuple):
    """News for the application: tokens in order, of which the first are accepted drafts.

    The token after ``num_accepted`` of them is a correction if more were judged, the server's own
    if none was, else a bonus.
    """

    ids: list[int]
    num_accepted: int
    text: str
    finish: FinishReason | None
    num_draft: int  # drafted tokens that were judged
    logprobs: list[TokenLogprobs]  # one for each token, if asked for


MIN_SURVIVAL = 0.1  # goodput is the same from 0.02 to 0.2, uploads are not
FLUSH_S = 0.005  # of drafting: tokens drafted faster than that share a frame


class Job(NamedTuple):
    """One token to be drafted behind ``tokens``."""

    epoch: int
    tokens: TokenIds  # a copy: the session goes on meanwhile
    num_committed: int  # of them


@dataclass
class Pace:
    """How fast the device drafts, and how fast its text grows."""

    num_drafted: int = 0
    drafting_s: float = 0.0
    num_committed: int = 0
    began: float | None = None  # at the first verdict

    def tokens_per_draft_time(self, now: float) -> float:
        """Tokens that are committed, on average, while one is drafted; 0 while nobody knows."""
        if self.began is None or now <= self.began or self.num_drafted == 0:
            return 0.0
        goodput = self.num_committed / (now - self.began)
        return goodput * self.drafting_s / self.num_drafted


class DeviceSession:
    """State of a session on its device: committed tokens, and behind them the drafted ones.

    job → draft (computes, in any thread) → add → message, and apply for every verdict. In mode
    window it drafts on, token by token, while verdicts are outstanding, up to its grant ahead of
    what is committed; otherwise one draft at a time.
    """

    def __init__(
        self,
        request: Open,
        opened: Opened,
        drafter: Drafter | None,
        seq: int,
        welcome: Welcome,
        calibration: Calibration,
    ) -> None:
        self.request = request
        self.stats = SpeculationStats()
        self.finish: FinishReason | None = None
        self.grant = opened.draft_length
        self.upload_bits_per_s = opened.upload_bits_per_s
        self._calibration = calibration
        self.is_window = welcome.mode == "window"
        self._id_bits = frames.id_bits(welcome.vocabulary_size)
        self._end_ids = frozenset(welcome.end_ids)
        self._drafter = drafter
        self._seq = seq
        prompt = frames.unpack_ids(opened.prompt_ids, self._id_bits, welcome.vocabulary_size)
        self.num_prompt = len(prompt)
        self._sampler = Sampler(len(prompt), request.params, request.rule, request.seed)
        room = min(len(prompt) + request.max_tokens, max(welcome.context_length, len(prompt)))
        self._tokens = np.empty(room + request.draft_length + 1, np.int32)
        self._tokens[: len(prompt)] = prompt
        self._levels = np.zeros(len(self._tokens), np.uint8)  # of the drafter's confidence
        self._most = room
        self._length = self._sent = self._end = len(prompt)  # committed, sent and drafted up to
        self._proposals: list[Proposal] = []  # of what is drafted and not sent
        self.unsent_s = 0.0  # spent on it
        self._pace = Pace()
        self._committed_meanwhile = 0.0  # tokens, while one is drafted
        self._digest = PrefixDigest(prompt)
        self._text = TextStream(request.stop)
        self._epoch = 0
        self._is_exhausted = False  # the drafter has nothing to propose until the next verdict
        self._awaits_verdict = False

    @property
    def committed(self) -> list[int]:
        ids: list[int] = self._tokens[self.num_prompt : self._length].tolist()
        return ids

    # --- draft ---------------------------------------------------------------------------------

    def job(self) -> Job | None:
        """What to draft now, if anything."""
        if self._drafter is None or self.finish is not None:
            return None
        if self._is_exhausted or (self._awaits_verdict and not self.is_window):
            return None
        if self._end - self._length >= self.grant or self._is_at_end() or self._is_hopeless():
            return None
        return Job(self._epoch, self._tokens[: self._end].copy(), self._length)

    def _is_hopeless(self) -> bool:
        """Early stop: what is drafted and not verified will hardly survive.

        In mode window the device has time to lose: it stops where nine of ten further tokens would
        be in vain. Where drafts are due one by one, a token costs its drafting time, in which the
        text would otherwise grow by goodput times that time.
        """
        least = MIN_SURVIVAL if self.is_window else min(self._committed_meanwhile, 1.0)
        levels = self._levels[self._length : self._end]
        return bool(self._calibration.acceptance[levels].prod() < least)

    def _is_at_end(self) -> bool:
        """Nothing follows the end of a text."""
        return self._end > self._length and int(self._tokens[self._end - 1]) in self._end_ids

    def draft(self, job: Job) -> Drafted:
        """Compute: the only step that takes time."""
        assert self._drafter is not None
        self._drafter.learn(self._seq, job.tokens[: job.num_committed])
        return self._drafter.draft(self._seq, job.tokens, 1, self._sampler)

    def add(self, job: Job, drafted: Drafted, drafting_s: float) -> None:
        """Append what was drafted, unless a verdict has made it stale."""
        if job.epoch != self._epoch or len(job.tokens) != self._end or self.finish is not None:
            return
        end = self._end + len(drafted.ids)
        self._tokens[self._end : end] = drafted.ids
        self._levels[self._end : end] = level_of(drafted.confidences)
        self._proposals += drafted.proposals
        self._end = end
        self.unsent_s += drafting_s
        self._pace.num_drafted += len(drafted.ids)
        self._pace.drafting_s += drafting_s
        self._is_exhausted = len(drafted.ids) == 0

    @property
    def owes_message(self) -> bool:
        """Whether there is something to send. Where drafts are due one by one it may be an empty
        one, which asks for one token of the server's own."""
        if self.is_window:
            return self._sent < self._end
        is_due = self.finish is None and self.grant > 0 and not self._awaits_verdict
        return is_due and self.job() is None

    @property
    def sends_now(self) -> bool:
        """Whether a message is due on an uplink that is free; what is drafted meanwhile waits."""
        if not self.owes_message:
            return False
        is_soon = self.unsent_s < FLUSH_S and self.job() is not None
        return not is_soon

    def message(self) -> Draft:
        """Everything that was drafted and not sent."""
        assert self.owes_message
        message = Draft(
            session=self.request.session,
            epoch=self._epoch,
            start=self._sent,
            digest=self._digest.digest(self._tokens[self._length : self._sent]),
            tokens=frames.pack_tokens(
                self._tokens[self._sent : self._end],
                self._levels[self._sent : self._end],
                self._id_bits,
            ),
            drafting=round(1e4 * self.unsent_s),
            proposals=[
                (
                    frames.pack_ids(proposal.ids, self._id_bits),
                    (proposal.counts - 1).astype("<u2").tobytes(),
                )
                for proposal in self._proposals
            ],
        )
        self._sent = self._end
        self._proposals, self.unsent_s = [], 0.0
        self._awaits_verdict = True
        return message

    # --- verdicts ------------------------------------------------------------------------------

    def apply(self, verdict: Verdict, now: float) -> Committed | None:
        """Commit what the server decided; None for a verdict that was applied before."""
        if verdict.start < self._length or self.finish is not None:
            return None
        self._check(verdict)
        start, at = self._length, self._length + verdict.num_accepted
        ids = [*self._tokens[start:at].tolist(), verdict.token][: verdict.num_committed]
        is_known = at < self._end
        contradicts = is_known and int(self._tokens[at]) != verdict.token
        compared = self._levels[start : min(start + verdict.num_draft + 1, self._end)]
        num_same = verdict.num_accepted + (is_known and not contradicts)
        self._calibration.observe(compared, num_same)
        self._tokens[at] = verdict.token
        self._length = start + len(ids)
        self._digest.update(ids)
        if contradicts:
            self._roll_back()
        else:
            # What was drafted and not yet sent may have been committed meanwhile.
            num_overtaken = max(self._length - self._sent, 0)
            self._proposals = self._proposals[num_overtaken:]
            self._sent = max(self._sent, self._length)
            self._end = max(self._end, self._length)
        self.stats.count(verdict)
        if self._pace.began is None:
            self._pace.began = now
        else:
            self._pace.num_committed += len(ids)
        self._committed_meanwhile = self._pace.tokens_per_draft_time(now)
        self.grant = verdict.draft_length
        self.upload_bits_per_s = verdict.upload_bits_per_s
        self._awaits_verdict = self._is_exhausted = False
        self.finish = verdict.finish
        data = verdict.text
        if not self.request.wants_text and self._drafter and self._drafter.vocabulary:
            data = self._drafter.vocabulary.decode(ids)
        text = self._text.push(data, final=verdict.finish is not None)
        return Committed(
            ids,
            min(verdict.num_accepted, len(ids)),
            text,
            verdict.finish,
            verdict.num_draft,
            verdict.logprobs,
        )

    def _check(self, verdict: Verdict) -> None:
        num_sent = self._sent - self._length if verdict.epoch == self._epoch else 0
        if (
            verdict.epoch > self._epoch
            or verdict.start != self._length
            or not 0 <= verdict.num_accepted <= verdict.num_draft <= num_sent
            or not 0 <= verdict.num_committed <= verdict.num_accepted + 1
            or self._length + verdict.num_committed > self._most
        ):
            raise PeerError("the server sent a verdict that fits no draft", code="out_of_order")

    def _roll_back(self) -> None:
        """Drop what was drafted: an epoch ends."""
        self._epoch += 1
        self._sent = self._end = self._length
        self._proposals, self.unsent_s = [], 0.0
