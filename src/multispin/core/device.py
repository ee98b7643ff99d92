"""One text being written, as its device sees it: draft, send, take the verdict, commit."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from multispin.core.drafter import Drafter
from multispin.core.text import TextStream
from multispin.errors import PeerError
from multispin.types import FinishReason, TokenIds
from multispin.wire import frames
from multispin.wire.frames import Draft, Open, Opened, PrefixDigest, Verdict


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

    def count(self, num_draft: int, verdict: Verdict) -> None:
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
    """News for the application: tokens in order, of which the first are accepted drafts."""

    ids: list[int]
    num_accepted: int
    text: str
    finish: FinishReason | None


class DeviceSession:
    """State of a session on its device. ``make_draft`` computes; the rest is bookkeeping."""

    def __init__(
        self,
        request: Open,
        opened: Opened,
        drafter: Drafter | None,
        seq: int,
        vocabulary_size: int,
        context_length: int,
    ) -> None:
        self.request = request
        self.stats = SpeculationStats()
        self.finish: FinishReason | None = None
        self._id_bits = frames.id_bits(vocabulary_size)
        self._drafter = drafter
        self._seq = seq
        prompt = frames.unpack_ids(opened.prompt_ids, self._id_bits, vocabulary_size)
        self.num_prompt = len(prompt)
        most = min(len(prompt) + request.max_tokens, max(context_length, len(prompt)))
        self._tokens = np.empty(most + 1, np.int32)
        self._tokens[: len(prompt)] = prompt
        self._length = len(prompt)
        self._digest = PrefixDigest()
        self._digest.update(prompt)
        self._text = TextStream(request.stop)
        self._epoch = 0
        self._grant = opened.draft_length
        self.upload_bits_per_s = opened.upload_bits_per_s
        self._drafted: TokenIds = np.empty(0, np.int32)
        self._awaits_verdict = False

    @property
    def committed(self) -> list[int]:
        ids: list[int] = self._tokens[self.num_prompt : self._length].tolist()
        return ids

    @property
    def owes_draft(self) -> bool:
        """Whether it is the device's turn."""
        return self.finish is None and self._grant > 0 and not self._awaits_verdict

    @property
    def grant(self) -> int:
        return self._grant

    def make_draft(self) -> tuple[Draft, int]:
        """Draft as far as granted: the message, and the number of tokens in it.

        An empty draft asks for one token of the server's own.
        """
        assert self.owes_draft and self._drafter is not None
        request = self.request
        drafted = self._drafter.draft(
            self._seq,
            self._tokens[: self._length],
            self.num_prompt,
            self._grant,
            request.params,
            request.rule,
            request.seed,
        )
        self._drafted = drafted.ids
        self._awaits_verdict = True
        message = Draft(
            session=request.session,
            epoch=self._epoch,
            start=self._length,
            digest=self._digest.digest(),
            ids=frames.pack_ids(drafted.ids, self._id_bits),
            proposals=[
                (
                    frames.pack_ids(proposal.ids, self._id_bits),
                    (proposal.counts - 1).astype("<u2").tobytes(),
                )
                for proposal in drafted.proposals
            ],
        )
        return message, len(drafted.ids)

    def apply(self, verdict: Verdict) -> Committed | None:
        """Commit what the server decided; None for a verdict that was applied before."""
        if verdict.epoch < self._epoch or verdict.start < self._length:
            return None
        num_draft = len(self._drafted)
        if (
            self.finish is not None
            or verdict.epoch != self._epoch
            or verdict.start != self._length
            or not 0 <= verdict.num_accepted <= num_draft
            or not 0 <= verdict.num_committed <= verdict.num_accepted + 1
            or self._length + verdict.num_committed > len(self._tokens)
        ):
            raise PeerError("the server sent a verdict that fits no draft", code="out_of_order")
        judged = [*self._drafted[: verdict.num_accepted].tolist(), verdict.token]
        ids = judged[: verdict.num_committed]
        self.stats.count(num_draft, verdict)
        self._tokens[self._length : self._length + len(ids)] = ids
        self._length += len(ids)
        self._digest.update(ids)
        self._epoch += verdict.num_accepted < num_draft
        self._grant = verdict.draft_length
        self.upload_bits_per_s = verdict.upload_bits_per_s
        self._drafted = self._drafted[:0]
        self._awaits_verdict = False
        self.finish = verdict.finish
        data = verdict.text
        if not self.request.wants_text and self._drafter and self._drafter.vocabulary:
            data = self._drafter.vocabulary.decode(ids)
        text = self._text.push(data, final=verdict.finish is not None)
        return Committed(ids, min(verdict.num_accepted, len(ids)), text, verdict.finish)
