"""Power gains of Rayleigh and Rician fading, mean 1: drawn, and as an average to compute with.

g = |sqrt(k/(k+1)) + sqrt(1/(k+1)) z|^2, z a circular normal of variance 1. k is Rice's factor, not
in dB: 0 is Rayleigh (g exponential), infinity no fading. The amplitude a = sqrt(g) has the density

    2a (1+k) exp(-(a sqrt(1+k) - sqrt(k))^2) I0e(2a sqrt(k(1+k)))        I0e(x) = I0(x) exp(-x)

Source: Simon and Alouini, Digital Communication over Fading Channels, 2nd ed., 2.2.1. How long a
gain lasts: Rappaport, Wireless Communications, 2nd ed., 5.4.1, from Clarke's model.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from multispin.radio.pathloss import SPEED_OF_LIGHT_M_PER_S

Floats = npt.NDArray[np.float64]

_NODES, _WEIGHTS = (x[:, np.newaxis] for x in np.polynomial.legendre.leggauss(64))
_TAIL = 6.5  # what is beyond has probability e^-42


def coherence_s(speed_m_per_s: float, carrier_hz: float) -> float:
    """T_c = 0.423/f_d with the Doppler frequency f_d = v f/c."""
    return 0.423 * SPEED_OF_LIGHT_M_PER_S / (speed_m_per_s * carrier_hz)


def drawn_gains(rician_k: Floats, num_blocks: int, rng: np.random.Generator) -> Floats:
    """Independent gains [num_blocks, K] for factors [K]."""
    scattered = 1.0 / (1.0 + rician_k)
    normals = rng.standard_normal((2, num_blocks, rician_k.size))
    normals *= np.sqrt(scattered / 2.0)
    normals[0] += np.sqrt(1.0 - scattered)
    normals *= normals
    return np.asarray(normals[0] + normals[1])


def gain_nodes(rician_k: Floats, least_gain: Floats) -> tuple[Floats, Floats]:
    """Gains and weights [N, K] with sum(weights f(gains)) = E[f(g); g >= least_gain], k finite.

    Gauss-Legendre over the amplitude.
    """
    from scipy.special import i0e  # type: ignore[import-untyped]  # noqa: PLC0415 - slow to import

    scale = np.sqrt(1.0 + rician_k)
    centre = np.sqrt(rician_k)
    high = (centre + _TAIL) / scale
    low = np.clip(np.maximum(np.sqrt(least_gain), (centre - _TAIL) / scale), 0.0, high)
    half = (high - low) / 2.0
    a = low + half * (1.0 + _NODES)
    density = 2.0 * a * scale**2 * i0e(2.0 * a * centre * scale)
    density *= np.exp(-((a * scale - centre) ** 2))
    return a**2, _WEIGHTS * half * density
