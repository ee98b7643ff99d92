"""Servers that are killed, and that many use at once. Long forms: `make soak`."""

from __future__ import annotations

import asyncio
import sys

import pytest

from tests.faults import load, shaped

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="looks at processes in /proc"),
]


def test_engines_are_killed_and_no_text_notices() -> None:
    told = asyncio.run(load.kill_engines(2, 8, seed=1))
    assert told["texts"] >= 8
    assert told["sessions_left"] == 0


def test_devices_come_back_to_a_server_that_was_killed() -> None:
    told = asyncio.run(load.restart_server(1, 12, seed=1))
    assert told["sessions_left"] == 0


def test_many_join_and_leave_and_every_text_is_right() -> None:
    told = asyncio.run(load.many_sessions(32, 5.0, 1, pass_s=0.02, lengths=(20, 90)))
    assert told["texts"] > 0 and told["given_up"] > 0
    assert told["sessions_left"] == 0
    assert told["descriptors_left"] <= 0


@pytest.mark.skipif(not shaped.is_possible(), reason="needs the right to make network namespaces")
def test_a_real_link_gives_the_goodput_that_is_planned_for_its_rate() -> None:
    told = shaped.measure(shaped.Shape(160e3), 8.0)
    assert told["draft_length"] > 4
    assert 0.75 < told["ratio"] < 1.25  # make soak measures longer, on a box that is quiet
