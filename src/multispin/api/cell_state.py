"""`GET /api/cell`: the cell as it is now, for `multispin top`, the dashboard and benchmarks."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:  # `multispin top` reads what is written here, and has no server
    from multispin.core.server import ServerCore
    from multispin.net.server import EdgeServer
    from multispin.net.server_link import Link
    from multispin.net.telemetry import RecentPasses, Telemetry

MAX_DEVICES = 1024  # listed; the sums count all


class Passes(msgspec.Struct, frozen=True):
    """Means of a forward pass, and the share of time that the passes took."""

    rows_mean: float
    seconds_mean: float
    busy_share: float


class CellDevice(msgspec.Struct, frozen=True):
    device: int  # the number that metrics and log know it by
    drafter: str
    num_sessions: int
    draft_length: int  # granted last, as the rate: 0 is as fast as it can
    upload_bits_per_s: int
    bandwidth_share: float | None  # None where the uplink is not shared out
    goodput_tokens_per_s: float
    acceptance: float | None  # accepted tokens per drafted one; None where none was drafted
    num_draft_tokens: int
    num_accepted_tokens: int
    num_committed_tokens: int
    acceptance_by_position: list[float] = []  # as in the answers' `speculation`
    draft_s_per_token: float | None = None  # as the controller believes; None: not measured yet
    round_trip_s: float | None = None
    uplink_bytes: int = 0
    downlink_bytes: int = 0
    replica: str = ""  # at a directory: the one that numbers it


class CellReplica(msgspec.Struct, frozen=True):
    """A replica, as its directory knows it. Figures are 0 without a connection."""

    name: str
    target: str
    server: str
    condition: str
    num_sessions: int = 0
    max_sessions: int = 0
    goodput_tokens_per_s: float = 0.0
    num_rows_waiting: int = 0
    s_per_verdict: float = 0.0
    pass_s: float = 0.0  # of a row for each of its sessions, as fitted
    num_committed_tokens: int = 0


class WithoutDrafter(msgspec.Struct, frozen=True):
    """Requests to the server itself, and devices that leave all to it."""

    num_sessions: int
    goodput_tokens_per_s: float


class Cell(msgspec.Struct, frozen=True):
    """``clock_s`` counts from anywhere: differences of two answers are to be compared with those of
    the ``counters``. Goodput, acceptance and passes are of the last seconds."""

    target: str
    mode: str
    policy: str | None
    num_sessions: int
    clock_s: float
    counters: dict[str, float]
    goodput_tokens_per_s: float
    acceptance: float | None
    passes: Passes
    devices: list[CellDevice]
    without_drafter: WithoutDrafter
    replicas: list[CellReplica] = []  # of a directory


def cell_state(server: EdgeServer, telemetry: Telemetry) -> Cell:
    core = server.core
    links = {link.number: link for link in server.links}
    recent, passes = telemetry.recent_drafts(), telemetry.recent_passes()
    drafting = sorted(number for number, state in telemetry.devices.items() if state.drafts)
    others = [state for state in telemetry.devices.values() if not state.drafts]
    return Cell(
        target=core.info.target,
        mode=core.limits.batch.mode,
        policy=core.limits.control.policy,
        num_sessions=core.num_sessions,
        clock_s=time.monotonic(),
        counters=asdict(core.counters),
        goodput_tokens_per_s=recent.goodput_tokens_per_s,
        acceptance=recent.acceptance,
        passes=_passes(passes),
        devices=[_device(links[n], core, telemetry) for n in drafting[:MAX_DEVICES] if n in links],
        without_drafter=WithoutDrafter(
            sum(state.num_sessions for state in others),
            sum(state.recent.goodput_tokens_per_s for state in others),
        ),
    )


def _passes(passes: RecentPasses) -> Passes:
    return Passes(passes.num_rows, passes.seconds, passes.busy)


def _device(link: Link, core: ServerCore, telemetry: Telemetry) -> CellDevice:
    state = telemetry.devices[link.number]
    stats, estimate = state.stats, core.controller.estimate(link)
    return CellDevice(
        device=link.number,
        drafter=state.drafter,
        num_sessions=state.num_sessions,
        draft_length=state.draft_length,
        upload_bits_per_s=state.upload_bits_per_s,
        bandwidth_share=telemetry.share(state),
        goodput_tokens_per_s=state.recent.goodput_tokens_per_s,
        acceptance=state.recent.acceptance,
        num_draft_tokens=stats.num_draft_tokens,
        num_accepted_tokens=stats.num_accepted_tokens,
        num_committed_tokens=stats.num_committed_tokens,
        acceptance_by_position=stats.acceptance_by_position,
        draft_s_per_token=estimate.draft_s_per_token if estimate and stats.num_drafts else None,
        round_trip_s=estimate.round_trip_s if estimate and estimate.has_round_trip else None,
        uplink_bytes=link.num_received,
        downlink_bytes=link.num_sent,
    )
