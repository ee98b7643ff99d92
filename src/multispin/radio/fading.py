"""Uplinks whose power gain is constant over a block, the coherence time, and then drawn anew.

``Radio`` says what the uplinks are, ``FadingChannel`` is one run of their blocks over time.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from multispin.errors import BadInput
from multispin.radio.channel import BandwidthNoise, ConstantEfficiency, MixedRadio
from multispin.radio.gains import drawn_gains, gain_nodes

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]
RadioUplink: TypeAlias = ConstantEfficiency | BandwidthNoise | MixedRadio

MAX_DRY_BLOCKS = 100_000  # in a row that carry nothing
_MOST_GAINS = 1 << 18  # drawn at once
_NEGLIGIBLE = 1e-9
_ROUNDING_BITS = 1e-9  # left of an upload that rounding lets end behind its block
_LN2 = float(np.log(2.0))


class NeverSent(BadInput):
    """An upload that would not end; ``device`` is the index of whose it is."""

    def __init__(self, device: int, bandwidth_hz: float, name: str | None = None) -> None:
        super().__init__(
            f"device {device if name is None else repr(name)}",
            f"{bandwidth_hz:g} Hz",
            "its upload would never end, no block has a rate: give it bandwidth or power, or "
            "lower its min_rate_bits_per_s",
        )
        self.device = device
        self.bandwidth_hz = bandwidth_hz

    def named(self, name: str) -> NeverSent:
        """The same for people, who know devices by name."""
        return NeverSent(self.device, self.bandwidth_hz, name)


@dataclass(frozen=True, eq=False)
class Radio:
    """K uplinks as a struct of arrays [K]."""

    is_noisy: npt.NDArray[np.bool_]  # rate B log2(1 + gW/B); else B log2(1 + g SNR)
    efficiency: Floats  # bit/s/Hz at gain 1, log2(1 + SNR); positive, unused where noisy
    power_to_noise_hz: Floats  # W = S/N0 at gain 1; positive, unused where not noisy
    rician_k: Floats  # linear; 0 Rayleigh, inf no fading
    coherence_s: Floats  # length of a block; inf where nothing fades
    min_rate_bits_per_s: Floats  # a block that allows less is in outage: rate 0

    @property
    def num_devices(self) -> int:
        return int(self.is_noisy.size)

    @cached_property
    def is_constant(self) -> bool:
        """Whether no device fades."""
        return bool(np.isinf(self.rician_k).all())

    def rows(self, devices: Indices) -> Radio:
        """The same for these devices only."""
        return Radio(*(getattr(self, field.name)[devices] for field in fields(self)))

    def uplink(self, gain: Floats) -> RadioUplink:
        """Rate over bandwidth at power gains [..., K], outage left out of account."""
        if not self.is_noisy.any():
            return self._constant(gain)
        noisy = BandwidthNoise(self.power_to_noise_hz * gain)
        if self.is_noisy.all():
            return noisy
        return MixedRadio(self.is_noisy, self._constant(gain), noisy)

    def _constant(self, gain: Floats) -> ConstantEfficiency:
        with np.errstate(over="ignore"):  # an efficiency that large does not fade
            faded = np.log1p(gain * self._snr) / _LN2
        return ConstantEfficiency(np.where(gain == 1.0, self.efficiency, faded))

    @cached_property
    def _snr(self) -> Floats:
        with np.errstate(over="ignore"):
            return np.asarray(np.expm1(self.efficiency * _LN2))

    def rate(self, gain: Floats, bandwidth_hz: Floats) -> Floats:
        """bit/s at power gains [..., K]; 0 in outage."""
        rate = self.uplink(gain).rate(bandwidth_hz)
        return np.where(rate >= self.min_rate_bits_per_s, rate, 0.0)

    def mean_rate(self, bandwidth_hz: Floats) -> Floats:
        """The ergodic rate E[R(g)] at positive bandwidths [K], outage counted as 0."""
        fades = np.isfinite(self.rician_k)
        gains, weights = gain_nodes(
            np.where(fades, self.rician_k, 0.0), self._outage_gain(bandwidth_hz)
        )
        faded = (weights * self.uplink(gains).rate(bandwidth_hz)).sum(axis=0)
        return np.where(fades, faded, self.rate(np.ones(self.num_devices), bandwidth_hz))

    def _outage_gain(self, bandwidth_hz: Floats) -> Floats:
        """The gain below which a block is in outage [K]."""
        with np.errstate(over="ignore"):
            needed = np.expm1(self.min_rate_bits_per_s / bandwidth_hz * _LN2)
            snr = np.where(self.is_noisy, self.power_to_noise_hz / bandwidth_hz, self._snr)
        return np.asarray(needed / snr)

    def mean_uplink(self, bandwidth_hz: float) -> RadioUplink:
        """For planning: an uplink whose rates at an equal share of the band are the ergodic ones.

        A device that is always in outage there keeps a billionth of its rate without fading, so
        that a plan leaves it to the server.
        """
        ones = np.ones(self.num_devices)
        if self.is_constant and not self.min_rate_bits_per_s.any():
            return self.uplink(ones)
        share = np.full(self.num_devices, bandwidth_hz / self.num_devices)
        steady = self.uplink(ones).rate(share)
        rate = self.mean_rate(share)
        changes = rate != steady
        mean = np.maximum(rate, _NEGLIGIBLE * steady) / share
        power = share * np.expm1(mean * _LN2)
        return Radio(
            self.is_noisy,
            np.where(changes & ~self.is_noisy, mean, self.efficiency),
            np.where(changes & self.is_noisy, power, self.power_to_noise_hz),
            np.full(self.num_devices, np.inf),
            np.full(self.num_devices, np.inf),
            np.zeros(self.num_devices),
        ).uplink(ones)


class FadingChannel:
    """The blocks of K devices as time goes on; each device's begin at instants of its own.

    Time never runs backwards for a device: the block that it was last seen in stays until then.
    """

    def __init__(self, radio: Radio, rng: np.random.Generator) -> None:
        self.radio = radio
        self._rng = rng
        self._all = np.arange(radio.num_devices)
        self._gain = np.ones(radio.num_devices)
        self._end_s = np.full(radio.num_devices, np.inf)  # of the block with this gain
        if not radio.is_constant:
            left_s = rng.random(radio.num_devices)
            self._end_s = np.where(np.isinf(radio.coherence_s), np.inf, left_s * radio.coherence_s)
            self._gain = drawn_gains(radio.rician_k, 1, rng)[0]

    def gain(self, now_s: float) -> Floats:
        """Power gains [K] of the blocks at ``now_s``; blocks in between are not drawn."""
        self._enter(self._all, np.full(self._all.size, now_s))
        return self._gain.copy()

    def transmit(self, start_s: Floats, bits: Floats, bandwidth_hz: Floats) -> Floats:
        """When each upload [K] is done, across blocks; ``start_s`` where there are no bits.

        Raises NeverSent for one that has no bandwidth, or no rate for MAX_DRY_BLOCKS blocks.
        """
        return self._send(self._all, start_s, bits, bandwidth_hz)

    def transmit_one(self, device: int, start_s: float, bits: float, bandwidth_hz: float) -> float:
        """``transmit`` for one device."""
        start, size, hz = (np.array([x], dtype=np.float64) for x in (start_s, bits, bandwidth_hz))
        return float(self._send(np.array([device]), start, size, hz)[0])

    def _enter(self, devices: Indices, at_s: Floats) -> None:
        """Go on to the blocks at these times."""
        is_over = at_s >= self._end_s[devices]
        if is_over.any():
            over = devices[is_over]
            length_s = self.radio.coherence_s[over]
            num_blocks = np.floor((at_s[is_over] - self._end_s[over]) / length_s) + 1
            self._end_s[over] += num_blocks * length_s
            self._gain[over] = drawn_gains(self.radio.rician_k[over], 1, self._rng)[0]

    def _send(self, devices: Indices, start_s: Floats, bits: Floats, hz: Floats) -> Floats:
        self._enter(devices, start_s)
        end_s = self._end_s[devices]
        rate = self._rows(devices).rate(self._gain[devices], hz)
        with np.errstate(divide="ignore", invalid="ignore"):
            done_s = np.where(bits > 0, start_s + bits / rate, start_s)
        late = np.flatnonzero((done_s > end_s) | np.isinf(done_s))
        if late.size:
            self._reject_lost(devices[late], hz[late], np.isinf(end_s[late]) | (hz[late] <= 0))
            left = bits[late] - rate[late] * (end_s[late] - start_s[late])
            left = np.maximum(left, _ROUNDING_BITS)
            done_s[late] = self._go_on(devices[late], left, hz[late])
        return done_s

    def _go_on(self, devices: Indices, bits: Floats, hz: Floats) -> Floats:
        """When ``bits`` are sent from the ends of the current blocks on.

        Further blocks are drawn in growing portions. Those that are not reached are thrown away:
        blocks are independent.
        """
        done_s, left = np.empty(bits.size), bits.copy()
        num_blocks, num_dry = 1, np.zeros(bits.size)
        pending = np.arange(bits.size)
        while pending.size:
            who, before = devices[pending], left[pending]
            rows = self._rows(who)
            portion = max(1, min(num_blocks, _MOST_GAINS // who.size))
            gains = drawn_gains(rows.rician_k, portion, self._rng)
            rate = rows.rate(gains, hz[pending])
            last, spent_s, left[pending] = through_blocks(rate, rows.coherence_s, before)
            done_s[pending] = self._end_s[who] + spent_s
            self._end_s[who] += (last + 1) * rows.coherence_s
            self._gain[who] = gains[last, np.arange(who.size)]
            num_blocks += portion
            num_dry[pending] = np.where(left[pending] < before, 0, num_dry[pending] + portion)
            self._reject_lost(devices, hz, num_dry >= MAX_DRY_BLOCKS)
            pending = pending[left[pending] > 0]
        return done_s

    def _rows(self, devices: Indices) -> Radio:
        return self.radio if devices is self._all else self.radio.rows(devices)

    def _reject_lost(self, devices: Indices, hz: Floats, is_lost: npt.NDArray[np.bool_]) -> None:
        if is_lost.any():
            lost = int(is_lost.argmax())
            raise NeverSent(int(devices[lost]), float(hz[lost]))


def through_blocks(rate: Floats, length_s: Floats, bits: Floats) -> tuple[Indices, Floats, Floats]:
    """Send ``bits`` [m], above 0, through blocks of ``length_s`` [m] at rates [n, m].

    Returns the last block used, the time that it took and the bits that are left [m].
    """
    sent = np.zeros((len(rate) + 1, bits.size))
    np.cumsum(rate * length_s, axis=0, out=sent[1:])
    num_full = (sent[1:] < bits).sum(axis=0)
    last, column = np.minimum(num_full, len(rate) - 1), np.arange(bits.size)
    with np.errstate(divide="ignore"):
        part_s = (bits - sent[last, column]) / rate[last, column]
    is_done = num_full < len(rate)
    spent_s = np.where(is_done, last * length_s + part_s, len(rate) * length_s)
    return last, spent_s, np.where(is_done, 0.0, bits - sent[-1])
