"""Which rows go into the next forward pass.

Mode ``window``: whenever the model is free it runs, with the rows that are worth most (rows.py).
In ``stop-and-wait`` every device keeps its own time, and whatever is ready is verified, longest
waiting first. In ``rounds`` there is a barrier: all sessions past their prompts are verified in one
pass, when the last draft has come.

Prompts fill what is left, in chunks: while other sessions are past their prompts, a chunk makes the
pass longer by at most ``prefill_s``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from operator import attrgetter

import numpy as np

from multispin.control.problem import Floats
from multispin.core.confidence import survivals
from multispin.core.engine import Work
from multispin.core.rows import choose_rows
from multispin.core.session import Session
from multispin.types import Mode


@dataclass(frozen=True)
class BatchLimits:
    max_rows: int = 64  # of one forward pass
    # So much longer a pass may take for prompts, while other sessions are past theirs: the most
    # that a verdict waits because somebody else came.
    prefill_s: float = 0.2
    mode: Mode = "window"
    round_timeout_s: float = 5.0  # after which a round goes without the devices that are missing


def form_batch(
    sessions: Iterable[Session], limits: BatchLimits, pass_s: Floats, now: float
) -> list[tuple[Session, Work]]:
    """Choose among sessions that hold a sequence and are not busy. ``pass_s[n - 1]``: n rows."""
    waiting = sorted(sessions, key=attrgetter("waiting_since"))
    past_prompt = [session for session in waiting if session.num_uncached == 1]
    if limits.mode == "window":
        chosen = _most_tokens_per_second(past_prompt, limits, pass_s)
    elif limits.mode == "rounds" and round_opens_in(past_prompt, limits, now):
        chosen = []
    else:
        chosen = _oldest_first([s for s in past_prompt if s.ready], limits)
    if len(past_prompt) == len(waiting):
        return chosen
    num_rows = sum(work.num_rows for _, work in chosen)
    rows_left = limits.max_rows - num_rows
    if past_prompt:
        rows_left = min(rows_left, _prefill_rows(num_rows, limits, pass_s))
    for session in waiting:
        if session.num_uncached > 1 and rows_left > 0:
            work = _prefill(session, rows_left, limits.mode)
            chosen.append((session, work))
            rows_left -= work.num_rows
    return chosen


def only_verifies(works: Iterable[Work]) -> bool:
    """Whether no prompt is read: what such a pass takes is the verification curve."""
    return all(work.samples and len(work.tokens) == 4 * (work.num_draft + 1) for work in works)


def _prefill_rows(num_rows: int, limits: BatchLimits, pass_s: Floats) -> int:
    """Rows of prompts that a pass of so many others has time for; one at least."""
    longest = pass_s[max(num_rows, 1) - 1] + limits.prefill_s
    # With more rows a pass does not get shorter for good: steps are looked past.
    return max(1, int(np.searchsorted(np.maximum.accumulate(pass_s), longest, "right")) - num_rows)


def _oldest_first(sessions: list[Session], limits: BatchLimits) -> list[tuple[Session, Work]]:
    chosen = []
    rows_left = limits.max_rows
    for session in sessions:
        num_drafted = session.num_drafted
        if num_drafted < rows_left:
            chosen.append((session, _verification(session, num_drafted)))
            rows_left -= num_drafted + 1
    return chosen


def _most_tokens_per_second(
    sessions: list[Session], limits: BatchLimits, pass_s: Floats
) -> list[tuple[Session, Work]]:
    if not sessions:
        return []
    drafted = [session.levels for session in sessions]
    num_drafted = np.array([len(levels) for levels in drafted])
    calibrations = [session.calibration for session in sessions]
    levels = np.frombuffer(b"".join(drafted), np.uint8)
    survival = survivals(calibrations, levels, num_drafted)
    num_rows = choose_rows(survival, num_drafted, pass_s[: limits.max_rows])
    return [
        (session, _verification(session, num - 1))
        for session, num in zip(sessions, num_rows.tolist(), strict=True)
        if num > 0
    ]


def round_opens_in(past_prompt: Iterable[Session], limits: BatchLimits, now: float) -> float:
    """Seconds until the barrier opens if no further draft comes; 0 when none is missing."""
    missing = [session.waiting_since for session in past_prompt if not session.ready]
    if not missing:
        return 0.0
    return max(0.0, max(missing) + limits.round_timeout_s - now)


def _verification(session: Session, num_draft: int) -> Work:
    return session.work(session.length + num_draft, num_draft, samples=True)


def _prefill(session: Session, max_rows: int, mode: Mode) -> Work:
    """The next chunk; the newest token is left for the verification, whose first row it is,
    unless that may and can follow in the same pass. In mode window its draft waits for the next
    pass, which weighs it against others."""
    num_draft = 0 if mode == "window" else session.num_drafted
    if mode != "rounds" and session.ready and session.num_uncached + num_draft <= max_rows:
        return _verification(session, num_draft)
    end = min(session.num_cached + max_rows, session.length - 1)
    return session.work(end, 0, samples=False)
