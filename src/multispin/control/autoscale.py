"""How many replicas a target needs, between bounds, with hysteresis."""

from __future__ import annotations

import math
from dataclasses import dataclass

AIM = 0.7  # of a replica's room that should be taken


@dataclass(frozen=True)
class Scaling:
    """A load of 1 is what is aimed at. Above 1 + ``tolerance`` there are ceil(n load) replicas at
    once; below 1 - 2 ``tolerance`` for ``hold_s``, a tenth of them goes, one at least, as far as
    the load of the others stays below 1 - ``tolerance``."""

    min_replicas: int
    max_replicas: int
    tolerance: float = 0.1
    hold_s: float = 120.0


class Autoscaler:
    """Decides for one target; the time is passed in."""

    def __init__(self, scaling: Scaling) -> None:
        self._scaling = scaling
        self._low_since: float | None = None

    def wanted(self, now: float, num_replicas: int, load: float) -> int:
        """Replicas that there should be; ``load`` is the largest of the signals, each over its aim:
        sessions, rows that wait, time per verdict."""
        scaling, num = self._scaling, num_replicas
        if load >= 1 - 2 * scaling.tolerance:
            self._low_since = None
        elif self._low_since is None:
            self._low_since = now
        if load > 1 + scaling.tolerance:
            num = math.ceil(num_replicas * load)
        elif self._low_since is not None and now - self._low_since >= scaling.hold_s:
            self._low_since = now
            needed = math.ceil(num_replicas * load / (1 - scaling.tolerance))
            num = max(needed, num_replicas - max(1, num_replicas // 10))
        return max(scaling.min_replicas, min(num, scaling.max_replicas))
