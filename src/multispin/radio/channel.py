"""Bandwidth to rate and back, for the two radio models and for cells that mix them.

``ConstantEfficiency``   R = B r                       (the paper: r = log2(1 + SNR), SNR given)
``BandwidthNoise``       R = B log2(1 + W/B)           (noise N0 B grows with B; W = S/N0 in hertz)
``MixedRadio``           each device its own of the two

Every method takes arrays whose last axis is the device axis [..., K] and broadcasts over the rest.
All three are what `multispin.control` calls an ``Uplink``; control/ never imports this module.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

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
        slope, curve = self._derivatives
        return rate * slope, slope, curve

    @cached_property
    def _derivatives(self) -> tuple[Floats, Floats]:
        slope = 1.0 / self.bits_per_s_per_hz
        return slope, np.zeros_like(slope)


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

    @cached_property
    def _load_per_rate(self) -> Floats:
        """ln2/W [K]: times the rate, the share u of the most that any bandwidth carries."""
        return _LN2 / self.power_to_noise_hz

    def bandwidth(self, rate: Floats) -> Floats:
        """The hertz that ``rate`` (bit/s) needs: R ln2/z; infinite at or above W/ln 2."""
        _, z = _log_snr_at(rate * self._load_per_rate)
        with np.errstate(divide="ignore"):
            return np.asarray(_LN2 * rate / z)

    def bandwidth_derivatives(self, rate: Floats) -> tuple[Floats, Floats, Floats]:
        """b(R), b'(R), b''(R).

        With u = R ln2/W and z = ln(1 + W/B): B = R ln2/z; and from W/B = z/u follow, with
        e = u + z - 1, b' = ln2 (u + z)/(z e) and b'' = ln2 (u + z)/(R e^3).
        """
        load = self._load_per_rate
        u, z = _log_snr_at(rate * load)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            e = u + z
            per_z = _LN2 / z
            slope = per_z * e
            e -= 1.0
            slope /= e
            np.copyto(slope, 0.0, where=rate == 0)  # the limit, which u does not reach
            e *= e
            e *= u
            return rate * per_z, slope, slope * z * load / e


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


def _log_snr_at(u: Floats) -> tuple[Floats, Floats]:
    """u, at least 1e-290, and the z = ln(1+y) >= 0 with ln(1+y)/y = u = R ln2/W: 0 at u >= 1.

    y = z/u, and w = u + z solves w - ln w = u - ln u, w > 1: w = -W_{-1}(-u e^-u) (Lambert).
    SciPy's complex W costs many times as much and cancels near u = 1, so: z/g is a rational
    function of g = -ln u within 5e-5 for z < 100 and 3e-3 beyond (fitted by least maximum error),
    and one step of Fritsch, Shafer and Crowley (1973) on z - ln(1 + z/u) quadruples the digits.
    """
    u = np.maximum(u, 1e-290)
    inside = np.minimum(u, 1.0 - 1e-15)
    g = np.log(inside)
    np.negative(g, out=g)
    z = g * 3.4272326e-3
    for coefficient in (0.1333878, 0.9277064, 1.999984):
        z += coefficient
        z *= g
    below = g * 3.4082818e-3
    for coefficient in (0.11674702, 0.6302268):
        below += coefficient
        below *= g
    below += 1.0
    z /= below
    y = np.divide(z, inside, out=g)
    # ln(1+y) as y ln(v)/(v-1), v = 1+y rounded (Kahan): as precise as log1p, which takes the time
    # of ten logarithms where y is small; v > 1 because u stays below 1
    v = y + 1.0
    y *= np.log(v)
    v -= 1.0
    y /= v
    residual = np.subtract(z, y, out=y)
    down = np.subtract(1.0, inside, out=below)
    down -= z  # 1 - w < 0
    q = down + residual * (2.0 / 3.0)
    q *= down
    q *= 2.0
    q -= residual
    step = q * residual
    q -= residual
    q *= down
    step /= q
    inside += z
    step *= inside
    z += step
    np.copyto(z, 0.0, where=u >= 1.0)
    return u, z


def _require_positive(field: str, values: Floats) -> None:
    bad = ~(np.isfinite(values) & (values > 0))
    if bad.any():
        raise BadInput(field, float(values[bad][0]), "must be a positive number for every device")
