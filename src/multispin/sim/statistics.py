"""What a trace gives: goodput and how sure it is, waiting times, joules."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from multispin.cell import Cell
from multispin.control.problem import Floats, Lengths
from multispin.sim.trace import Trace

MAX_BATCHES = 30
LEVELS = (0.5, 0.95, 0.99)


class Goodput(NamedTuple):
    tokens_per_s: float
    stderr: float | None  # None after a single pass
    num_batches: int


class Quantiles(NamedTuple):
    """Of seconds; None where nothing was seen."""

    p50: float | None
    p95: float | None
    p99: float | None


@dataclass(frozen=True, eq=False)
class Statistics:
    """Measures of one trace; arrays are over the K devices of its cell."""

    trace: Trace
    cell: Cell

    @cached_property
    def goodput(self) -> Goodput:
        """G = sum N_b / sum T_b over batches of passes, in order; its error by batch means.

        stderr = sqrt(sum (N_b - G T_b)^2 / (n (n - 1))) / mean T_b: the delta method for a ratio
        (Law and Kelton, Simulation Modeling and Analysis, section 9.5.3).
        """
        trace = self.trace
        num_batches = min(MAX_BATCHES, trace.num_passes)
        edges = np.linspace(0, trace.num_passes, num_batches + 1).round().astype(np.int64)
        by_pass = np.bincount(trace.round, trace.num_committed, minlength=trace.num_passes)
        tokens = np.add.reduceat(by_pass, edges[:-1])
        ends_s = (trace.pass_start_s + trace.pass_s)[edges[1:] - 1]
        ends_s[-1] = trace.simulated_s
        seconds = np.diff(ends_s, prepend=0.0)
        goodput = float(tokens.sum() / trace.simulated_s)
        if num_batches == 1:
            return Goodput(goodput, None, num_batches)
        squares = float(np.square(tokens - goodput * seconds).sum())
        stderr = (squares / (num_batches * (num_batches - 1))) ** 0.5 / float(seconds.mean())
        return Goodput(goodput, stderr, num_batches)

    @cached_property
    def tokens(self) -> Floats:
        return self._sum(self.trace.num_committed)

    @cached_property
    def device_goodput_tokens_per_s(self) -> Floats:
        return self.tokens / self.trace.simulated_s

    @cached_property
    def mean_draft_length(self) -> Floats:
        """Drafted tokens per verdict; NaN without a verdict."""
        return self._per_verdict(self._sum(self.trace.num_draft))

    @cached_property
    def mean_acceptance_length(self) -> Floats:
        """Committed tokens per verdict; NaN without a verdict."""
        return self._per_verdict(self.tokens)

    @cached_property
    def round_s_mean(self) -> float:
        """Simulated seconds per verification pass."""
        return self.trace.simulated_s / self.trace.num_passes

    # -- waiting -------------------------------------------------------------------------------

    @cached_property
    def time_per_token_s(self) -> Quantiles:
        """Over all devices' tokens; see ``device_time_per_token_s``."""
        order, _ = self._by_device
        tokens = self.trace.num_committed[order]
        return quantiles(self._since_last_s / tokens, tokens)

    @cached_property
    def device_time_per_token_s(self) -> list[Quantiles]:
        """Of each token: the time since the device's last verdict, over the tokens of this one.

        Every token counts once, so that the mean is 1/goodput.
        """
        order, starts = self._by_device
        tokens = self.trace.num_committed[order]
        per_token = self._since_last_s / tokens
        return [
            quantiles(per_token[start:end], tokens[start:end])
            for start, end in pairwise(starts.tolist())
        ]

    @cached_property
    def answer_s(self) -> Quantiles:
        """Over all devices' answers."""
        return quantiles(np.concatenate(self._answers_s))

    @cached_property
    def device_answer_s(self) -> list[Quantiles]:
        """Of whole answers: from the last verdict of the one before to the last of this one."""
        return [quantiles(answers) for answers in self._answers_s]

    @cached_property
    def _answers_s(self) -> list[Floats]:
        order, starts = self._by_device
        answers = []
        for device, (start, end) in enumerate(pairwise(starts.tolist())):
            of_device = order[start:end]
            written = np.cumsum(self.trace.num_committed[of_device], dtype=np.int64)
            last = _last_verdicts(written, int(self.cell.answer_tokens[device]))
            answers.append(np.diff(self.trace.at_s[of_device][last], prepend=0.0))
        return answers

    # -- energy --------------------------------------------------------------------------------

    @property
    def has_energy(self) -> bool:
        """Whether the cell says what anything consumes."""
        energy = self.cell.energy
        devices = np.stack([energy.draft_w, energy.transmit_w, energy.idle_w])
        return bool(devices.any() or energy.server_busy_w or energy.server_idle_w)

    @cached_property
    def device_joules(self) -> Floats:
        """draft_w and transmit_w for the time of each, idle_w for the time that is left.

        Drafting and sending that overlap (in a window) leave no time below 0.
        """
        energy, seconds = self.cell.energy, self.trace.simulated_s
        draft_s, upload_s = self._sum(self.trace.draft_s), self._sum(self.trace.upload_s)
        idle_s = np.maximum(0.0, seconds - draft_s - upload_s)
        joules = energy.draft_w * draft_s + energy.transmit_w * upload_s + energy.idle_w * idle_s
        return np.asarray(joules)

    @cached_property
    def server_joules(self) -> float:
        """busy_w while a pass runs, idle_w between."""
        busy_s = float(self.trace.pass_s.sum())
        idle_s = self.trace.simulated_s - busy_s
        return self.cell.energy.server_busy_w * busy_s + self.cell.energy.server_idle_w * idle_s

    @property
    def devices_joules_per_token(self) -> float:
        """What all devices together spent on a token."""
        return float(self.device_joules.sum()) / self.trace.num_tokens

    @property
    def server_joules_per_token(self) -> float:
        return self.server_joules / self.trace.num_tokens

    @cached_property
    def device_joules_per_token(self) -> Floats:
        """Of each device's own committed tokens; NaN without any."""
        joules = np.where(self.tokens > 0, self.device_joules, np.nan)
        return np.asarray(joules / np.maximum(self.tokens, 1))

    # -- grouping ------------------------------------------------------------------------------

    @cached_property
    def _by_device(self) -> tuple[Lengths, Lengths]:
        """Verdicts in the order of devices, then of time; where each device begins, [K + 1]."""
        order = np.argsort(self.trace.device, kind="stable")
        starts = np.searchsorted(self.trace.device[order], np.arange(self.trace.num_devices + 1))
        return order, starts

    @cached_property
    def _since_last_s(self) -> Floats:
        """From each device's verdict, or 0, to its next, in the order of ``_by_device``."""
        order, starts = self._by_device
        at_s = self.trace.at_s[order]
        since = np.asarray(np.diff(at_s, prepend=0.0))
        firsts = starts[:-1][np.diff(starts) > 0]
        since[firsts] = at_s[firsts]
        return since

    def _sum(self, column: npt.NDArray[np.int32] | npt.NDArray[np.float32]) -> Floats:
        totals = np.bincount(self.trace.device, column, minlength=self.trace.num_devices)
        return totals.astype(np.float64)

    def _per_verdict(self, totals: Floats) -> Floats:
        counts = np.bincount(self.trace.device, minlength=self.trace.num_devices)
        with np.errstate(invalid="ignore"):
            return np.asarray(totals / counts)


def _last_verdicts(written: Lengths, answer_tokens: int) -> list[int]:
    """Which verdicts brought an answer to its length; the next begins with the next verdict."""
    last: list[int] = []
    before = 0
    while (i := int(np.searchsorted(written, before + answer_tokens))) < len(written):
        last.append(i)
        before = int(written[i])
    return last


def quantiles(seconds: Floats, weights: npt.NDArray[np.int32] | None = None) -> Quantiles:
    if len(seconds) == 0:
        return Quantiles(None, None, None)
    values = np.quantile(seconds, LEVELS, weights=weights, method="inverted_cdf")
    return Quantiles(*values.tolist())
