"""How far the server is behind: what directories and the supervisor ask of a replica."""

from __future__ import annotations

from collections.abc import Iterable

from multispin.core.engine import Work
from multispin.core.session import Session


def rows_waiting(
    sessions: Iterable[Session], running: Iterable[tuple[Session, Work]], chosen_at: float
) -> int:
    """Rows that are ready for a pass and were when the ``running`` one was chosen without them.

    What has come since is for the next, and waits for nobody; and where none runs, who has a place
    waits for other devices, and not for the server.
    """
    num_running = {session.key: work.num_rows for session, work in running}
    num_rows = 0
    for session in sessions:
        if session.closed or not session.needs_place or session.waiting_since > chosen_at:
            continue
        if session.seq is not None and not num_running:
            continue
        if (num := num_running.get(session.key)) is None:
            num_rows += session.num_uncached + session.num_drafted
        else:  # the prompt may be longer than the chunk of it
            num_rows += max(session.num_uncached - num, 0)
    return num_rows
