"""The running server's modes on a cell: its core, its controller and its queues, a virtual clock.

Where ``sim.rounds`` does what a planner says who knows the cell, here the controller gets to know
it while the devices write.
"""

from __future__ import annotations

from functools import partial

import msgspec
import numpy as np

from multispin.cell import Cell
from multispin.control import find_policy
from multispin.core.batch import BatchLimits
from multispin.core.controller import ControlSettings
from multispin.core.cost import CostEngine, Costs
from multispin.core.limits import ServerLimits
from multispin.core.warmup import time_passes
from multispin.errors import BadInput
from multispin.radio.fading import FadingChannel, NeverSent
from multispin.sim.agreement import Agreements
from multispin.sim.events import Stopwatch
from multispin.sim.rounds import check_size
from multispin.sim.seat import Told, VirtualDevice
from multispin.sim.streams import random_streams
from multispin.sim.synthetic import SyntheticTexts
from multispin.sim.trace import Progress, Trace
from multispin.sim.virtual_cell import VirtualCell
from multispin.types import Mode
from multispin.wire.frames import Draft
from multispin.wire.payload import Payload

NUM_REPORTS = 200  # of progress


def simulate_core(
    cell: Cell,
    mode: Mode,
    policy: str | None,
    num_rounds: int,
    seed: int,
    on_progress: Progress | None = None,
) -> Trace:
    """``num_rounds`` verification passes from time 0, when the devices say hello.

    Without a policy each device drafts as far as it may, at an equal share of the band.

    Raises BadInput for an unknown policy, for what the running server cannot do, and for a device
    whose draft would never arrive.
    """
    check_size(num_rounds, len(cell.names))
    _check(cell, mode, policy)
    streams = random_streams(seed)
    cell = cell.drawn(streams.placement)
    problem = cell.problem
    texts = _texts(cell, streams.agreement)
    channel = FadingChannel(cell.radio, streams.fading)
    share_hz = np.full(problem.num_devices, problem.bandwidth_hz / problem.num_devices)
    efficiency = (problem.uplink.rate(share_hz) / share_hz).tolist()
    log = _Log(cell.names, efficiency, num_rounds, on_progress)
    limits = ServerLimits(
        max_draft_length=problem.max_draft_length,
        batch=BatchLimits(
            max_rows=problem.num_devices * (problem.max_draft_length + 1),  # everybody in one pass
            mode=mode,
        ),
        control=ControlSettings(policy, bandwidth_hz=problem.bandwidth_hz if policy else None),
    )
    virtual = VirtualCell(
        _engine(cell, texts, limits.batch.max_rows),
        limits,
        [_device(cell, k, texts, channel, each) for k, each in enumerate(efficiency)],
        log,
    )
    try:
        virtual.run(num_passes=num_rounds)
    except NeverSent as error:
        raise error.named(cell.names[error.device]) from None
    return log.trace(virtual.events.now)


def _check(cell: Cell, mode: Mode, policy: str | None) -> None:
    """The running server has one objective, does no harm, and knows nothing of the channel."""
    if policy is not None:
        find_policy(policy)
    problem = cell.problem
    asked: dict[str, tuple[object, object]] = {
        "objective.kind": (problem.objective.kind, "sum"),
        "objective.min_goodput_tokens_per_s": (problem.objective.min_goodput_tokens_per_s, 0.0),
        "server.min_draft_length": (problem.min_draft_length, 0),
        "cell.csi": (cell.csi, "statistical"),
        "--policy": (policy == "outage-constrained" and policy, False),
    }
    for field, (value, default) in asked.items():
        if value != default:
            remedy = f"the running server, which mode {mode} is, does not do that; take mode rounds"
            raise BadInput(field, value, remedy)


def _texts(cell: Cell, rng: np.random.Generator) -> SyntheticTexts:
    problem = cell.problem
    agreements = Agreements(
        cell.acceptance_models,
        problem.acceptance,
        cell.answer_tokens,
        problem.max_draft_length,
        rng,
    )
    return SyntheticTexts(cell, agreements, rng)


def _engine(cell: Cell, texts: SyntheticTexts, max_rows: int) -> CostEngine:
    """The target, its passes timed as at the start of every server."""
    watch = Stopwatch()
    costs = Costs(
        fixed_s=cell.problem.verify_fixed_s,
        per_sequence_s=cell.problem.verify_per_device_s,
        per_row_s=cell.problem.verify_per_token_s,
    )
    if cell.curve:
        costs = Costs(rows=cell.curve.rows, seconds=cell.curve.seconds)
    engine = CostEngine(texts.engine(max_rows), costs, "synthetic", clock=watch, sleep=watch.sleep)
    engine.info = msgspec.structs.replace(engine.info, passes=time_passes(engine))
    return engine


