"""What a simulation did: one entry for each verdict and one for each verification pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Float32s = npt.NDArray[np.float32]
Float64s = npt.NDArray[np.float64]
Int32s = npt.NDArray[np.int32]
Progress: TypeAlias = Callable[[int, int], None]  # verification passes: done, and in all


@dataclass(frozen=True, eq=False)
class Trace:
    """``n`` verdicts in order of time, from ``R`` verification passes.

    A verdict's drafting and upload times are what its device spent since its last verdict: in a
    window they may run beside the server, so that their sum can exceed the time that passed.
    """

    names: tuple[str, ...]  # the K devices
    simulated_s: float  # from 0 until the last verdict is at its device
    device: Int32s  # [n] place in names
    round: Int32s  # [n] the pass that judged it, place in pass_start_s
    at_s: Float64s  # [n] the verdict is at the device
    num_draft: Int32s  # [n] drafted tokens that were judged
    num_accepted: Int32s  # [n]
    num_committed: Int32s  # [n] accepted tokens and the correction or bonus; 1 or more
    bandwidth_hz: Float32s  # [n] granted for the upload
    draft_s: Float32s  # [n]
    upload_s: Float32s  # [n]
    pass_start_s: Float64s  # [R]
    pass_s: Float64s  # [R] how long the server was busy
    pass_rows: Int32s  # [R] tokens that went through the target

    def __post_init__(self) -> None:
        for group in (VERDICT_COLUMNS, PASS_COLUMNS):
            lengths = {name: len(getattr(self, name)) for name in group}
            assert len(set(lengths.values())) == 1, lengths

    @property
    def num_devices(self) -> int:
        return len(self.names)

    @property
    def num_passes(self) -> int:
        return len(self.pass_s)

    @property
    def num_tokens(self) -> int:
        """Tokens committed by all devices."""
        return int(self.num_committed.sum(dtype=np.int64))


PASS_COLUMNS = ("pass_start_s", "pass_s", "pass_rows")
VERDICT_COLUMNS = tuple(
    field.name
    for field in fields(Trace)
    if field.name not in ("names", "simulated_s", *PASS_COLUMNS)
)
