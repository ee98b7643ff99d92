"""Committed text is distributed exactly as the target's own, whoever drafts.

Each test makes a million draws, one per seed, through the public functions, and compares them with
known probabilities over k <= 32 outcomes in two ways, both exact for finite samples:

* Total variation. P(TV(empirical, p) >= tau) <= 2^k exp(-2 N tau^2) (Weissman et al. 2003), with
  tau such that this is ``ALPHA`` = 1e-8. For k = 32, N = 10^6: tau = 0.0045, so a rule that is off
  by a total variation of 2 tau = 0.009 fails with probability above 1 - 1e-8.
* Every outcome's count against its binomial distribution, Bonferroni over outcomes, ``ALPHA`` in
  all. Catches, with odds above 1 - 1e-8, one outcome off by about 12 sqrt(p / N): 0.0022 at
  p = 1/32; and an outcome of probability 0 that ever occurs.

At most 4 comparisons per test and 5 tests: a correct rule fails this file with odds below 4e-7.
Mutants that these tests were seen to catch: residual not subtracted, always accept, acceptance by
min(1, q / p), one stream for draft and acceptance, bonus from the row before, noise of a draft's
first position for all its positions, position ignored, group minima too large, too small or
without an owner.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import msgspec
import numpy as np
import pytest
from acceptance_reference import naive_distribution
from scipy import stats

from multispin.acceptance import Context, Proposal, certain, choose, propose, verify
from multispin.acceptance.noise import Stream, uniform_bits
from multispin.types import SamplingParams

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

DRAWS = 1_000_000
ALPHA = 1e-8
SIDE = 3  # vocabulary of the joint tests: 27 sequences of three tokens
PLAIN = SamplingParams(temperature=0.8)
# Two targets, so that every option has an effect (a test below checks that).
TOP_SHAPED = SamplingParams(
    temperature=1.5,
    top_k=14,
    top_p=0.92,
    repetition_penalty=1.3,
    presence_penalty=0.4,
    logit_bias={29: 0.5},
)
MIN_SHAPED = SamplingParams(
    temperature=1.5, min_p=0.1, repetition_penalty=1.5, logit_bias={29: 0.5}
)
PROMPT, OUTPUT = [9, 21, 21, 3], [0, 18, 0]  # among them the most likely tokens

Drafter = Callable[[int, tuple[int, ...]], tuple[int, Proposal | None]]


def assert_law(counts: np.ndarray, p: np.ndarray, what: str) -> None:
    n, k = int(counts.sum()), p.size
    assert k <= 32
    tau = math.sqrt((k * math.log(2) - math.log(ALPHA)) / (2 * n))
    distance = float(np.abs(counts / n - p).sum()) / 2
    assert distance < tau, f"{what}: total variation {distance:.5f}, at most {tau:.5f} by chance"
    tail = np.minimum(stats.binom.cdf(counts, n, p), stats.binom.sf(counts - 1, n, p))
    worst = int(tail.argmin())
    assert tail[worst] > ALPHA / (2 * k), (
        f"{what}: outcome {worst} came {counts[worst]} times, {n * p[worst]:.1f} expected"
    )


# One row per prefix of up to two tokens: (), (a,), (a, b).
ROWS = np.random.default_rng(1).normal(0.0, 1.2, (1 + SIDE + SIDE**2, SIDE)).astype(np.float32)
GOOD = ROWS + np.random.default_rng(2).normal(0.0, 0.5, ROWS.shape).astype(np.float32)
FIVE_BEFORE = [Context(np.zeros(5 + n, dtype=np.int32), 5) for n in range(3)]


def row_of(prefix: Sequence[int]) -> int:
    if not prefix:
        return 0
    return 1 + prefix[0] if len(prefix) == 1 else 1 + SIDE + SIDE * prefix[0] + prefix[1]


def sequence_law() -> np.ndarray:
    p = np.array([naive_distribution(row, PLAIN) for row in ROWS])
    law = np.empty((SIDE,) * 3)
    for a in range(SIDE):
        for b in range(SIDE):
            law[a, b] = p[0][a] * p[row_of((a,))][b] * p[row_of((a, b))]
    return law


def write_three(seed: int, rule, drafter: Drafter) -> list[int]:
    """Three tokens, in rounds that draft all but the last of those missing."""
    out: list[int] = []
    while len(out) < 3:
        draft: list[int] = []
        proposals = []
        for _ in range(2 - len(out)):
            token, proposal = drafter(seed, (*out, *draft))
            draft.append(token)
            proposals.append(proposal)
        rows = [row_of((*out, *draft[:j])) for j in range(len(draft) + 1)]
        verdict = verify(
            ROWS[rows],
            np.array(draft, dtype=np.int32),
            PLAIN,
            rule,
            seed,
            FIVE_BEFORE[len(out)],
            proposals if rule == "rejection" else None,
        )
        out += [*draft[: verdict.num_accepted], verdict.token]
    return out


def check_sequences(rule, drafter: Drafter, draws: int = DRAWS) -> None:
    counts = np.zeros(SIDE**3, dtype=np.int64)
    for seed in range(draws):
        a, b, c = write_three(seed, rule, drafter)
        counts[(a * SIDE + b) * SIDE + c] += 1
    law = sequence_law()
    assert_law(counts.reshape(law.shape).sum((1, 2)), law.sum((1, 2)), "first token")
    assert_law(counts, law.ravel(), "three tokens")


def test_coupled_sequences(draws: int = DRAWS):
    """First position: the least likely token. Second: a drafter that knows the noise and takes
    the server's very token for every other seed, another one for the rest."""
    least = [int(row.argmin()) for row in ROWS]

    def drafter(seed: int, prefix: tuple[int, ...]) -> tuple[int, None]:
        row = row_of(prefix)
        if not prefix:
            return least[row], None
        if seed % 2:
            return (seed // 2) % SIDE, None
        return choose(ROWS[row], PLAIN, "coupled", seed, FIVE_BEFORE[len(prefix)]), None

    check_sequences("coupled", drafter, draws)


def drawn_by(numbers: np.ndarray, proposal: Proposal, seed: int) -> tuple[int, Proposal]:
    """A token drawn from a proposal by other random bits than the product's."""
    index = proposal.counts.cumsum().searchsorted(numbers[seed], side="right")
    return int(proposal.ids[index]), proposal


def test_rejection_sequences(draws: int = DRAWS):
    """Even seeds: a good drafter throughout. Odd seeds: the most likely token for certain; where
    that was accepted, next a drafter that prefers what the target shuns; after a correction
    q = p."""
    numbers = np.random.default_rng(4).integers(0, 1 << 16, draws)
    certain_of = {i: (i, certain(i)) for i in range(SIDE)}
    shunned = [propose(-row, PLAIN, 0, FIVE_BEFORE[0], 2)[1] for row in ROWS]
    same = [propose(row, PLAIN, 0, FIVE_BEFORE[0], SIDE)[1] for row in ROWS]
    likely = int(ROWS[0].argmax())

    def drafter(seed: int, prefix: tuple[int, ...]) -> tuple[int, Proposal]:
        row = row_of(prefix)
        if seed % 2 == 0:
            return propose(GOOD[row], PLAIN, seed, FIVE_BEFORE[len(prefix)], SIDE)
        if not prefix:
            return certain_of[likely]
        return drawn_by(numbers, (shunned if prefix[0] == likely else same)[row], seed)

    check_sequences("rejection", drafter, draws)


# Fixed contexts of one token with 32 outcomes; the draft has one token.
TARGET = np.random.default_rng(3).normal(0.0, 1.5, 32).astype(np.float32)
WRITTEN = Context(np.array(PROMPT + OUTPUT, dtype=np.int32), len(PROMPT))


def check_token(params: SamplingParams, rule, drafter, draws: int) -> None:
    law = naive_distribution(TARGET, params, WRITTEN.tokens, WRITTEN.num_prompt)
    pair = np.array([TARGET, -TARGET])
    counts = np.zeros(32, dtype=np.int64)
    for seed in range(draws):
        token, proposal = drafter(seed)
        draft = np.array([token], dtype=np.int32)
        proposals = [proposal] if rule == "rejection" else None
        verdict = verify(pair.copy(), draft, params, rule, seed, WRITTEN, proposals)
        counts[token if verdict.num_accepted else verdict.token] += 1
    assert_law(counts, law, "token")


@pytest.mark.parametrize("params", [TOP_SHAPED, MIN_SHAPED])
def test_every_option_shapes_the_law(params):
    law = naive_distribution(TARGET, params, WRITTEN.tokens, WRITTEN.num_prompt)
    for option in SamplingParams.__struct_fields__:
        off = getattr(SamplingParams(), option)
        if option != "temperature" and getattr(params, option) != off:
            without = msgspec.structs.replace(params, **{option: off})
            other = naive_distribution(TARGET, without, WRITTEN.tokens, WRITTEN.num_prompt)
            assert np.abs(law - other).sum() / 2 > 0.015, option


def test_coupled_truncated_and_penalised(draws: int = DRAWS):
    check_token(TOP_SHAPED, "coupled", lambda seed: (seed % 32, None), draws)


def test_rejection_where_the_target_has_nothing(draws: int = DRAWS):
    """Target truncated and penalised; seven eighths of q on tokens that truncation dropped."""
    law = naive_distribution(TARGET, MIN_SHAPED, WRITTEN.tokens, WRITTEN.num_prompt)
    assert 0 < np.count_nonzero(law) < 24
    weights = np.where(law == 0.0, 7.0 / np.count_nonzero(law == 0), 1.0 / np.count_nonzero(law))
    logits = np.log(weights).astype(np.float32)
    numbers = np.random.default_rng(5).integers(0, 1 << 16, draws)
    _, proposal = propose(logits, SamplingParams(temperature=1.0), 0, WRITTEN, 32)
    check_token(MIN_SHAPED, "rejection", lambda seed: drawn_by(numbers, proposal, seed), draws)


def test_rejection_of_certain_drafts_that_know_their_noise(draws: int = DRAWS):
    """A deterministic drafter may pick its token by the noise of its own stream: what the DRAFT
    stream drew from a reversed distribution, or the least likely token of all."""
    certain_of = [certain(i) for i in range(32)]
    least = int(TARGET.argmin())
    drawn = stats.rv_discrete(values=(np.arange(32), naive_distribution(-TARGET, PLAIN)))
    borders = drawn.cdf(np.arange(32))

    def drafter(seed: int) -> tuple[int, Proposal]:
        if seed % 4 == 0:
            return least, certain_of[least]
        bits = uniform_bits(seed, WRITTEN.position, Stream.DRAFT)
        token = min(int(borders.searchsorted(bits / 2**64)), 31)
        return token, certain_of[token]

    check_token(PLAIN, "rejection", drafter, draws)