def _device(
    cell: Cell, index: int, texts: SyntheticTexts, channel: FadingChannel, efficiency: float
) -> VirtualDevice:
    problem = cell.problem
    payload = Payload(float(problem.bits_per_token[index]), float(problem.bits_per_draft[index]))
    return VirtualDevice(
        write=partial(texts.text, index),
        upload=_Uplink(
            channel,
            index,
            payload,
            texts.token_bits,
            efficiency,
            problem.bandwidth_hz / problem.num_devices,
        ).upload,
        draft_s_per_token=float(problem.draft_s_per_token[index]),
        round_trip_s=problem.round_trip_s,
        spectral_efficiency=efficiency,
        payload=payload,
    )


class _Uplink:
    """One device's. The server grants a rate, by the efficiency that the device told it, and means
    a bandwidth; what that carries is the channel's business."""

    def __init__(
        self,
        channel: FadingChannel,
        index: int,
        payload: Payload,
        token_bits: int,  # of the frame
        efficiency: float,  # bit/s/Hz
        equal_share_hz: float,  # for who is granted no rate
    ) -> None:
        self._channel = channel
        self._index = index
        self._payload = payload
        self._token_bits = token_bits
        self._efficiency = efficiency
        self._equal_share_hz = equal_share_hz
        self._radio = channel.radio.rows(np.array([index]))
        self._known_hz = self._known_rate = 0.0

    def upload(self, start_s: float, draft: Draft, bits_per_s: int) -> float:
        num_tokens = 8 * len(draft.tokens) // self._token_bits
        bits = self._payload.bits_per_draft + num_tokens * self._payload.bits_per_token
        bandwidth_hz = bits_per_s / self._efficiency or self._equal_share_hz
        if self._radio.is_constant and (rate := self._rate(bandwidth_hz)) > 0:
            return start_s + bits / rate
        return self._channel.transmit_one(self._index, start_s, bits, bandwidth_hz)

    def _rate(self, bandwidth_hz: float) -> float:
        """Without fading; grants seldom change."""
        if bandwidth_hz != self._known_hz:
            rate = self._radio.rate(np.ones(1), np.array([bandwidth_hz]))
            self._known_hz, self._known_rate = bandwidth_hz, float(rate[0])
        return self._known_rate


_VERDICTS = np.dtype(
    [
        ("device", "i4"),
        ("round", "i4"),
        ("at_s", "f8"),
        ("num_draft", "i4"),
        ("num_accepted", "i4"),
        ("num_committed", "i4"),
        ("bandwidth_hz", "f4"),
        ("draft_s", "f4"),
        ("upload_s", "f4"),
    ]
)
_PASSES = np.dtype([("pass_start_s", "f8"), ("pass_s", "f8"), ("pass_rows", "i4")])


class _Log:
    """The trace as it grows. No pass judges a device twice."""

    def __init__(
        self,
        names: tuple[str, ...],
        efficiency: list[float],
        num_rounds: int,
        on_progress: Progress | None,
    ) -> None:
        self._names = names
        self._efficiency = efficiency
        self._on_progress = on_progress
        self._report_every = -(-num_rounds // NUM_REPORTS)
        self._passes = np.empty(num_rounds, _PASSES)
        self._verdicts = np.empty(num_rounds * len(names), _VERDICTS)
        self._num_passes = self._num_verdicts = 0

    def passed(self, start_s: float, seconds: float, num_rows: int) -> None:
        self._passes[self._num_passes] = start_s, seconds, num_rows
        self._num_passes += 1
        if self._on_progress is not None and self._num_passes % self._report_every == 0:
            self._on_progress(self._num_passes, len(self._passes))

    def told(self, told: Told) -> None:
        device, verdict = told.device, told.verdict
        self._verdicts[self._num_verdicts] = (
            device,
            told.num_pass,
            told.at_s,
            verdict.num_draft,
            verdict.num_accepted,
            verdict.num_committed,
            told.upload_bits_per_s / self._efficiency[device],
            told.draft_s,
            told.upload_s,
        )
        self._num_verdicts += 1

    def trace(self, simulated_s: float) -> Trace:
        verdicts, passes = self._verdicts[: self._num_verdicts], self._passes[: self._num_passes]
        columns = {name: verdicts[name].copy() for name in _VERDICTS.names or ()}
        columns |= {name: passes[name].copy() for name in _PASSES.names or ()}
        return Trace(names=self._names, simulated_s=simulated_s, **columns)
