"""What a user and an operator see of a run: from when tokens came to the figures of a table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import msgspec
import numpy as np

from multispin.core.speculation import SpeculationStats

LEAST_WRITING = 0.1  # of the measuring time, for figures of it


@dataclass
class TextLog:
    """When one text was asked for, and when how many of its tokens came."""

    opened_at: float
    arrivals: list[tuple[float, int]] = field(default_factory=list)


class Spent(NamedTuple):
    """Running totals of a run's devices; the difference of two is what a period took."""

    num_tokens: int = 0
    num_verifications: int = 0
    uplink_bytes: int = 0

    @classmethod
    def of(cls, all_stats: Iterable[SpeculationStats]) -> Spent:
        totals = np.zeros(3, np.int64)
        for stats in all_stats:
            totals += (stats.num_committed_tokens, stats.num_verifications, stats.uplink_bytes)
        return cls(*totals.tolist())


class Quantiles(msgspec.Struct, frozen=True):
    """None where nothing was counted."""

    p50: float | None
    p95: float | None
    p99: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Quantiles:
        if not len(values):
            return cls(None, None, None)
        return cls(*np.quantile(values, (0.50, 0.95, 0.99)).tolist())


class Measured(msgspec.Struct, frozen=True):
    """Figures of the measuring time, of all devices together.

    ``writing_…`` are of that part of it in which nobody waited for a first token: what reading
    prompts costs is left out; None where there was hardly any such time. Tokens of one verdict come
    together: the first of them has waited for all, the others 0 s (``inter_token_s``);
    ``inter_verdict_s`` counts each verdict once.
    """

    seconds: float
    num_tokens: int
    goodput_tokens_per_s: float
    writing_seconds: float
    writing_goodput_tokens_per_s: float | None
    time_to_first_token_s: Quantiles
    inter_token_s: Quantiles
    inter_verdict_s: Quantiles
    mean_acceptance_length: float
    uplink_bytes_per_token: float | None


def measure(logs: Sequence[TextLog], begin: float, end: float, spent: Spent) -> Measured:
    """Figures of ``begin`` to ``end``; times to the first token of all texts until ``end``."""
    arrivals = [(at, num) for log in logs for at, num in log.arrivals if begin < at <= end]
    num_tokens = sum(num for _, num in arrivals)
    writing = _writing(logs, begin, end)
    writing_s = sum(until - since for since, until in writing)
    is_writing = writing_s >= LEAST_WRITING * (end - begin)
    writing_tokens = sum(
        num for at, num in arrivals if any(since < at <= until for since, until in writing)
    )
    gaps = _gaps(logs, begin, end)
    firsts = [log.arrivals[0][0] - log.opened_at for log in logs if log.arrivals]
    return Measured(
        seconds=end - begin,
        num_tokens=num_tokens,
        goodput_tokens_per_s=num_tokens / (end - begin),
        writing_seconds=writing_s,
        writing_goodput_tokens_per_s=writing_tokens / writing_s if is_writing else None,
        time_to_first_token_s=Quantiles.of(firsts),
        inter_token_s=Quantiles.of([s for gap, num in gaps for s in [gap] + [0.0] * (num - 1)]),
        inter_verdict_s=Quantiles.of([gap for gap, _ in gaps]),
        mean_acceptance_length=spent.num_tokens / max(1, spent.num_verifications),
        uplink_bytes_per_token=spent.uplink_bytes / max(1, spent.num_tokens)
        if spent.uplink_bytes
        else None,
    )


def _writing(logs: Sequence[TextLog], begin: float, end: float) -> list[tuple[float, float]]:
    """The periods within begin … end in which no text waited for its first token."""
    reading = sorted(
        (log.opened_at, log.arrivals[0][0] if log.arrivals else float("inf")) for log in logs
    )
    periods = []
    since = begin
    for opened, first in reading:
        if since < min(opened, end):
            periods.append((since, min(opened, end)))
        since = max(since, first)
    if since < end:
        periods.append((since, end))
    return periods


def _gaps(logs: Sequence[TextLog], begin: float, end: float) -> list[tuple[float, int]]:
    """How long each text waited for tokens, and how many then came."""
    return [
        (at - before, num)
        for log in logs
        for (before, _), (at, num) in pairwise(log.arrivals)
        if begin < at <= end and num
    ]
