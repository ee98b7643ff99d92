"""Time for planning: a share of what passes, saved for a while and no longer."""

from __future__ import annotations

import pytest

from multispin.core.server_time import SAVED_S, SOLVE_SHARE, ServerTime


def test_time_to_plan_is_a_share_of_what_passes_and_kept_up_to_a_bound() -> None:
    server = ServerTime(lambda: 100.0)
    server.save(1e6)
    assert server.saved_s == SAVED_S  # however long nobody planned
    server.spend(0.2)
    server.save(1e6 + 10.0)
    assert server.saved_s == pytest.approx(SAVED_S - 0.2 + SOLVE_SHARE * 10.0)
