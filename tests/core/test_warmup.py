import msgspec
import numpy as np
import pytest

from multispin.control import VerificationCurve
from multispin.core.engine import Batch, Engine, Outcome, StepResult
from multispin.core.limits import ServerLimits
from multispin.core.server import ServerCore
from multispin.core.server_time import CURVE_PRIOR
from multispin.core.warmup import time_passes
from multispin.lm.ngram import NgramModel


def test_passes_are_timed_and_leave_nothing_behind() -> None:
    model = NgramModel.from_text(num_sequences=3, context_length=64)
    ticks = iter(np.arange(0, 1000, 0.01).tolist())
    engine = Engine(model, max_rows=16, clock=lambda: next(ticks))
    measured = time_passes(engine)
    assert sorted({timed.num_rows for timed in measured}) == [1, 2, 3, 4, 6, 8, 12, 16]
    assert {timed.num_sequences for timed in measured} == {1, 2, 3}
    assert all(abs(timed.seconds - 0.01) < 1e-9 for timed in measured)
    assert (model._pool.lengths == 0).all()


def test_a_disturbed_pass_at_the_start_counts_for_nothing() -> None:
    model = NgramModel.from_text(num_sequences=3, context_length=64)
    seconds = [0.1, 0.1, 0.9, 0.9] + [0.1] * 4  # four sizes, twice; after each, its cache is freed
    ends = np.cumsum(seconds)
    ticks = iter(np.stack([ends - seconds, ends, ends, ends], axis=1).ravel().tolist())
    engine = Engine(model, max_rows=4, clock=lambda: next(ticks))
    assert all(abs(timed.seconds - 0.1) < 1e-9 for timed in time_passes(engine))


def test_sizes_that_take_too_long_are_left_out() -> None:
    model = NgramModel.from_text(num_sequences=3, context_length=64)
    ticks = iter(np.arange(0, 1000, 0.9).tolist())
    engine = Engine(model, max_rows=64, clock=lambda: next(ticks))
    assert max(timed.num_rows for timed in time_passes(engine)) == 3


def test_the_server_knows_its_passes_from_the_start() -> None:
    model = NgramModel.from_text(num_sequences=3, context_length=64)
    ticks = iter(np.arange(0, 1000, 0.05).tolist())
    engine = Engine(model, max_rows=16, clock=lambda: next(ticks))
    info = engine.info.__class__(
        **{name: getattr(engine.info, name) for name in engine.info.__struct_fields__}
        | {"passes": time_passes(engine)}
    )
    core = ServerCore(info, ServerLimits(), lambda: 0.0)
    assert np.allclose(core.controller.pass_seconds(16), 0.05, rtol=0.02)


class Modelled:
    """Passes that take what a formula says."""

    def __init__(self, num_sequences: int) -> None:
        model = NgramModel.from_text(num_sequences=num_sequences, context_length=64)
        self.info = Engine(model, max_rows=64).info

    def step(self, batch: Batch) -> StepResult:
        seconds = 0.02 + 0.01 * len(batch.works) + 0.002 * batch.num_rows
        return StepResult([Outcome(0, 0) for _ in batch.works], seconds)


@pytest.mark.parametrize("num_sequences", [20, 100])
def test_the_cost_of_a_sequence_is_told_from_that_of_its_rows(num_sequences: int) -> None:
    """Else a server of many would take a longer draft for as dear as another session."""
    curve = VerificationCurve(CURVE_PRIOR)
    for timed in time_passes(Modelled(num_sequences)):
        curve.observe(*msgspec.structs.astuple(timed))
    fit = curve.fit
    assert fit.per_device_s == pytest.approx(0.01, rel=0.2)
    assert fit.per_token_s == pytest.approx(0.002, rel=0.2)
