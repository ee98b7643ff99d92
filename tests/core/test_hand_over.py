"""A server that drains hands sessions over at any moment: their texts are what they would be."""

from __future__ import annotations

import random

import pytest

from multispin.core.batch import BatchLimits
from multispin.core.engine import Batch
from multispin.wire.frames import Redirect, Verdict
from tests.core.harness import Harness, new_engine, new_server, request
from tests.core.test_resume import MODES
from tests.core.test_server import alone
from tests.core.test_window import drafter
from tests.core.travel import Traveller


class Server:
    """One of two, whose passes take time."""

    def __init__(self, limits: BatchLimits) -> None:
        self.harness: Harness = new_server(new_engine(3), batch=limits)
        self.batch: Batch | None = None
        self.travellers: dict[str, Traveller] = {}  # by link

    def go_on(self) -> None:
        """Begin a pass, or end it: verdicts are sent before anything else happens."""
        if self.batch is None:
            self.batch = self.harness.core.next_batch()
            return
        result, self.batch = self.harness.engine.step(self.batch), None
        for link, frame in self.harness.complete(result):
            assert isinstance(frame, Verdict), frame
            self.travellers[link].down.append(frame)

    def is_empty(self) -> None:
        if self.batch is not None:
            self.go_on()
        core = self.harness.core
        assert (core.num_sessions, core.num_detached, core.counters.num_errors) == (0, 0, 0)

    def take(self, traveller: Traveller) -> None:
        traveller.open(self.harness)
        assert traveller.link is not None
        self.travellers[traveller.link] = traveller

    def drain(self) -> None:
        """One more goes."""
        core = self.harness.core
        core.refuse_new(1.0)
        for key in core.open_sessions[:1]:
            for link, frame in core.hand_over(key, "directory"):
                self.travellers[link].down.append(frame)


def drained(travellers: list[Traveller], rng: random.Random, limits: BatchLimits) -> int:
    """How many changed servers: from somewhere in their texts on."""
    first, other = Server(limits), Server(limits)
    at = {traveller.name: first for traveller in travellers}
    for traveller in travellers:
        first.take(traveller)
    num_moved = 0
    for step in range(100_000):
        if all(traveller.finish for traveller in travellers):
            break
        if step > 150 and rng.random() < 0.05:
            first.drain()
        traveller = rng.choice([traveller for traveller in travellers if not traveller.finish])
        match rng.randrange(6):
            case 0 | 1:
                traveller.draft(rng.randint(1, 8))
            case 2:
                traveller.deliver_up(at[traveller.name].harness)
            case 3 if traveller.down and isinstance(traveller.down[0], Redirect):
                traveller.lose()
                at[traveller.name] = other
                other.take(traveller)
                num_moved += 1
            case 3:
                traveller.deliver_down()
            case 4:
                first.go_on()
            case 5:
                other.go_on()
    else:
        raise AssertionError("the texts do not end")
    for server in (first, other):
        server.is_empty()
    return num_moved


@pytest.mark.parametrize("limits", MODES.values(), ids=MODES)
def test_no_token_is_lost_or_doubled(limits: BatchLimits) -> None:
    num_moved = 0
    for seed in range(4):
        kinds = ("none", "lookup", "weaker", "same", "storm")
        travellers = [
            Traveller(
                kind,
                request(max_tokens=60, seed=seed, draft_length=8),
                drafter(kind),
            )
            for kind in kinds
        ]
        num_moved += drained(travellers, random.Random(seed), limits)
        for traveller in travellers:
            assert traveller.committed == alone(traveller.request)
            assert traveller.text == bytes(traveller.committed).decode(errors="replace")
    assert num_moved > 10
