"""How far two texts agree."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


def num_common(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> int:
    """Length of the longest common beginning."""
    num = min(len(one), len(other))
    differs = np.flatnonzero(one[:num] != other[:num])
    return int(differs[0]) if len(differs) else num
