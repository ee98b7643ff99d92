"""What the radio cells of one server share: its passes, and the time in which plans are made."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from multispin.control.estimate import VerificationCurve, VerificationFit
from multispin.control.problem import Floats

SOLVE_SHARE = 0.005  # of the server's time that planning may take
SAVED_S = 0.3  # of planning at most, for when somebody comes or goes; half is for nothing else
RETABLE = 4  # passes between two looks at how long they take
# Optimistic about further rows: a plan that believes in them tries them, and learns what they cost.
CURVE_PRIOR = VerificationFit(fixed_s=0.03, per_token_s=0.0005)


class ServerTime:
    """Measures passes, and saves time for planning: SOLVE_SHARE of what passes by."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.saved_s = SAVED_S  # as of _saved_at
        self._saved_at = clock()
        self._curve = VerificationCurve(CURVE_PRIOR)
        self._num_passes = 0
        self._pass_s: Floats | None = None

    def passed(self, num_rows: int, num_sequences: int, seconds: float) -> None:
        self._num_passes += 1
        if self._num_passes % RETABLE == 0:
            self._pass_s = None
        self._curve.observe(num_rows, num_sequences, seconds)

    def pass_seconds(self, max_rows: int) -> Floats:
        """Expected time of a pass with 1, 2, … ``max_rows`` rows [max_rows]."""
        if self._pass_s is None:
            self._pass_s = self._curve.seconds(np.arange(1, max_rows + 1))
        return self._pass_s

    @property
    def fit(self) -> VerificationFit:
        return self._curve.fit

    def save(self, now: float) -> None:
        """Time has passed."""
        self.saved_s = min(self.saved_s + SOLVE_SHARE * (now - self._saved_at), SAVED_S)
        self._saved_at = now

    def spend(self, seconds: float) -> None:
        self.saved_s -= seconds
