"""Link budgets: the mean, and draws of line of sight and shadowing by their distribution."""

from __future__ import annotations

import numpy as np
import pytest

from multispin.radio.link import LinkBudget

NUM = 100_000


def budget(los_probability: float, shadowing_db: tuple[float, float]) -> LinkBudget:
    """NUM equal devices with 100 dB Hz in line of sight and 80 out of it."""
    return LinkBudget(
        power_to_noise_db=np.repeat([[100.0], [80.0]], NUM, axis=1),
        shadowing_db=np.repeat([[shadowing_db[0]], [shadowing_db[1]]], NUM, axis=1),
        los_probability=np.full(NUM, los_probability),
    )


def test_nothing_left_to_chance():
    for certain, value in ((1.0, 100.0), (0.0, 80.0)):
        link = budget(certain, (0.0, 0.0))
        assert not link.is_random
        assert (link.mean_db() == value).all()
        assert (link.drawn_db(np.random.default_rng(0)) == value).all()


def test_draws_follow_the_distribution():
    """Five standard errors each: a sound generator fails one of the six in 300,000 seeds."""
    link = budget(0.3, (4.0, 7.82))
    assert link.is_random and budget(0.3, (0.0, 0.0)).is_random and budget(1.0, (4, 4)).is_random
    assert link.mean_db() == pytest.approx(np.full(NUM, 86.0))
    drawn = link.drawn_db(np.random.default_rng(1))
    variance = 0.3 * 4.0**2 + 0.7 * 7.82**2 + 0.3 * 0.7 * 20.0**2
    assert drawn.mean() == pytest.approx(86.0, abs=5 * np.sqrt(variance / NUM))
    # apart from each other, with hardly any shadowing
    narrow = budget(0.3, (0.1, 0.4)).drawn_db(np.random.default_rng(2))
    is_los = narrow > 90
    assert is_los.mean() == pytest.approx(0.3, abs=5 * np.sqrt(0.3 * 0.7 / NUM))
    for part, median, std in ((narrow[is_los], 100.0, 0.1), (narrow[~is_los], 80.0, 0.4)):
        assert part.mean() == pytest.approx(median, abs=5 * std / np.sqrt(part.size))
        assert part.std() == pytest.approx(std, abs=5 * std / np.sqrt(2 * part.size))
