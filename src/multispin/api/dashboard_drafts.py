"""What became of a device's drafts of late, by position."""

from __future__ import annotations

from multispin.core.speculation import SpeculationStats

LEAST_DRAFTS = 0.5  # as they count now, for a position to be told


class RecentPositions:
    """Follows the counters of one device."""

    def __init__(self, stats: SpeculationStats) -> None:
        self.stats = stats
        self._seen: tuple[list[int], list[int]] = ([], [])
        self._drafted: list[float] = []
        self._accepted: list[float] = []

    def follow(self, keep: float) -> None:
        """``keep`` of what was counted before is left."""
        drafted, accepted = self.stats.drafted_at.copy(), self.stats.accepted_at.copy()
        self._drafted = _faded(self._drafted, keep, drafted, self._seen[0])
        self._accepted = _faded(self._accepted, keep, accepted, self._seen[1])
        self._seen = drafted, accepted

    @property
    def mean_length(self) -> float | None:
        """Of a draft; None where there was hardly any."""
        if not self._drafted or self._drafted[0] < LEAST_DRAFTS:
            return None
        return sum(self._drafted) / self._drafted[0]

    @property
    def percent(self) -> list[int]:
        """Of the drafts that reached a position, those that were accepted up to there."""
        shares: list[int] = []
        for num_drafted, num_accepted in zip(self._drafted, self._accepted, strict=True):
            if num_drafted < LEAST_DRAFTS:
                break
            shares.append(round(100 * num_accepted / num_drafted))
        return shares


def _faded(grown: list[float], keep: float, totals: list[int], seen: list[int]) -> list[float]:
    num_more = len(totals) - len(grown)
    pairs = zip(grown + [0.0] * num_more, totals, seen + [0] * num_more, strict=True)
    return [old * keep + total - before for old, total, before in pairs]
