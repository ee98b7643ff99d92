"""Bandwidth to rate and back, for the two radio models and for cells that mix them.

``ConstantEfficiency``   R = B r                       (the paper: r = log2(1 + SNR), SNR given)
``BandwidthNoise``       R = B log2(1 + W/B)           (noise N0 B grows with B; W = S/N0 in hertz)
``MixedRadio``           each device its own of the two

Every method takes arrays whose last axis is the device axis [..., K] and broadcasts over the rest.
All three are what `multispin.control` calls an ``Uplink``; control/ never imports this module.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from multispin.errors import BadInput

Floats = npt.NDArray[np.float64]
_LN2 = float(np.log(2.0))


@dataclass(frozen=True, eq=False)
class ConstantEfficiency:
    """R = B r with r [K] in bit/s/Hz: the signal-to-noise ratio does not depend on the share."""

    bits_per_s_per_hz: Floats

    linear = True

    def __post_init__(self) -> None:
        _require_positive("spectral_efficiency", self.bits_per_s_per_hz)

    def rate(self, bandwidth_hz: Floats) -> Floats:
        """bit/s carried by ``bandwidth_hz``."""
        return bandwidth_hz * self.bits_per_s_per_hz

    def bandwidth(self, rate: Floats) -> Floats:
        """The hertz that ``rate`` (bit/s) needs; infinite for an infinite rate."""
        return rate / self.bits_per_s_per_hz

    def bandwidth_derivatives(self, rate: Floats) -> tuple[Floats, Floats, Floats]:
        """b(R), b'(R), b''(R); the last two are constants per device, [K]."""
        slope = 1.0 / self.bits_per_s_per_hz
        return rate * slope, slope, np.zeros_like(slope)


@dataclass(frozen=True, eq=False)
class BandwidthNoise:
    """R = B log2(1 + W/B), W = S/N0 [K] in hertz: received power over noise density.

    Concave in B and bounded: no bandwidth carries more than W/ln 2.
    """

    power_to_noise_hz: Floats

    linear = False

    def __post_init__(self) -> None:
        _require_positive("received power over noise density", self.power_to_noise_hz)

    def rate(self, bandwidth_hz: Floats) -> Floats:
        """bit/s carried by ``bandwidth_hz``; 0 at 0 hertz."""
        hz = np.maximum(bandwidth_hz, np.finfo(np.float64).tiny)
        with np.errstate(over="ignore"):
            snr = self.power_to_noise_hz / hz
        # log1p(snr) loses nothing at small snr; at overflow log(W) - log(B) is the same number
        log = np.where(np.isfinite(snr), np.log1p(snr), np.log(self.power_to_noise_hz) - np.log(hz))
        return np.asarray(bandwidth_hz * log / _LN2)

    def bandwidth(self, rate: Floats) -> Floats:
        """The hertz that ``rate`` (bit/s) needs; infinite at or above W/ln 2."""
        snr = _snr_at(rate * (_LN2 / self.power_to_noise_hz))
        with np.errstate(divide="ignore"):
            return np.asarray(self.power_to_noise_hz / snr)

    def bandwidth_derivatives(self, rate: Floats) -> tuple[Floats, Floats, Floats]:
        """b(R), b'(R), b''(R).

        With y = W/B, u = R ln2/W = ln(1+y)/y and d = ln(1+y) - y/(1+y):
        B = W/y, dB/dR = ln2/d, d2B/dR2 = (ln2)^2/W * y^3/((1+y)^2 d^3).
        """
        width = self.power_to_noise_hz
        snr = _snr_at(rate * (_LN2 / width))
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            # below 1e-4 the difference cancels: its series is y^2/2 - 2y^3/3 + 3y^4/4
            series = snr * snr * (0.5 - snr * (2.0 / 3.0 - 0.75 * snr))
            d = np.where(snr < 1e-4, series, np.log1p(snr) - 1.0 / (1.0 + 1.0 / snr))
            slope = _LN2 / d
            curve = np.where(
                np.isinf(snr), 0.0, (_LN2**2 / width) * snr * (snr / (1.0 + snr)) ** 2 / d**3
            )
            return width / snr, slope, curve


@dataclass(frozen=True, eq=False)
class MixedRadio:
    """Device k follows ``noisy`` where ``is_noisy[k]``, else ``constant``; both cover all K."""

    is_noisy: npt.NDArray[np.bool_]
    constant: ConstantEfficiency
    noisy: BandwidthNoise

    linear = False

    def rate(self, bandwidth_hz: Floats) -> Floats:
        return np.where(
            self.is_noisy, self.noisy.rate(bandwidth_hz), self.constant.rate(bandwidth_hz)
        )

    def bandwidth(self, rate: Floats) -> Floats:
        return np.where(self.is_noisy, self.noisy.bandwidth(rate), self.constant.bandwidth(rate))

    def bandwidth_derivatives(self, rate: Floats) -> tuple[Floats, Floats, Floats]:
        noisy = self.noisy.bandwidth_derivatives(rate)
        constant = self.constant.bandwidth_derivatives(rate)
        b, slope, curve = (
            np.where(self.is_noisy, n, c) for n, c in zip(noisy, constant, strict=True)
        )
        return b, slope, curve


def _snr_at(u: Floats) -> Floats:
    """The y >= 0 with ln(1 + y)/y = u, for u = R ln2/W: 0 at u >= 1, infinite at u <= 0.

    In closed form y = -W_{-1}(-u e^{-u})/u - 1 (Lambert); solved here as z = ln(1+y),
    ln(expm1(z)/z) = -ln u, by Newton, because SciPy's complex W costs many times as much. The
    left side rises with a slope between 1/2 and 1: three steps reach rounding from any u in (0, 1).
    """
    u = np.asarray(u, dtype=np.float64)
    inside = np.clip(u, 1e-290, 1.0 - 1e-15)
    goal = -np.log(inside)  # ln(expm1(z)/z)
    # right to second order near 0 and to a constant far out, within 0.3 between: three steps do
    z = goal + np.log1p(goal * (1.0 + goal * (2.0 / 3.0)) / (1.0 + 0.5 * goal))
    for _ in range(3):
        # phi(z) = ln(expm1(z)/z) written without overflow; phi' = 1/(1 - e^-z) - 1/z
        decay = -np.expm1(-z)
        with np.errstate(divide="ignore", invalid="ignore"):
            small = z < 1e-3
            value = np.where(small, z * (0.5 + z / 24.0), z + np.log(decay / z))
            slope = np.where(small, 0.5 + z / 12.0, 1.0 / decay - 1.0 / z)
        z = z - (value - goal) / slope
    with np.errstate(over="ignore"):
        y = np.expm1(z)
    return np.where(u >= 1.0, 0.0, np.where(u <= 0.0, np.inf, y))


def _require_positive(field: str, values: Floats) -> None:
    bad = ~(np.isfinite(values) & (values > 0))
    if bad.any():
        raise BadInput(field, float(values[bad][0]), "must be a positive number for every device")
