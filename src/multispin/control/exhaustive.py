"""Every combination of draft lengths, each with its exact deadline: the truth, for small cells."""

from __future__ import annotations

import numpy as np

from multispin.control.deadline import bandwidth_for
from multispin.control.fairness import require_minimum, worth
from multispin.control.problem import Plan, Problem
from multispin.errors import BadInput

MAX_COMBINATIONS = 1_000_000
_CHUNK = 65_536


def exhaustive(problem: Problem) -> Plan:
    """The optimum. Raises BadInput above a million combinations."""
    options = problem.max_draft_length - problem.min_draft_length + 1
    combinations = options**problem.num_devices
    if combinations > MAX_COMBINATIONS:
        shown = f"{options}^{problem.num_devices} combinations"
        raise BadInput(
            "--policy exhaustive",
            shown,
            f"refused above {MAX_COMBINATIONS:,}; use fewer devices, a smaller max_draft_length, "
            "or --policy heterogeneous",
        )
    best, best_worth = require_minimum(problem), -np.inf
    for start in range(0, combinations, _CHUNK):
        index = np.arange(start, min(start + _CHUNK, combinations))
        digits = np.unravel_index(index, (options,) * problem.num_devices)
        lengths = np.stack(digits, axis=-1).astype(np.int64) + problem.min_draft_length
        values = worth(problem, lengths)
        at = int(values.argmax())
        if values[at] > best_worth:
            best, best_worth = lengths[at], float(values[at])
    return bandwidth_for(problem, best)
