"""Decibels, thermal noise and spectral efficiency: the conversions, each once.

Every function takes and returns float64 arrays of any shape (a float is a 0-d array to NumPy).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

THERMAL_NOISE_DBM_PER_HZ = -173.975
"""kT at 290 K, the density that every link budget starts from (Johnson 1928; Nyquist 1928)."""


def db_to_linear(decibels: npt.ArrayLike) -> Floats:
    """10^(x/10): a power ratio from decibels."""
    return np.asarray(np.power(10.0, np.asarray(decibels, dtype=np.float64) / 10.0))


def spectral_efficiency(snr: npt.ArrayLike) -> Floats:
    """log2(1 + SNR) in bit/s/Hz for a linear (not dB) signal-to-noise ratio (Shannon 1948)."""
    return np.asarray(np.log1p(np.asarray(snr, dtype=np.float64)) / np.log(2.0))
