"""How far a server is behind, as its watchers are told."""

from __future__ import annotations

import pytest

from multispin.core.batch import BatchLimits
from tests.core.harness import (
    ONE_BY_ONE,
    PROMPT,
    Writer,
    new_drafter,
    new_engine,
    new_server,
    request,
)
from tests.core.test_resume import MODES


def test_rows_wait_that_were_there_and_were_left_out() -> None:
    harness = new_server(new_engine(2), batch=ONE_BY_ONE)
    core = harness.core
    for number in range(4):
        harness.open(request(number, draft_length=0, max_tokens=5))
    assert core.num_rows_waiting == 0  # for nobody has looked at them yet
    batch = core.next_batch()
    assert batch is not None
    waiting = core.num_rows_waiting
    in_batch = sum(work.num_rows for work in batch.works)
    prompts = 4 * len(harness.engine.tokenize(PROMPT, parse_special=False))
    assert waiting == prompts - in_batch > 0
    harness.open(request(9, draft_length=0))
    assert core.num_rows_waiting == waiting  # it came after the pass had begun
    harness.complete(harness.engine.step(batch))
    while harness.step():
        pass
    assert core.num_rows_waiting == core.num_sessions == 0


def test_of_a_prompt_that_is_read_in_parts_the_rest_waits() -> None:
    harness = new_server(new_engine(1), batch=BatchLimits(max_rows=8, mode="stop-and-wait"))
    harness.open(request(0, draft_length=0))
    batch = harness.core.next_batch()
    assert batch is not None
    read = sum(work.num_rows for work in batch.works)
    whole = len(harness.engine.tokenize(PROMPT, parse_special=False))
    assert harness.core.num_rows_waiting == whole - read > 0


@pytest.mark.parametrize("limits", MODES.values(), ids=MODES)
def test_who_waits_for_devices_is_not_behind(limits: BatchLimits) -> None:
    harness = new_server(new_engine(4), batch=limits)
    for number in range(3):
        harness.open(request(number))
    for step in range(40):
        batch = harness.core.next_batch()
        assert harness.core.num_rows_waiting == 0 or step < 10  # while prompts are read
        if batch is not None:
            harness.complete(harness.engine.step(batch))


def test_verdicts_are_timed_from_what_made_them_possible() -> None:
    harness = new_server(new_engine(1), batch=ONE_BY_ONE)
    harness.open(request(0, draft_length=0, max_tokens=6))
    clock = harness.core._clock
    while (batch := harness.core.next_batch()) is not None:
        clock.now += 2.0
        harness.complete(harness.engine.step(batch))
    counters = harness.core.counters
    assert counters.num_verdicts == counters.num_committed_tokens == 6
    assert counters.verdict_s == pytest.approx(6 * 2.0, rel=0.05)


def test_who_is_first_at_the_barrier_waits_for_devices() -> None:
    harness = new_server(new_engine(4), batch=BatchLimits(mode="rounds"))
    writers = [Writer(harness, request(i), new_drafter("same"), str(i)) for i in range(3)]
    while harness.step():  # their prompts are read
        pass
    writers[0].act()
    assert harness.core.next_batch() is None
    assert harness.core.num_rows_waiting == 0
