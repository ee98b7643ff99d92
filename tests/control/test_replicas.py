"""Placement by rendezvous hashing: sticky, fair, moved by no more than what changed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from multispin.control.autoscale import Autoscaler, Scaling
from multispin.control.replicas import (
    NOWHERE,
    has_room,
    place,
    place_all,
    replica_seeds,
    room_of,
    session_key,
)

KEYS = np.random.default_rng(5).integers(0, 2**64, 20_000, np.uint64)


def names(num: int) -> list[str]:
    return [f"replica-{i}" for i in range(num)]


def homes(num: int) -> np.ndarray:
    return place_all(KEYS, replica_seeds(names(num)), np.full(num, len(KEYS)))


def test_every_replica_gets_its_share():
    """Binomial: each of 20 counts within 5 standard deviations, odds of a false failure 1.2e-5."""
    counts = np.bincount(homes(20), minlength=20)
    assert np.abs(counts - 1000).max() < 5 * np.sqrt(1000 * 0.95)


def test_a_new_replica_takes_its_share_and_moves_no_other():
    before, after = homes(10), homes(11)
    moved = before != after
    assert set(after[moved]) == {10}
    assert moved.mean() == pytest.approx(1 / 11, abs=0.01)  # 5 standard deviations


def test_a_replica_that_leaves_gives_up_its_own_and_no_others():
    seeds = replica_seeds(names(10))
    room = np.full(10, len(KEYS))
    before = place_all(KEYS, seeds, room)
    room[3] = 0
    after = place_all(KEYS, seeds, room)
    assert (before[before != after] == 3).all()
    assert not (after == 3).any()


@pytest.mark.parametrize("seed", range(20))
def test_all_at_once_is_one_after_the_other(seed):
    rng = np.random.default_rng(seed)
    num = int(rng.integers(1, 12))
    seeds = replica_seeds(names(num))
    keys = rng.integers(0, 2**64, int(rng.integers(0, 120)), np.uint64)
    room = rng.integers(0, 15, num)
    left, one_by_one = room.copy(), []
    for key in keys.tolist():
        one_by_one.append(place(key, seeds, left > 0))
        if one_by_one[-1] != NOWHERE:
            left[one_by_one[-1]] -= 1
    assert place_all(keys, seeds, room).tolist() == one_by_one


def test_who_finds_the_first_full_comes_back_when_there_is_room():
    seeds = replica_seeds(names(5))
    key = int(KEYS[0])
    first = place(key, seeds, np.ones(5, bool))
    others = np.arange(5) != first
    assert place(key, seeds, others) != first
    assert place(key, seeds, np.ones(5, bool)) == first
    assert place(key, seeds, np.zeros(5, bool)) == NOWHERE


def test_keys_tell_tenants_and_sessions_apart():
    assert session_key("a", b"Once upon") == session_key("a", b"Once upon")
    found = {session_key(tenant, text) for tenant in ("a", "b", "") for text in (b"x", b"y", b"")}
    assert len(found) == 9


def test_more_replicas_come_at_once_and_go_one_after_the_other():
    scaler = Autoscaler(Scaling(2, 50, tolerance=0.1, hold_s=60))
    assert scaler.wanted(0, 10, 1.05) == 10
    assert scaler.wanted(1, 10, 1.5) == 15
    assert scaler.wanted(2, 15, 9.0) == 50
    assert scaler.wanted(10, 50, 0.2) == 50
    assert scaler.wanted(60, 50, 0.9) == 50, "the load was not low all the time"
    assert scaler.wanted(70, 50, 0.2) == 50
    assert scaler.wanted(130, 50, 0.2) == 45
    assert scaler.wanted(131, 45, 0.22) == 45, "and only then the next"
    assert scaler.wanted(190, 45, 0.22) == 41


def test_scaling_down_does_not_make_the_others_too_full():
    scaler = Autoscaler(Scaling(1, 50, tolerance=0.1, hold_s=0))
    for num in range(1, 50):
        load = 0.79
        fewer = scaler.wanted(0, num, load)
        assert fewer * 0.9 >= num * load - 1e-9 or fewer == 1
        assert load * num / fewer <= 1.1


@given(st.lists(st.tuples(st.integers(0, 300), st.sampled_from([0, 0, 7, 64, 200])), min_size=1))
def test_room_is_bounded_by_what_others_have(replicas):
    """In whole numbers: n < m, and n < ceil(5 m sum(n) / (4 sum(m))) + 8, of those that serve."""
    num_sessions, max_sessions = np.array(replicas).T
    serving = [(n, m) for n, m in replicas if m > 0]
    held, places = sum(n for n, _ in serving), sum(m for _, m in serving)
    wanted = [m > 0 and n < m and n < -(-5 * m * held // (4 * places)) + 8 for n, m in replicas]
    found = has_room(num_sessions, max_sessions)
    assert found.tolist() == wanted
    assert found.any() == any(n < m for n, m in replicas)


@given(
    st.lists(st.tuples(st.integers(0, 300), st.sampled_from([0, 7, 64, 200])), min_size=1),
    st.integers(0, 500),
)
def test_who_comes_together_finds_room_as_far_as_there_are_places(replicas, num_more):
    num_sessions, max_sessions = np.array(replicas).T
    room = room_of(num_sessions, max_sessions, num_more)
    places = np.maximum(max_sessions - num_sessions, 0)
    assert (room >= 0).all() and (room <= places).all()
    assert room.sum() >= min(num_more, places.sum())


def test_one_key_for_all_fills_one_replica_no_further_than_the_bound():
    seeds, sizes, counts = replica_seeds(names(4)), np.full(4, 500), np.zeros(4, np.int64)
    for _ in range(1000):
        counts[place(int(KEYS[0]), seeds, has_room(counts, sizes))] += 1
    assert counts.max() <= 1.25 * 250 + 9
    assert counts.min() > 0


@pytest.mark.parametrize("num_keys", [150, 10_000])
@pytest.mark.parametrize("num", [1, 2, 3, 5, 8])
def test_bounded_load_moves_hardly_more_than_a_new_replica_takes(num_keys, num):
    """Sessions come one after the other, each of its own key, as in a directory."""
    before, after = (bounded_homes(num_keys, n) for n in (num, num + 1))
    moved = before != after
    assert moved.mean() <= 1 / (num + 1) + 0.05
    assert (after[moved] == num).mean() > 0.9, "nearly all of them to the new one"


def bounded_homes(num_keys: int, num: int) -> np.ndarray:
    seeds, sizes, counts = replica_seeds(names(num)), np.full(num, num_keys), np.zeros(num, int)
    found = []
    for key in KEYS[:num_keys].tolist():
        found.append(place(key, seeds, has_room(counts, sizes)))
        counts[found[-1]] += 1
    return np.array(found)
