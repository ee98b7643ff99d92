"""The events that the dashboard lives on, and what they say of a cell."""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from multispin.api.cell_state import Cell, CellDevice
from multispin.api.dashboard_drafts import RecentPositions
from multispin.api.dashboard_passes import PassFigures
from multispin.api.dashboard_plans import Comparison
from multispin.api.dashboard_texts import TextNews


class Row(msgspec.Struct, array_like=True, frozen=True):
    """A device. Its shares are rounded, so that what stands still is not sent again."""

    device: int
    drafter: str
    num_sessions: int
    draft_length: int  # granted
    judged_length: float | None  # mean of the drafts of late, as far as they were judged
    bandwidth_share: float | None
    goodput_tokens_per_s: float
    num_committed_tokens: int
    acceptance: float | None
    positions: list[int]  # percent accepted, of late
    draft_s_per_token: float | None
    round_trip_s: float | None
    uplink_bytes: int
    downlink_bytes: int


Past: TypeAlias = tuple[float, float, int, float, float]  # at_s, goodput, sessions, rows, seconds


class Sums(msgspec.Struct, frozen=True):
    goodput_tokens_per_s: float
    acceptance: float | None
    num_sessions: int
    num_alone: int  # of them, without a drafter
    rows_mean: float
    seconds_mean: float
    busy_share: float
    num_committed_tokens: int
    num_errors: int


class Texts(msgspec.Struct, frozen=True):
    kept: list[int]  # numbers of those that are still shown
    news: list[TextNews]


class News(msgspec.Struct, omit_defaults=True, tag_field="kind", tag="news"):
    """Since the event before. ``passes`` are the last of those ``num_passes`` has counted."""

    at_s: float  # since 1970
    sums: Sums
    devices: list[Row]
    left: list[int]
    num_passes: int
    passes: list[PassFigures]
    comparison: Comparison | None = None
    texts: Texts | None = None


class About(msgspec.Struct, frozen=True):
    """What does not change while the server runs."""

    target: str
    mode: str
    policy: str | None
    shows_texts: bool
    row: tuple[str, ...] = Row.__struct_fields__


class Everything(News, omit_defaults=True, tag="all"):
    """The same, since the beginning."""

    about: About | None = None
    history: list[Past] = []


class Waiting(msgspec.Struct, tag_field="kind", tag="loading"):
    """There is no server yet."""


def sums_of(cell: Cell) -> Sums:
    return Sums(
        goodput_tokens_per_s=round(cell.goodput_tokens_per_s, 2),
        acceptance=_rounded(cell.acceptance, 3),
        num_sessions=cell.num_sessions,
        num_alone=cell.without_drafter.num_sessions,
        rows_mean=round(cell.passes.rows_mean, 1),
        seconds_mean=round(cell.passes.seconds_mean, 5),
        busy_share=round(cell.passes.busy_share, 3),
        num_committed_tokens=int(cell.counters["num_committed_tokens"]),
        num_errors=int(cell.counters["num_errors"]),
    )


def row_of(device: CellDevice, positions: RecentPositions) -> Row:
    return Row(
        device=device.device,
        drafter=device.drafter,
        num_sessions=device.num_sessions,
        draft_length=device.draft_length,
        judged_length=_rounded(positions.mean_length, 1),
        bandwidth_share=_rounded(device.bandwidth_share, 3),
        goodput_tokens_per_s=round(device.goodput_tokens_per_s, 1),
        num_committed_tokens=device.num_committed_tokens,
        acceptance=_rounded(device.acceptance, 2),
        positions=positions.percent,
        draft_s_per_token=_rounded(device.draft_s_per_token, 4),
        round_trip_s=_rounded(device.round_trip_s, 4),
        uplink_bytes=device.uplink_bytes,
        downlink_bytes=device.downlink_bytes,
    )


def _rounded(value: float | None, num_digits: int) -> float | None:
    return None if value is None else round(value, num_digits)
