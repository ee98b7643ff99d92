"""What is to be decided, and what a decision is worth: ``Problem``, ``Plan``, ``evaluate``.

A round: every device drafts L_k tokens and uploads them, the server verifies all drafts in one
batch. K devices share the bandwidth B. With E[N_k] = (1 - a_k^(L_k+1)) / (1 - a_k),

    T = max_k(L_k s_k + (Q_k L_k + H_k [L_k>0]) / R_k(B_k))
        + fixed + per_device K + per_token sum_k(L_k + 1) + round_trip [some L_k > 0]
    G = sum_k E[N_k] / T

Source: arXiv 2606.04581, extended by draft length 0, H_k, per_token, round_trip and R_k(B_k).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from multispin.control.outage import Floats, Lengths, Outage, longest_rounds
from multispin.errors import BadInput

__all__ = [
    "Floats",
    "Lengths",
    "Objective",
    "Outage",
    "Plan",
    "Problem",
    "Uplink",
    "evaluate",
    "expected_tokens",
]


class Uplink(Protocol):
    """Rate as a function of bandwidth, one curve per device; last axis = devices [..., K].

    Concave, increasing, rate(0) = 0. ``linear`` says that bandwidth is proportional to rate.
    """

    @property
    def linear(self) -> bool: ...
    def rate(self, bandwidth_hz: Floats, /) -> Floats: ...
    def bandwidth(self, rate: Floats, /) -> Floats: ...
    def bandwidth_derivatives(self, rate: Floats, /) -> tuple[Floats, Floats, Floats]: ...


@dataclass(frozen=True)
class Objective:
    """What the plan makes as large as possible, and what it owes each device.

    sum: sum_k E[N_k]/T, tokens per second. proportional: sum_k log(E[N_k]/T).
    ``min_goodput_tokens_per_s`` > 0: E[N_k]/T of every device stays at or above it.
    ``outage``: every device misses its tokens by the deadline at most that often. ``solve`` keeps
    to it under the policy ``outage-constrained`` alone.
    """

    kind: Literal["sum", "proportional"] = "sum"
    min_goodput_tokens_per_s: float = 0.0
    outage: Outage | None = None

    @property
    def owes(self) -> bool:
        """Whether a device is owed anything at all."""
        return self.min_goodput_tokens_per_s > 0 or self.outage is not None


@dataclass(frozen=True, eq=False)
class Problem:
    """One cell as a struct of arrays over its K devices. Raises BadInput for illegal numbers."""

    draft_s_per_token: Floats  # [K] s
    acceptance: Floats  # [K] in [0, 1]
    bits_per_token: Floats  # [K] bit
    bits_per_draft: Floats  # [K] bit, paid once per draft that is not empty
    uplink: Uplink
    bandwidth_hz: float
    verify_fixed_s: float
    verify_per_device_s: float = 0.0
    verify_per_token_s: float = 0.0
    round_trip_s: float = 0.0  # paid once in a round in which any device drafts
    min_draft_length: int = 0
    max_draft_length: int = 25
    objective: Objective = Objective()

    def __post_init__(self) -> None:
        if self.num_devices == 0:
            raise BadInput("device", "[]", "a cell needs at least one device")
        non_negative = "must be a finite number, 0 or more"
        for name in ("draft_s_per_token", "bits_per_token", "bits_per_draft", "acceptance"):
            values: Floats = getattr(self, name)
            if values.shape != (self.num_devices,):
                raise BadInput(name, values.shape, f"must hold {self.num_devices} numbers")
            bad = ~(np.isfinite(values) & (values >= 0))
            if bad.any():
                raise BadInput(name, float(values[bad][0]), non_negative)
        if self.acceptance.max() > 1:
            raise BadInput("acceptance", float(self.acceptance.max()), "must lie in [0, 1]")
        for name in (
            "verify_fixed_s",
            "verify_per_device_s",
            "verify_per_token_s",
            "round_trip_s",
        ):
            value: float = getattr(self, name)
            if not (np.isfinite(value) and value >= 0):
                raise BadInput(name, value, non_negative)
        least = self.objective.min_goodput_tokens_per_s
        if not (np.isfinite(least) and least >= 0):
            raise BadInput("min_goodput_tokens_per_s", least, non_negative)
        if not (np.isfinite(self.bandwidth_hz) and self.bandwidth_hz > 0):
            raise BadInput("bandwidth_hz", self.bandwidth_hz, "must be a positive number of hertz")
        if self.min_draft_length < 0:
            raise BadInput("min_draft_length", self.min_draft_length, "must be 0 or more tokens")
        if self.max_draft_length < self.min_draft_length:
            raise BadInput(
                "max_draft_length",
                self.max_draft_length,
                f"must be at least min_draft_length, {self.min_draft_length}",
            )
        if self.base_round_s <= 0:
            raise BadInput(
                "verify_fixed_s",
                self.verify_fixed_s,
                "a verification pass must take time: give a positive fixed, per-device or "
                "per-token time",
            )

    @property
    def num_devices(self) -> int:
        return int(self.draft_s_per_token.shape[0])

    @cached_property
    def base_round_s(self) -> float:
        """The round in which nobody drafts: fixed + (per_device + per_token) K."""
        return self.verify_fixed_s + self.num_devices * (
            self.verify_per_device_s + self.verify_per_token_s
        )

    @property
    def drafting_round_s(self) -> float:
        """What a round with a draft takes beside its deadline and its drafted tokens."""
        return self.base_round_s + self.round_trip_s

    def draft_bits(self, lengths: npt.NDArray[np.int64] | Floats) -> Floats:
        """Q_k L_k + H_k [L_k > 0], shape of ``lengths`` [..., K]."""
        bits = self.bits_per_token * lengths
        if self.has_headers:
            bits += self.bits_per_draft * (lengths > 0)
        return bits

    @cached_property
    def alone_rate(self) -> Floats:
        """bit/s of each device if it had the whole band [K]."""
        return self.uplink.rate(np.full(self.num_devices, self.bandwidth_hz))

    @cached_property
    def equal_share_hz_s(self) -> Floats:
        """Hz per bit/s of each device at an equal share of the band [K]."""
        share = np.full(self.num_devices, self.bandwidth_hz / self.num_devices)
        return np.asarray(share / self.uplink.rate(share))

    @cached_property
    def outage_round_s(self) -> Floats:
        """Longest round in which length 0..O-1 keeps the objective's outage [O, K]: ``outage.py``.

        More than O - 1 tokens keep it no longer. Without an outage every round does.
        """
        if self.objective.outage is None:
            return np.full((1, self.num_devices), np.inf)
        return longest_rounds(self.objective.outage, self.acceptance, self.max_draft_length)

    @cached_property
    def has_headers(self) -> bool:
        return bool(self.bits_per_draft.any())

    def overhead_s(self, lengths: npt.NDArray[np.int64] | Floats) -> Floats:
        """Everything in a round but the deadline: verification and round trip [...]."""
        total = lengths.sum(axis=-1)
        overhead = self.base_round_s + self.verify_per_token_s * total
        return np.asarray(overhead + self.round_trip_s * (total > 0), dtype=np.float64)


@dataclass(frozen=True, eq=False)
class Plan:
    """Draft lengths and bandwidths for one round, and what ``evaluate`` says they give."""

    lengths: Lengths  # [K] tokens
    bandwidths_hz: Floats  # [K]
    goodput_tokens_per_s: float
    round_s: float
    expected_tokens: Floats  # [K]
    draft_s: Floats  # [K]
    upload_s: Floats  # [K]


def expected_tokens(acceptance: Floats, lengths: npt.NDArray[np.int64] | Floats) -> Floats:
    """E[N] = (1 - a^(L+1)) / (1 - a), the final correction or bonus token included; L+1 at a = 1.

    Sum of a^i for i = 0..L: token i of the output comes from this round if i drafts were accepted.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = np.expm1((lengths + 1.0) * np.log(acceptance)) / (acceptance - 1.0)
    is_certain = acceptance == 1.0
    if is_certain.any():
        mean = np.where(is_certain, lengths + 1.0, mean)
    return np.asarray(mean, dtype=np.float64)


def evaluate(problem: Problem, lengths: Lengths, bandwidths_hz: Floats) -> Plan:
    """The model at [K] lengths and [K] bandwidths; an upload without bandwidth never ends (inf)."""
    bits = problem.draft_bits(lengths)
    rate = problem.uplink.rate(bandwidths_hz)
    with np.errstate(divide="ignore", invalid="ignore"):
        upload = np.where(bits > 0, bits / rate, 0.0)
    draft = lengths * problem.draft_s_per_token
    round_s = float((draft + upload).max() + problem.overhead_s(lengths))
    expected = expected_tokens(problem.acceptance, lengths)
    return Plan(
        lengths=np.asarray(lengths, dtype=np.int64),
        bandwidths_hz=np.asarray(bandwidths_hz, dtype=np.float64),
        goodput_tokens_per_s=float(expected.sum() / round_s),
        round_s=round_s,
        expected_tokens=expected,
        draft_s=np.asarray(draft, dtype=np.float64),
        upload_s=np.asarray(upload, dtype=np.float64),
    )
