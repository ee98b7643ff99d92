"""From transmit power to S/N0: the link budget, with and without a line of sight.

S/N0 = P + G - path loss - shadowing - N0 - F, in dB Hz: transmit power P, antenna gains G, noise
density N0, noise figure F of the receiver.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class LinkBudget:
    """Median S/N0 and shadowing of K devices; the first row with a line of sight, the other not."""

    power_to_noise_db: Floats  # [2, K] dB Hz
    shadowing_db: Floats  # [2, K] standard deviation
    los_probability: Floats  # [K]

    @property
    def is_random(self) -> bool:
        certain = (self.los_probability == 0.0) | (self.los_probability == 1.0)
        return bool(self.shadowing_db.any() or not certain.all())

    def mean_db(self) -> Floats:
        """Mean over line of sight and shadowing, in decibels [K]."""
        los, nlos = self.power_to_noise_db
        return np.asarray(nlos + self.los_probability * (los - nlos))

    def drawn_db(self, rng: np.random.Generator) -> Floats:
        """A line of sight for each device or none, and log-normal shadowing [K]."""
        num_devices = self.los_probability.size
        has_los = rng.random(num_devices) < self.los_probability
        row, column = np.where(has_los, 0, 1), np.arange(num_devices)
        shadowing = self.shadowing_db[row, column] * rng.standard_normal(num_devices)
        return np.asarray(self.power_to_noise_db[row, column] + shadowing)
