"""Verdicts: what is accepted, what follows, and what is refused."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import multispin.acceptance as api
from multispin.acceptance import Context, Proposal, Verdict, certain, choose, propose, verify
from multispin.errors import BadInput, MultispinError
from multispin.types import SamplingParams

WARM = SamplingParams(temperature=0.8)
EMPTY = np.empty(0, dtype=np.int32)
HERE = Context(np.array([1, 2, 3], dtype=np.int32), 2)
PARAMS = [
    SamplingParams(),
    WARM,
    SamplingParams(temperature=0.8, top_p=0.9),
    SamplingParams(temperature=1.2, top_k=7, frequency_penalty=0.7, repetition_penalty=1.2),
]


def ids(*tokens: int) -> np.ndarray:
    return np.array(tokens, dtype=np.int32)


def logits(rows: int, size: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 2, (rows, size)).astype(np.float32)


def test_public_names():
    assert set(api.__all__) == {
        *("PROPOSAL_TOTAL", "Context", "Proposal", "Verdict"),
        *("certain", "choose", "propose", "verify"),
    }


def test_greedy_accepts_while_the_draft_is_the_argmax():
    rows = np.array([[0, 5, 5], [9, 0, 0], [0, 0, 1]], dtype=np.float32)
    for rule in ("greedy", "coupled", "rejection"):  # temperature 0 is greedy under every rule
        assert verify(rows, ids(1, 0), SamplingParams(), rule, 0, HERE) == Verdict(2, 2)
        assert verify(rows, ids(2, 0), SamplingParams(), rule, 0, HERE) == Verdict(0, 1)
        assert verify(rows, ids(1, 1), SamplingParams(), rule, 0, HERE) == Verdict(1, 0)
        assert choose(rows[0], SamplingParams(), rule, 0, HERE) == 1


def test_penalties_see_the_accepted_part_of_the_draft():
    params = SamplingParams(presence_penalty=2.0)
    rows = np.array([[3.0, 2.0], [3.0, 2.0], [3.0, 2.0]], dtype=np.float32)
    start = Context(EMPTY, 0)
    assert verify(rows.copy(), ids(0, 1), params, "greedy", 0, start) == Verdict(2, 0)
    assert verify(rows.copy(), ids(0, 0), params, "greedy", 0, start) == Verdict(1, 1)


@pytest.mark.parametrize("params", PARAMS)
@pytest.mark.parametrize("rule", ["coupled", "rejection"])
@pytest.mark.parametrize("size", [32, 5000])
def test_an_empty_draft_is_plain_sampling(params, rule, size):
    for seed in range(20):
        rows = logits(1, size, seed)
        chosen = choose(rows[0].copy(), params, rule, seed, HERE)
        assert verify(rows, EMPTY, params, rule, seed, HERE) == Verdict(0, chosen)


@pytest.mark.parametrize("params", PARAMS)
@pytest.mark.parametrize("size", [32, 151_936])
def test_neither_rows_nor_memory_layout_matter(params, size):
    rows = logits(4, size)
    own: list[int] = []
    for j in range(4):
        context = Context(np.append(HERE.tokens, np.array(own, dtype=np.int32)), 2)
        own.append(choose(rows[j].copy(), params, "coupled", 9, context))
    draft = ids(*own[:3])
    expected = Verdict(3, own[3])
    strided = np.zeros((4, size * 2), dtype=np.float32)[:, ::2]
    shifted = np.zeros(4 * size + 1, dtype=np.float32)[1:].reshape(4, size)
    fortran = np.zeros((4, size), dtype=np.float32, order="F")
    frozen = rows.copy()
    for layout in (strided, shifted, fortran):
        layout[:] = rows
        assert verify(layout, draft, params, "coupled", 9, HERE) == expected
    frozen.flags.writeable = False
    assert verify(frozen, draft, params, "coupled", 9, HERE) == expected
    assert verify(frozen, draft, params, "coupled", 9, HERE) == expected


def test_rows_after_the_first_rejection_are_not_looked_at():
    rows = logits(3, 16)
    rows[1:] = np.nan
    for params, rule in ((SamplingParams(), "greedy"), (WARM, "coupled"), (WARM, "rejection")):
        wrong = int(rows[0].argmin())
        proposals = [certain(wrong), certain(0)]
        assert verify(rows, ids(wrong, 0), params, rule, 3, HERE, proposals).num_accepted == 0
    with pytest.raises(MultispinError, match="finite"):
        verify(rows[1:2], EMPTY, SamplingParams(), "greedy", 3, HERE)


def next_row(context: np.ndarray, size: int, temper: float) -> np.ndarray:
    """A toy language model: logits are a hash of the last three tokens and of the position."""
    text = np.append(context[-3:], len(context)).astype(np.int64).tobytes()
    seed = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")
    return (np.random.default_rng(seed).normal(0, temper, size)).astype(np.float32)


def generate(params, seed, drafter, draft_length) -> list[int]:
    size, length = 50, 200
    tokens = ids(1, 2, 3)
    while len(tokens) < 3 + length:
        draft = EMPTY
        for _ in range(draft_length(len(tokens))):
            context = Context(np.append(tokens, draft), 3)
            draft = np.append(draft, np.int32(drafter(context)))
        rows = [next_row(np.append(tokens, draft[:j]), size, 2.0) for j in range(len(draft) + 1)]
        verdict = verify(np.array(rows), draft, params, "coupled", seed, Context(tokens, 3))
        accepted = draft[: verdict.num_accepted]
        tokens = np.concatenate((tokens, accepted, ids(verdict.token)))
    return tokens[: 3 + length].tolist()


@pytest.mark.parametrize("params", PARAMS)
def test_text_is_independent_of_drafter_and_draft_length(params):
    size, rule, seed = 50, "coupled", 77
    alone = generate(params, seed, None, lambda _: 0)
    own = lambda c: choose(next_row(c.tokens, size, 2.0), params, rule, seed, c)  # noqa: E731
    near = lambda c: choose(next_row(c.tokens, size, 2.1), params, rule, seed, c)  # noqa: E731
    least = lambda c: int(next_row(c.tokens, size, 2.0).argmin())  # noqa: E731
    odd = lambda c: (c.position * 7) % 53  # some ids lie outside the vocabulary  # noqa: E731
    for drafter in (own, near, least, odd):
        for draft_length in (lambda _: 1, lambda _: 4, lambda position: position % 6):
            text = generate(params, seed, drafter, draft_length)
            assert text == alone
    other = generate(params, seed + 1, None, lambda _: 0)
    assert (other == alone) == (params.temperature == 0.0)


@pytest.mark.parametrize("params", PARAMS)
def test_a_repeated_draft_gets_the_same_verdict(params):
    for seed in range(50):
        rows = logits(3, 40, seed)
        first, q0 = propose(rows[0].copy(), params, seed, HERE, 8)
        after = Context(np.append(HERE.tokens, np.int32(first)), 2)
        second, q1 = propose(rows[2].copy(), params, seed, after, 8)
        draft = ids(first, second)
        verdicts = {
            verify(rows.copy(), draft, params, "rejection", seed, HERE, [q0, q1]) for _ in range(3)
        }
        assert len(verdicts) == 1


def test_equal_distributions_are_always_accepted():
    """p = q to the last count: 2^16 divided among equals."""
    rows = np.zeros((2, 64), dtype=np.float32)
    for seed in range(300):
        token, proposal = propose(rows[0], WARM, seed, HERE, 64)
        assert (proposal.counts == 1024).all()
        assert verify(rows, ids(token), WARM, "rejection", seed, HERE, [proposal])[0] == 1


def test_an_impossible_draft_is_never_accepted_nor_corrected_to():
    for size in (16, 151_936):
        rows = np.full((2, size), -np.inf, dtype=np.float32)
        rows[:, :2] = 0.0
        for seed in range(40):
            q = [certain(size - 1)]
            verdict = verify(rows.copy(), ids(size - 1), WARM, "rejection", seed, HERE, q)
            assert verdict.num_accepted == 0
            assert verdict.token in (0, 1)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=40),
    st.integers(1, 50),
    st.integers(0, 2**64 - 1),
    st.sampled_from(PARAMS),
)
def test_proposals_are_distributions_that_drew_their_token(row, top_n, seed, params):
    row = np.array(row, dtype=np.float32)
    params_without_context = SamplingParams(
        temperature=params.temperature, top_k=params.top_k, top_p=params.top_p
    )
    token, (kept, counts) = propose(row, params_without_context, seed, HERE, top_n)
    assert token in kept
    assert kept.dtype == np.int32
    assert counts.dtype == np.uint32
    assert 1 <= kept.size <= top_n
    assert (np.diff(kept) > 0).all()
    assert counts.min() >= 1
    assert counts.sum() == 1 << 16


def test_proposals_follow_the_distribution_within_rounding():
    row = logits(1, 200)[0]
    _, (kept, counts) = propose(row, WARM, 0, HERE, 32)
    assert set(kept) == set(np.argsort(-row)[:32])
    p = np.exp(row[kept].astype(np.float64) / 0.8)
    np.testing.assert_allclose(counts / 65536, p / p.sum(), atol=33 / 65536)


BAD_PROPOSALS = {
    "draft not in it": Proposal(ids(1, 3), np.array([1, 65535], dtype=np.uint32)),
    "total too small": Proposal(ids(2), np.array([65535], dtype=np.uint32)),
    "total zero": Proposal(ids(2), np.array([0], dtype=np.uint32)),
    "total wraps": Proposal(ids(1, 2), np.array([2**32 - 1, 65537], dtype=np.uint32)),
    "a zero count": Proposal(ids(1, 2), np.array([0, 65536], dtype=np.uint32)),
    "id below": Proposal(ids(-1, 2), np.array([1, 65535], dtype=np.uint32)),
    "id above": Proposal(ids(2, 16), np.array([1, 65535], dtype=np.uint32)),
    "ids twice": Proposal(ids(2, 2), np.array([1, 65535], dtype=np.uint32)),
    "ids descend": Proposal(ids(3, 2), np.array([1, 65535], dtype=np.uint32)),
    "empty": Proposal(EMPTY, np.empty(0, dtype=np.uint32)),
    "lengths differ": Proposal(ids(1, 2), np.array([65536], dtype=np.uint32)),
}


@pytest.mark.parametrize("proposal", BAD_PROPOSALS.values(), ids=BAD_PROPOSALS.keys())
def test_malformed_proposals_are_refused(proposal):
    with pytest.raises(BadInput):
        verify(logits(2, 16), ids(2), WARM, "rejection", 0, HERE, [proposal])


def test_missing_proposals_rows_and_a_warm_greedy_are_refused():
    with pytest.raises(BadInput, match="proposals"):
        verify(logits(2, 16), ids(2), WARM, "rejection", 0, HERE)
    with pytest.raises(BadInput, match="draft"):
        verify(logits(2, 16), ids(2, 2), WARM, "coupled", 0, HERE)
    with pytest.raises(BadInput, match="temperature"):
        choose(logits(1, 16)[0], WARM, "greedy", 0, HERE)
    with pytest.raises(BadInput, match="top_n"):
        propose(logits(1, 16)[0], WARM, 0, HERE, 0)
