"""Fading uplinks: means against closed forms and draws, uploads against a slow walk through time.

Tests of distributions state how often they would fail a sound implementation; seeds are fixed.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from scipy.special import exp1

from multispin.errors import BadInput
from multispin.radio.channel import BandwidthNoise, ConstantEfficiency, MixedRadio
from multispin.radio.fading import FadingChannel, NeverSent, Radio, through_blocks
from multispin.radio.gains import drawn_gains

ODDS = 1e-6


def radio(num_devices: int = 1, **fields: float | bool | list) -> Radio:
    """Rayleigh fading at 20 dB with blocks of 0.1 s, but for what is said otherwise."""
    values = {
        "is_noisy": False,
        "efficiency": np.log2(101.0),
        "power_to_noise_hz": 1e8,
        "rician_k": 0.0,
        "coherence_s": 0.1,
        "min_rate_bits_per_s": 0.0,
        **fields,
    }
    return Radio(
        **{
            name: np.broadcast_to(np.asarray(value), num_devices).copy()
            for name, value in values.items()
        }
    )


def steady(num_devices: int = 1, **fields: float | bool | list) -> Radio:
    return radio(num_devices, rician_k=np.inf, coherence_s=np.inf, **fields)


# --- rates --------------------------------------------------------------------------------------


def test_rates_at_gains_are_shannons():
    gain, hertz = np.array([0.5, 2.0]), np.array([1e6, 3e6])
    constant = radio(2).uplink(gain)
    noisy = radio(2, is_noisy=True).uplink(gain)
    mixed = radio(2, is_noisy=[False, True]).uplink(gain)
    assert isinstance(constant, ConstantEfficiency) and isinstance(noisy, BandwidthNoise)
    assert isinstance(mixed, MixedRadio)
    flat, sloped = hertz * np.log2(1 + 100 * gain), hertz * np.log2(1 + 1e8 * gain / hertz)
    assert constant.rate(hertz) == pytest.approx(flat)
    assert noisy.rate(hertz) == pytest.approx(sloped)
    assert mixed.rate(hertz) == pytest.approx([flat[0], sloped[1]])


@pytest.mark.parametrize("efficiency", [1e-9, 5.1, 2000.0])
def test_gain_1_keeps_the_efficiency_to_the_last_bit(efficiency):
    uplink = steady(efficiency=efficiency).uplink(np.ones(1))
    assert uplink.bits_per_s_per_hz.tolist() == [efficiency]


def test_below_the_least_rate_is_outage():
    two = radio(2, min_rate_bits_per_s=[0.0, 7e6])
    gain, hertz = np.array([1.0, 1.0]), np.array([1e6, 1e6])
    assert two.rate(gain, hertz) == pytest.approx([6.658e6, 0.0], rel=1e-3)
    assert (two.rate(gain, 2 * hertz) > 7e6).all()


# --- means --------------------------------------------------------------------------------------


@pytest.mark.parametrize("snr", [0.1, 10.0, 1e4])
@pytest.mark.parametrize("least_gain", [0.0, 0.5])
def test_ergodic_rate_of_rayleigh_in_closed_form(snr, least_gain):
    """E[log2(1+sg); g > g0] = e^-g0 log2(1 + s g0) + e^(1/s) E1(1/s + g0)/ln 2."""
    right = np.exp(-least_gain) * np.log2(1 + snr * least_gain)
    right += np.exp(1 / snr) * exp1(1 / snr + least_gain) / np.log(2)
    hertz = np.array([2e6])
    least = hertz[0] * np.log2(1 + snr * least_gain)
    flat = radio(efficiency=np.log2(1 + snr), min_rate_bits_per_s=least)
    assert flat.mean_rate(hertz) == pytest.approx(2e6 * right, rel=1e-7)
    noisy = radio(is_noisy=True, power_to_noise_hz=snr * 2e6, min_rate_bits_per_s=least)
    assert noisy.mean_rate(hertz) == pytest.approx(2e6 * right, rel=1e-7)


def test_ergodic_rate_against_draws():
    """Six standard errors over 50,000 draws for each of 40 uplinks: false in ten million seeds."""
    rng = np.random.default_rng(3)
    num = 40
    mixed = Radio(
        is_noisy=rng.random(num) < 0.5,
        efficiency=rng.uniform(0.1, 10, num),
        power_to_noise_hz=10 ** rng.uniform(4, 9, num),
        rician_k=np.where(rng.random(num) < 0.3, np.inf, 10 ** rng.uniform(-2, 3, num)),
        coherence_s=np.full(num, 0.1),
        min_rate_bits_per_s=np.where(rng.random(num) < 0.5, 0.0, 10 ** rng.uniform(4, 7, num)),
    )
    hertz = 10 ** rng.uniform(4, 7, num)
    rates = mixed.rate(drawn_gains(mixed.rician_k, 50_000, rng), hertz)
    error = rates.std(axis=0) / np.sqrt(len(rates))
    mean = mixed.mean_rate(hertz)
    assert (abs(rates.mean(axis=0) - mean) <= 6 * error + 1e-9 * mean).all()
    assert (mean == 0).any() and (rates.std(axis=0) > 0).sum() > 15


def test_the_mean_uplink_has_the_ergodic_rates_at_an_equal_share():
    fading = radio(4, is_noisy=[False, True, False, True], rician_k=[0.0, 0.0, np.inf, 5.0])
    share = np.full(4, 1e6)
    found = fading.mean_uplink(4e6).rate(share)
    assert found == pytest.approx(fading.mean_rate(share), rel=1e-12)
    without = replace(fading, rician_k=np.full(4, np.inf)).uplink(np.ones(4)).rate(share)
    assert (found[[0, 1, 3]] < without[[0, 1, 3]]).all()  # Jensen
    assert found[2] == without[2]


def test_a_steady_uplink_is_its_own_mean():
    uplink = steady(3, efficiency=[5.1, 1.0, 3.3]).mean_uplink(1e7)
    assert uplink.bits_per_s_per_hz.tolist() == [5.1, 1.0, 3.3]


def test_who_is_always_in_outage_keeps_next_to_nothing():
    for uplinks in (steady, radio):
        three = uplinks(3, is_noisy=[False, False, True], min_rate_bits_per_s=[0, 1e12, 1e12])
        share = np.full(3, 1e6)
        rate = three.mean_uplink(3e6).rate(share)
        assert rate[0] > 1e6
        assert (rate[1:] > 0).all() and (rate[1:] < 0.1).all()


# --- blocks -------------------------------------------------------------------------------------


def test_a_gain_lasts_for_the_coherence_time():
    channel = FadingChannel(radio(3, coherence_s=[0.1, 0.25, 0.1]), np.random.default_rng(1))
    times = np.arange(0, 20, 0.001)
    gains = np.array([channel.gain(t) for t in times])
    for device, length_s in ((0, 0.1), (1, 0.25), (2, 0.1)):
        changes = times[1:][np.diff(gains[:, device]) != 0]
        assert len(changes) == pytest.approx(20 / length_s, abs=1)
        assert np.diff(changes) == pytest.approx(length_s, abs=0.0011)
    assert stats.kstest(np.unique(gains), "expon").pvalue > ODDS


def test_blocks_of_different_devices_begin_at_different_times():
    """Uniformly over a block; false in a million seeds."""
    num = 2000
    channel = FadingChannel(radio(num, coherence_s=1.0), np.random.default_rng(2))
    before, first_change = channel.gain(0.0), np.full(num, np.nan)
    for t in np.arange(1, 1001) / 1000:
        changed = np.isnan(first_change) & (channel.gain(t) != before)
        first_change[changed] = t - 0.0005
    assert stats.kstest(first_change, "uniform").pvalue > ODDS


def test_time_never_runs_backwards():
    channel = FadingChannel(radio(5), np.random.default_rng(3))
    late = channel.gain(100.0)
    assert (channel.gain(3.0) == late).all()
    assert (channel.gain(100.3) != late).all()


def test_one_seed_is_one_run():
    runs = []
    for _ in range(2):
        channel = FadingChannel(radio(5), np.random.default_rng(4))
        done = channel.transmit(np.zeros(5), np.full(5, 2e6), np.full(5, 1e6))
        runs.append(np.concatenate([done, channel.gain(7.0)]))
    assert (runs[0] == runs[1]).all()


# --- uploads ------------------------------------------------------------------------------------


def test_an_upload_without_fading_is_a_division():
    channel = FadingChannel(steady(3, is_noisy=[False, True, False]), np.random.default_rng(0))
    start, bits, hertz = np.array([0.0, 5.0, 7.0]), np.array([1e6, 2e6, 0.0]), np.full(3, 1e6)
    done = channel.transmit(start, bits, hertz)
    rate = 1e6 * np.log2(101.0)
    assert done == pytest.approx([1e6 / rate, 5 + 2e6 / rate, 7.0])
    assert channel.transmit_one(1, 5.0, 2e6, 1e6) == pytest.approx(done[1])


def test_nothing_to_send_takes_no_time_and_no_bandwidth():
    channel = FadingChannel(radio(2), np.random.default_rng(0))
    assert channel.transmit(np.array([1.0, 2.0]), np.zeros(2), np.zeros(2)).tolist() == [1.0, 2.0]


def slow_upload(
    radio: Radio, rng: np.random.Generator, start_s: float, bits: float, hertz: float
) -> tuple[float, float]:
    """One device's upload block by block, and the gain at its end.

    Draws as FadingChannel does: the first block's end, its gain, the one at the start if that is
    another, then 1, 2, 4, ... more.
    """
    length_s = float(radio.coherence_s[0])
    end_s = length_s * rng.random(1)[0]
    gain, ahead, num_seen = float(drawn_gains(radio.rician_k, 1, rng)[0, 0]), [], 1
    if start_s >= end_s:
        gain = float(drawn_gains(radio.rician_k, 1, rng)[0, 0])
        while start_s >= end_s:
            end_s += length_s
    now_s, sent = start_s, 0.0
    while True:
        rate = hertz * np.log2(1 + 100 * gain)
        rate = rate if rate >= radio.min_rate_bits_per_s[0] else 0.0
        if sent + rate * (end_s - now_s) >= bits:
            return now_s + (bits - sent) / rate, gain
        sent, now_s, end_s = sent + rate * (end_s - now_s), end_s, end_s + length_s
        if not ahead:
            ahead = drawn_gains(radio.rician_k, num_seen, rng)[:, 0].tolist()
            num_seen += len(ahead)
        gain = ahead.pop(0)


@pytest.mark.parametrize("least_rate", [0.0, 6e6])
@pytest.mark.parametrize("bits", [1e4, 1e6, 3e7])
def test_uploads_across_blocks_against_a_slow_walk(bits, least_rate):
    """In one block, in a few and in some fifty, half of them in outage with the least rate."""
    one = radio(min_rate_bits_per_s=least_rate)
    for seed in range(20):
        start_s = 0.37 * (seed % 3)
        channel = FadingChannel(one, np.random.default_rng(seed))
        found = channel.transmit_one(0, start_s, bits, 1e6)
        right, gain = slow_upload(one, np.random.default_rng(seed), start_s, bits, 1e6)
        assert found == pytest.approx(right, rel=1e-9)
        assert channel.gain(found).tolist() == [gain]


def test_many_uploads_at_once_take_as_long_as_single_ones():
    """The same distribution, false in a million seeds; nobody waits for anybody."""
    num, bits = 4000, 2e6
    many = FadingChannel(radio(num, min_rate_bits_per_s=3e6), np.random.default_rng(8))
    done = many.transmit(np.zeros(num), np.full(num, bits), np.full(num, 1e6))
    one = radio(min_rate_bits_per_s=3e6)
    singles = [slow_upload(one, np.random.default_rng(s), 0.0, bits, 1e6)[0] for s in range(2000)]
    assert stats.ks_2samp(done, singles).pvalue > ODDS


def test_a_long_upload_runs_at_the_ergodic_rate():
    """Some 2,000 blocks each for 50 devices: five standard errors of the mean rate."""
    num, hertz = 50, np.full(50, 1e6)
    noisy = radio(num, is_noisy=True, min_rate_bits_per_s=4e6)
    mean = noisy.mean_rate(hertz)[0]
    done = FadingChannel(noisy, np.random.default_rng(9)).transmit(
        np.zeros(num), np.full(num, mean * 200.0), hertz
    )
    gains = drawn_gains(np.zeros(1), 100_000, np.random.default_rng(10))
    relative_std = float(noisy.rows(np.array([0])).rate(gains, hertz[:1]).std()) / mean
    assert done.mean() / 200 == pytest.approx(1.0, abs=5 * relative_std / np.sqrt(num * 2000))


def test_blocks_against_small_steps_of_time():
    """Bits accumulated in small steps until the upload is full."""
    rng = np.random.default_rng(11)
    rate = rng.uniform(0, 10, (30, 8)) * (rng.random((30, 8)) < 0.7)
    length_s, bits = rng.uniform(0.5, 1.5, 8), rng.uniform(1, 90, 8)
    bits[0] = 1e6  # is not done
    last, spent_s, left = through_blocks(rate, length_s, bits)
    step_s = 1e-4
    for k in range(8):
        times = np.arange(step_s / 2, 30 * length_s[k], step_s)
        block = (times / length_s[k]).astype(int)
        sent = (rate[block, k] * step_s).cumsum()
        if sent[-1] < bits[k]:
            assert (last[k], spent_s[k]) == (29, 30 * length_s[k])
            assert left[k] == pytest.approx(bits[k] - sent[-1], rel=1e-4)
        else:
            full = int(np.searchsorted(sent, bits[k]))
            assert spent_s[k] == pytest.approx(times[full], abs=3e-3)
            assert last[k] == block[full] and left[k] == 0
    assert left[0] > 0 and (left[1:] == 0).sum() > 4


def test_one_after_the_other():
    """An upload that follows another begins in the block in which that one ended."""
    channel = FadingChannel(radio(coherence_s=1.0), np.random.default_rng(12))
    done = channel.transmit_one(0, 0.0, 5e6, 1e6)
    gain = float(channel.gain(done)[0])
    rate = 1e6 * np.log2(1 + 100 * gain)
    assert channel.transmit_one(0, done, 1.0, 1e6) == pytest.approx(done + 1 / rate, rel=1e-12)


@pytest.mark.parametrize(
    "uplinks",
    [
        radio(3, min_rate_bits_per_s=[0, 1e9, 0]),
        steady(3, min_rate_bits_per_s=[0, 1e9, 0]),
        radio(3, is_noisy=True, min_rate_bits_per_s=[0, 1e9, 0], rician_k=[0, np.inf, 0]),
    ],
)
def test_a_device_that_never_gets_a_rate_is_named(uplinks):
    channel = FadingChannel(uplinks, np.random.default_rng(13))
    with pytest.raises(NeverSent, match="min_rate_bits_per_s") as caught:
        channel.transmit(np.zeros(3), np.full(3, 1e6), np.full(3, 1e6))
    assert caught.value.device == 1
    assert isinstance(caught.value, BadInput)
    assert str(caught.value.named("kiosk-2")).startswith("device 'kiosk-2' = 1e+06 Hz: ")


def test_an_upload_without_bandwidth_never_ends():
    channel = FadingChannel(radio(3), np.random.default_rng(14))
    with pytest.raises(NeverSent) as caught:
        channel.transmit(np.zeros(3), np.array([0.0, 0.0, 8.0]), np.array([0.0, 1.0, 0.0]))
    assert caught.value.device == 2
    with pytest.raises(NeverSent) as caught:
        channel.transmit_one(1, 0.0, 8.0, 0.0)
    assert caught.value.device == 1


def test_rare_good_blocks_are_waited_for():
    """One block in 20,000 carries anything; the upload takes two of them."""
    least = 1e6 * np.log2(1 + 100 * np.log(20_000))
    channel = FadingChannel(radio(min_rate_bits_per_s=least), np.random.default_rng(15))
    done = channel.transmit_one(0, 0.0, 1.2 * least * 0.1, 1e6)
    assert 100 < done < 60_000  # 4,000 s on average, false in a million


def test_an_upload_may_take_more_blocks_than_may_be_dry():
    """150,000 blocks of 10 us: 1.5 s at the ergodic rate, to five standard errors."""
    short = radio(coherence_s=1e-5)
    bits = 1.5 * float(short.mean_rate(np.array([1e6]))[0])
    done = FadingChannel(short, np.random.default_rng(16)).transmit_one(0, 0.0, bits, 1e6)
    assert done == pytest.approx(1.5, rel=5 * 0.4 / np.sqrt(150_000))
