"""What a session gets of its replica and its radio cell: the planned steady state, as a table.

    rate(n, b) = G(n devices with b hertz each) / n        tokens per second

G is what a plan gives with the target's own mix of devices. It is solved at powers of two of n
and of b, and read between them in straight lines of the logarithms.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from multispin.cell.cluster import Target
from multispin.control.estimate import VerificationFit
from multispin.control.problem import Problem
from multispin.control.stop_and_wait import DO_NO_HARM
from multispin.core.planning import CellView, allotments

Floats = npt.NDArray[np.float64]
NUM_BANDWIDTHS = 13  # from a whole cell's band for one session down to 1 / 4096 of it


class SteadyState:
    """A target's table: mode window, as a running server plans it under a policy."""

    def __init__(self, target: Target, policy: str) -> None:
        counts = 2 ** np.arange(target.section.max_sessions.bit_length() + 1)
        bandwidths = target.file.cell.bandwidth_hz * 0.5 ** np.arange(NUM_BANDWIDTHS)[::-1]
        self._counts, self._bandwidths = np.log2(counts), np.log2(bandwidths)
        self._rates = np.array(
            [
                [_goodput(target.problem(n, b), policy) / n for b in bandwidths]
                for n in counts.tolist()
            ]
        )

    def rate(self, num_sessions: Floats, hz: Floats) -> Floats:
        """Of sessions whose replica writes for so many and who have so much bandwidth [N]."""
        row, down = _between(self._counts, np.log2(np.maximum(num_sessions, 1)))
        column, right = _between(self._bandwidths, np.log2(hz))
        rates = self._rates
        above = rates[row, column] * (1 - right) + rates[row, column + 1] * right
        lower = rates[row + 1, column] * (1 - right) + rates[row + 1, column + 1] * right
        return np.asarray(above * (1 - down) + lower * down)


def _goodput(problem: Problem, policy: str) -> float:
    num = problem.num_devices
    share_hz = np.full(num, problem.bandwidth_hz / num)
    view = CellView(
        draft_s_per_token=problem.draft_s_per_token,
        acceptance=problem.acceptance,
        survival=problem.acceptance[:, None] ** np.arange(1, problem.max_draft_length + 1),
        round_trip_s=np.full(num, problem.round_trip_s),
        spectral_efficiency=problem.uplink.rate(share_hz) / share_hz,
        lengths=np.zeros(num, np.int64),
        bits_per_token=problem.bits_per_token,
        bits_per_draft=problem.bits_per_draft,
        budget=problem.bandwidth_hz,
        fit=VerificationFit(
            problem.verify_fixed_s, problem.verify_per_device_s, problem.verify_per_token_s
        ),
        least_share=DO_NO_HARM,
    )
    *_, plan = allotments(view, "window", policy)
    return plan.goodput_tokens_per_s


def _between(grid: Floats, values: Floats) -> tuple[npt.NDArray[np.int64], Floats]:
    """The place in the grid below each value, and how far it is to the next; ends go on flat."""
    clipped = np.clip(values, grid[0], grid[-1])
    below = np.clip(np.searchsorted(grid, clipped, side="right") - 1, 0, len(grid) - 2)
    return below, (clipped - grid[below]) / (grid[below + 1] - grid[below])
