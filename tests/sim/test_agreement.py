"""Where drafter and target agree: against a plain walk, the definitions, and a real record."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from multispin.cell import AcceptanceModel
from multispin.core.replay import follow
from multispin.errors import BadInput
from multispin.lm.record import write_record
from multispin.sim.agreement import Agreements
from tests.recording import ids, small_record

IID = AcceptanceModel()
LONGEST = 25


def beta(std: float) -> AcceptanceModel:
    return AcceptanceModel(kind="beta", std=std)


def markov(correlation: float) -> AcceptanceModel:
    return AcceptanceModel(kind="markov", correlation=correlation)


def agreements(models, acceptance, answer_tokens=64, seed=0) -> Agreements:
    lengths = np.broadcast_to(np.asarray(answer_tokens), len(models))
    rng = np.random.default_rng(seed)
    return Agreements(models, np.array(acceptance), lengths, LONGEST, rng)


def test_accepted_is_a_walk_along_the_bits_of_one_answer_after_the_other() -> None:
    models = [IID, beta(0.3), markov(0.6), markov(-0.2), IID, IID]
    acceptance = [0.7, 0.5, 0.8, 0.7, 0.0, 1.0]
    answer_tokens = [40, 7, 100, 33, 1, 12]
    walked = agreements(models, acceptance, answer_tokens)
    told = agreements(models, acceptance, answer_tokens)
    bits, place = [np.empty(0, bool)] * 6, [np.inf] * 6
    rng = np.random.default_rng(1)
    for _ in range(300):
        lengths = rng.integers(0, LONGEST + 1, 6)
        accepted = walked.accepted(lengths)
        for k in range(6):
            if place[k] >= answer_tokens[k]:
                bits[k], place[k] = told.agreement_path(k, answer_tokens[k] + LONGEST), 0
            expected = 0
            while expected < lengths[k] and bits[k][place[k] + expected]:
                expected += 1
            assert accepted[k] == expected
            place[k] += expected + 1


def test_a_devices_texts_do_not_depend_on_what_anybody_drafts() -> None:
    def seen_bits(lengths: list[int]) -> list[dict[int, bool]]:
        """What the first device's verdicts tell of its first four answers of 50 tokens."""
        source = agreements([IID, IID], [0.6, 0.6], answer_tokens=[50, 20], seed=3)
        answers: list[dict[int, bool]] = [{}]
        place = 0
        while len(answers) < 5:
            accepted = int(source.accepted(np.array(lengths))[0])
            answers[-1].update((place + i, True) for i in range(accepted))
            if accepted < lengths[0]:
                answers[-1][place + accepted] = False
            place += accepted + 1
            if place >= 50:
                answers.append({})
                place = 0
        return answers[:4]

    for short, long in zip(seen_bits([1, 0]), seen_bits([25, 13]), strict=True):
        both = short.keys() & long.keys()
        assert len(both) > 20 and all(short[place] == long[place] for place in both)


def test_iid_acceptance_is_geometric_through_the_ends_of_answers() -> None:
    """Chi-square over 0..6 accepted, answers of 9 tokens: fails by chance once in a million."""
    alpha, longest, num = 0.7, 6, 40_000
    source = agreements([IID] * 4, [alpha] * 4, answer_tokens=9)
    counts = np.bincount(
        np.concatenate([source.accepted(np.full(4, longest)) for _ in range(num // 4)])
    )
    chance = alpha ** np.arange(longest + 1) * np.append(np.full(longest, 1 - alpha), 1.0)
    assert stats.chisquare(counts, num * chance).pvalue > 1e-6


def test_beta_has_its_mean_and_deviation_over_answers_and_is_iid_within() -> None:
    """Within 5 standard errors each (once in 3e5, all three), 40,000 answers of 50 tokens."""
    mean, std, num, length = 0.74, 0.31, 40_000, 50
    source = agreements([beta(std)], [mean])
    bits = np.array([source.agreement_path(0, length) for _ in range(num)])
    shares = bits.mean(axis=1)
    assert abs(shares.mean() - mean) < 5 * shares.std() / num**0.5
    # Var = std^2 + E[alpha (1 - alpha)] / n
    squares = (shares - mean) ** 2
    expected = std**2 + (mean * (1 - mean) - std**2) / length
    assert abs(squares.mean() - expected) < 5 * squares.std() / num**0.5
    product = (bits[:, 1:] * bits[:, :-1]).mean(axis=1)  # E[alpha^2]
    assert abs(product.mean() - (mean**2 + std**2)) < 5 * product.std() / num**0.5


@pytest.mark.parametrize("correlation", [-0.2, 0.0, 0.4, 0.9])
def test_markov_has_its_transitions_and_starts_stationary(correlation: float) -> None:
    """Three shares of a million bits or so within 5 standard errors: once in 5e5 by chance."""
    mean, num, length = 0.8, 20_000, 50
    source = agreements([markov(correlation)], [mean])
    bits = np.array([source.agreement_path(0, length) for _ in range(num)])
    after_0 = mean * (1 - correlation)
    before, after = bits[:, :-1], bits[:, 1:]
    for sample, chance in (
        (bits[:, 0], mean),
        (after[~before], after_0),
        (after[before], after_0 + correlation),
    ):
        error = (chance * (1 - chance) / sample.size) ** 0.5
        assert abs(sample.mean() - chance) < 5 * error
    assert (after_0 == mean) == (correlation == 0)


def test_replay_accepts_what_the_recorded_drafts_would_be_accepted_for(tmp_path: Path) -> None:
    record = small_record()
    write_record(tmp_path / "small.record", record)
    model = AcceptanceModel(kind="replay", record=str(tmp_path / "small.record"))
    num_tokens = len(record.texts[0].path) // 4
    source = agreements([model], [0.5], answer_tokens=num_tokens - LONGEST)
    length, met = record.depth, set()
    for _ in range(200):
        found = []
        place = 0
        while place < num_tokens - LONGEST:
            found.append(int(source.accepted(np.array([length]))[0]))
            place += found[-1] + 1
        texts = [_recorded_walk(text, record.depth, num_tokens - LONGEST) for text in record.texts]
        assert found in texts
        met.add(texts.index(found))
    assert len(met) == len(record.texts)


def _recorded_walk(text, depth: int, until: int) -> list[int]:
    """What ``core.replay`` accepts of the drafts that were recorded, each of several tokens."""
    drafts = ids(text.drafts).reshape(-1, depth)
    accepted, place = [], 0
    while place < until:
        equal, _ = follow(drafts[place].astype("<i4").tobytes(), text.path[4 * place :])
        accepted.append(equal)
        place += equal + 1
    return accepted


def test_a_recorded_text_that_is_too_short_is_followed_by_another(tmp_path: Path) -> None:
    record = small_record()
    write_record(tmp_path / "small.record", record)
    model = AcceptanceModel(kind="replay", record=str(tmp_path / "small.record"))
    path = agreements([model], [0.5]).agreement_path(0, 1000)
    assert len(path) == 1000
    assert path.mean() == pytest.approx(record.agreement, abs=0.1)


def test_what_would_not_fit_into_memory_is_refused() -> None:
    with pytest.raises(BadInput, match="answer_tokens"):
        agreements([IID] * 1000, [0.5] * 1000, answer_tokens=1_000_000)
