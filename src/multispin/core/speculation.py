"""What became of drafts: counters of one session or of several."""

from __future__ import annotations

from dataclasses import dataclass, field

from multispin.wire.frames import Verdict


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
            "acceptance_by_position": self.acceptance_by_position,
            "uplink_bytes": self.uplink_bytes,
            "downlink_bytes": self.downlink_bytes,
        }

    @property
    def acceptance_by_position(self) -> list[float]:
        """[i]: of the drafts verified at least i+1 long, those whose tokens 0…i were accepted."""
        pairs = zip(self.accepted_at, self.drafted_at, strict=True)
        return [accepted / drafted for accepted, drafted in pairs]

    @property
    def mean_acceptance_length(self) -> float:
        """Committed tokens per verification; 1 without drafts."""
        if self.num_drafts == 0:
            return 1.0
        return self.num_committed_tokens / self.num_verifications
