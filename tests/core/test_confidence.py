import numpy as np

from multispin.core.confidence import NUM_LEVELS, Calibration, level_of, survivals


def test_levels_rise_with_confidence_and_resolve_what_is_nearly_certain() -> None:
    confidences = np.array([0.0, 0.49, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999, 1.0], np.float32)
    assert level_of(confidences).tolist() == [0, 0, 1, 2, 3, 4, 6, 7, 7]
    assert level_of(np.empty(0, np.float32)).tolist() == []


def test_claims_count_until_verdicts_are_known() -> None:
    calibration = Calibration()
    assert np.all(np.diff(calibration.acceptance) > 0)
    levels = np.array([7, 3, 0], np.uint8)
    found = survivals([calibration], levels, np.array([3]))
    assert np.allclose(found, np.cumprod(calibration.acceptance[levels]))


def test_survivals_of_many_sessions_are_those_of_each() -> None:
    rng = np.random.default_rng(5)
    calibrations = [Calibration() for _ in range(6)]
    for calibration in calibrations:
        calibration.acceptance[:] = rng.uniform(0.01, 0.99, NUM_LEVELS)
    drafted = [rng.integers(0, NUM_LEVELS, n).astype(np.uint8) for n in (3, 0, 1, 7, 0, 2)]
    found = survivals(calibrations, np.concatenate(drafted), np.array([3, 0, 1, 7, 0, 2]))
    pairs = zip(calibrations, drafted, strict=True)
    assert np.allclose(found, np.concatenate([np.cumprod(c.acceptance[d]) for c, d in pairs]))


def test_each_level_learns_what_its_tokens_are_worth() -> None:
    rng = np.random.default_rng(3)
    truth = np.array([0.1, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.95])
    calibration = Calibration()
    for _ in range(4000):
        levels = rng.integers(0, NUM_LEVELS, 6).astype(np.uint8)
        accepted = rng.random(6) < truth[levels]
        calibration.observe(levels, 6 if accepted.all() else int(accepted.argmin()))
    # Effective sample of about 92 tokens and a prior of 4: six standard deviations and the prior.
    assert np.abs(calibration.acceptance - truth).max() < 6 * 0.5 / np.sqrt(92) + 4 / 96


def test_a_device_that_claims_too_much_is_soon_believed_no_more() -> None:
    calibration = Calibration()
    for _ in range(12):
        calibration.observe(np.full(8, 7, np.uint8), 0)
    assert calibration.acceptance[7] < 0.3


def test_what_stands_behind_a_rejection_was_not_judged() -> None:
    calibration = Calibration()
    before = calibration.acceptance.copy()
    calibration.observe(np.array([1, 2, 5], np.uint8), 1)
    assert calibration.acceptance[1] > before[1]
    assert calibration.acceptance[2] < before[2]
    assert calibration.acceptance[5] == before[5]
