"""Replicas behind a directory, as processes. Long forms: `make soak`."""

from __future__ import annotations

import asyncio
import sys

import pytest

from tests.faults import cluster_load

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="looks at processes in /proc"),
]


def test_who_is_left_alone_stays_and_a_new_replica_takes_its_share() -> None:
    told = asyncio.run(cluster_load.calm(24, 2, 1, 0.05, (30, 60)))
    assert told["share_that_kept_its_replica"] == 1
    assert 0 < told["share_moved_by_a_fourth"] <= 0.5  # 24 keys: 1/4 give or take 3 deviations
    assert told["texts_moved_in_their_midst"] == 0
    assert told["sessions_left"] == 0
    assert told["directory_descriptors_left"] <= 0


def test_replicas_are_killed_drained_added_and_no_text_notices() -> None:
    told = asyncio.run(cluster_load.blows(16, 4, 1, 0.05, (50, 150), kill_each_s=4.0))
    assert told["blows"]["killed"] == 4
    assert told["pause_s_killed"]["num"] > 0 and told["pause_s_drained"]["num"] > 0
    assert told["texts"] > 16
    assert told["sessions_left"] == 0
    assert told["directory_descriptors_left"] <= 0
