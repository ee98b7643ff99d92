"""Prefixes are computed once, and what sessions leave behind is used again."""

import random

import numpy as np

from multispin.core.batch import BatchLimits
from multispin.core.caches import MIN_SHARED, Caches
from multispin.core.engine import Copy, Engine, emptied
from multispin.lm.base import Rows
from multispin.lm.ngram import NgramModel
from multispin.lm.prefix import num_common
from multispin.types import Logits
from tests.core.harness import (
    PROMPT,
    FakeClock,
    Harness,
    Writer,
    new_drafter,
    new_server,
    request,
    run,
)
from tests.core.test_server import alone

LONG = PROMPT * 6


def tokens(*ids: int) -> np.ndarray:
    return np.array(ids, np.int32)


class CountingModel(NgramModel):
    num_rows = 0

    def forward(self, rows: Rows) -> Logits:
        self.num_rows += len(rows.token)
        return super().forward(rows)


def counting_server(num_sequences: int, **limits: object) -> tuple[Harness, CountingModel]:
    model = CountingModel.from_text(num_sequences=num_sequences, context_length=1024)
    engine = Engine(model, max_rows=64, reproducible=True, clock=FakeClock())
    return new_server(engine, **limits), model


def test_num_common() -> None:
    assert num_common(tokens(), tokens(1)) == 0
    assert num_common(tokens(1, 2, 3), tokens(1, 2)) == 2
    assert num_common(tokens(1, 2, 3), tokens(1, 9, 3)) == 1
    assert num_common(tokens(5), tokens(6)) == 0


def test_a_prompt_that_others_share_is_computed_once() -> None:
    harness, model = counting_server(8)
    writers = [
        Writer(harness, request(i, LONG + str(i), max_tokens=4), new_drafter("none"), str(i))
        for i in range(8)
    ]
    run(harness, writers)
    for writer in writers:
        assert writer.session.committed == alone(writer.session.request)
    # The prompt once, and for each session what follows it, short of the common part's last rows.
    assert model.num_rows < len(LONG) + 8 * (MIN_SHARED + 8)


def test_the_next_turn_of_a_chat_goes_on_from_the_last_ones_cache() -> None:
    harness, model = counting_server(2)
    first = Writer(harness, request(0, LONG, max_tokens=20), new_drafter("weaker"), "a")
    run(harness, [first])
    before = model.num_rows
    history = LONG + first.text + " And now? "
    second = Writer(harness, request(1, history, max_tokens=5), new_drafter("none"), "a")
    run(harness, [second])
    assert second.session.committed == alone(second.session.request)
    assert model.num_rows - before < 20 + len(" And now? ")


def test_what_ended_sessions_left_makes_room_for_others() -> None:
    harness, _ = counting_server(2)
    rng = random.Random(1)
    for index in range(12):
        prompt = rng.choice(["red ", "green ", "blue "]) * 12
        writer = Writer(harness, request(index, prompt, max_tokens=6), new_drafter("weaker"), "a")
        run(harness, [writer])
        assert writer.session.committed == alone(writer.session.request)
    assert harness.core.num_sessions == 0


def test_many_sessions_over_few_sequences_and_crashes_write_what_they_should() -> None:
    for seed in range(20):
        rng = random.Random(seed)
        harness, _ = counting_server(3, batch=BatchLimits(mode="stop-and-wait", max_rows=24))
        writers = [
            Writer(
                harness,
                request(i, PROMPT * rng.randint(1, 4), max_tokens=12, draft_length=3, seed=i),
                new_drafter(rng.choice(["none", "weaker", "same"])),
                str(i),
            )
            for i in range(9)
        ]
        by_key = {(w.link, w.session.request.session): w for w in writers}
        while not all(w.session.finish for w in writers):
            for writer in writers:
                if rng.random() < 0.5:
                    writer.act()
            sound = not any(s.num_crashes for s in harness.core._sessions.values())
            if sound and rng.random() < 0.05 and harness.core.next_batch() is not None:
                harness.engine = Engine(
                    NgramModel.from_text(num_sequences=3, context_length=1024), max_rows=64
                )
                harness.core.engine_lost()
                continue
            for link, frame in harness.step() or []:
                by_key[link, frame.session].take(frame)
        for writer in writers:
            assert writer.session.committed == alone(writer.session.request)


def test_an_idle_session_gives_up_its_sequence_and_comes_back() -> None:
    harness, model = counting_server(1)
    idle = Writer(harness, request(0, LONG, max_tokens=8), new_drafter("weaker"), "idle")
    while harness.step() is not None:  # its prompt is read; it owes a draft and sends none
        pass
    other = Writer(harness, request(1, "Somebody else, " * 3, max_tokens=8), None, "other")
    assert harness.step() is None
    assert 0 < (harness.core.wait_s() or 0) <= 5
    harness.core._clock.now += 6  # type: ignore[attr-defined]
    run(harness, [other])
    before = model.num_rows
    run(harness, [idle])
    assert idle.session.committed == alone(idle.session.request)
    assert other.session.committed == alone(other.session.request)
    assert model.num_rows - before > len(LONG)  # fed anew


def test_sequences_are_assigned_by_what_they_hold() -> None:
    caches = Caches(3)
    text = np.arange(100, dtype=np.int32)
    assert caches.assign(text, {}, "us") == (0, 0)
    # A copy of what runs.
    assert caches.assign(text[:60], {0: text[:50]}, "us") == (1, 50)
    assert caches.take_copies() == [Copy(0, 1, 50)]
    caches.release(0, text[:90])
    # Taken over by the one that goes on, cut at the first difference.
    other = text.copy()
    other[80:] = 7
    assert caches.assign(other, {1: text[:50]}, "us") == (0, 80)
    assert caches.take_copies() == [Copy(0, 0, 80)]
    # A short beginning of what was left is copied while there is room.
    caches.release(0, other)
    assert caches.assign(text[:20], {1: text[:50]}, "us") == (2, 19)
    assert caches.take_copies() == [Copy(0, 2, 19)]
    # The longest unused makes room.
    caches.release(2, text[:19])
    assert caches.assign(np.full(30, 9, np.int32), {}, "us") == (0, 0)
    assert caches.take_copies() == [emptied(0)]
    assert caches.assign(np.full(30, 8, np.int32), {}, "us") == (2, 0)
    assert caches.assign(np.full(30, 8, np.int32), {2: tokens()}, "us") is None
    # Whatever is short is not worth keeping.
    caches.take_copies()
    caches.release(0, text[:3])
    assert caches.take_copies() == [emptied(0)]
