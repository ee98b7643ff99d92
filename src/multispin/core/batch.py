"""Which rows go into the next forward pass.

Whatever is ready is verified, longest waiting first. Prompts fill what is left, in chunks: while
other sessions are past their prompts a chunk is small, so that no verdict waits long behind it.

In mode ``stop-and-wait`` every device keeps its own time. In ``rounds`` there is a barrier: all
sessions past their prompts are verified in one pass, when the last draft has come.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from multispin.core.controller import Mode
from multispin.core.engine import Work
from multispin.core.session import Session


@dataclass(frozen=True)
class BatchLimits:
    max_rows: int = 64  # of one forward pass
    prefill_rows: int = 16  # of prompts, while other sessions are past theirs
    mode: Mode = "stop-and-wait"
    round_timeout_s: float = 5.0  # after which a round goes without the devices that are missing


def form_batch(
    sessions: Iterable[Session], limits: BatchLimits, now: float
) -> list[tuple[Session, Work]]:
    """Choose among sessions that hold a sequence and are not busy."""
    waiting = sorted(sessions, key=lambda s: s.waiting_since)
    past_prompt = [session for session in waiting if session.num_uncached == 1]
    chosen: list[tuple[Session, Work]] = []
    rows_left = limits.max_rows
    if limits.mode == "stop-and-wait" or not round_opens_in(past_prompt, limits, now):
        for session in past_prompt:
            if session.ready:
                work = _verification(session)
                if work.num_rows <= rows_left:
                    chosen.append((session, work))
                    rows_left -= work.num_rows
    if past_prompt:
        rows_left = min(rows_left, limits.prefill_rows)
    for session in waiting:
        if session.num_uncached > 1 and rows_left > 0:
            work = _prefill(session, rows_left, verifies=limits.mode == "stop-and-wait")
            chosen.append((session, work))
            rows_left -= work.num_rows
    return chosen


def round_opens_in(past_prompt: Iterable[Session], limits: BatchLimits, now: float) -> float:
    """Seconds until the barrier opens if no further draft comes; 0 when none is missing."""
    missing = [session.waiting_since for session in past_prompt if not session.ready]
    if not missing:
        return 0.0
    return max(0.0, max(missing) + limits.round_timeout_s - now)


def _verification(session: Session) -> Work:
    num_draft = 0 if session.draft is None else len(session.draft)
    tokens = np.empty(session.num_uncached + num_draft, np.dtype("<i4"))
    tokens[: session.num_uncached] = session.tokens[session.num_cached :]
    if session.draft is not None:
        tokens[session.num_uncached :] = session.draft
    return _work(session, tokens, num_draft, samples=True)


def _prefill(session: Session, max_rows: int, *, verifies: bool) -> Work:
    """The next chunk; the newest token is left for the verification, whose first row it is,
    unless that may and can follow in the same pass."""
    num_draft = 0 if session.draft is None else len(session.draft)
    if verifies and session.ready and session.num_uncached + num_draft <= max_rows:
        return _verification(session)
    end = min(session.num_cached + max_rows, len(session.tokens) - 1)
    tokens = np.array(session.tokens[session.num_cached : end], np.dtype("<i4"))
    return _work(session, tokens, 0, samples=False)


def _work(session: Session, tokens: np.ndarray, num_draft: int, *, samples: bool) -> Work:
    assert session.seq is not None
    request = session.request
    return Work(
        seq=session.seq,
        start=session.num_cached,
        tokens=tokens.tobytes(),
        num_draft=num_draft,
        samples=samples,
        num_prompt=session.num_prompt,
        params=request.params,
        rule=request.rule,
        seed=request.seed,
        proposals=session.proposals,
    )
