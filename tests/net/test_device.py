"""What drafting costs a device that stands for a slower one."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from multispin.core.device import Job
from multispin.core.drafter import Drafted, LookupDrafter
from multispin.net.device import Device

TOKENS = np.array([1, 2, 3], np.int32)


class Session:
    """Drafts one token and remembers what that took."""

    def __init__(self, is_lookup: bool) -> None:
        self._drafted = Drafted(TOKENS[:1], [], np.ones(1, np.float32), is_lookup)

    def draft(self, job: Job) -> Drafted:
        return self._drafted

    def add(self, job: Job, drafted: Drafted, drafting_s: float) -> None:
        self.drafting_s = drafting_s


@pytest.mark.parametrize(("is_lookup", "expected_s"), [(True, 0.0), (False, 0.001)])
def test_a_lookup_in_the_models_place_takes_no_time(is_lookup: bool, expected_s: float) -> None:
    async def main() -> float:
        device = Device(
            None,  # type: ignore[arg-type]
            LookupDrafter(),
            draft_s_per_token=0.001,
            clock=lambda: 5.0,
        )
        session = Session(is_lookup)
        await device.draft(session, Job(0, TOKENS, 3), 5.0)  # type: ignore[arg-type]
        return session.drafting_s

    assert asyncio.run(main()) == pytest.approx(expected_s)
