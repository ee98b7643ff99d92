"""`GET /api/cell` and `GET /api/cluster` of a directory: all its replicas together, and each."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from multispin.api.cell_state import (
    MAX_DEVICES,
    Cell,
    CellReplica,
    Passes,
    WithoutDrafter,
)
from multispin.control.estimate import VerificationFit
from multispin.net.directory import Directory, ReplicaState, TargetState
from multispin.net.watches import Watches

log = logging.getLogger("multispin.api")

UNKNOWN, MIXED = "unknown", "mixed"


class ClusterTarget(msgspec.Struct, frozen=True):
    """``model`` is None until a replica has said what it serves."""

    name: str
    model: str | None
    quality: int
    watts: float
    cost_per_hour: float
    context_length: int | None


class ClusterCell(msgspec.Struct, frozen=True):
    """A radio cell: its devices that draft, and the budget that each replica has for them."""

    cell: str
    num_devices: int
    budget: float
    budgets: dict[str, float]  # by replica


class Cluster(msgspec.Struct, frozen=True):
    """``clock_s`` counts from anywhere."""

    clock_s: float
    num_sessions: int
    goodput_tokens_per_s: float
    num_committed_tokens: int
    targets: list[ClusterTarget]
    replicas: list[CellReplica]
    cells: list[ClusterCell]


def cluster_state(directory: Directory) -> Cluster:
    """From what the replicas said last."""
    replicas = [_replica(state) for state in directory.replicas]
    return Cluster(
        clock_s=time.monotonic(),
        num_sessions=sum(replica.num_sessions for replica in replicas),
        goodput_tokens_per_s=sum(replica.goodput_tokens_per_s for replica in replicas),
        num_committed_tokens=sum(replica.num_committed_tokens for replica in replicas),
        targets=[_target(state) for state in directory.targets],
        replicas=replicas,
        cells=_cells(directory),
    )


def _target(state: TargetState) -> ClusterTarget:
    listed, welcome = state.listed, state.welcome
    return ClusterTarget(
        name=listed.name,
        model=welcome.target if welcome else None,
        quality=listed.quality,
        watts=listed.watts,
        cost_per_hour=listed.cost_per_hour,
        context_length=welcome.context_length if welcome else None,
    )


def _replica(state: ReplicaState) -> CellReplica:
    listed, status = state.listed, state.status
    about = (listed.name, listed.target, listed.server, state.condition)
    if status is None:
        return CellReplica(*about)
    fit = VerificationFit(status.pass_fixed_s, status.pass_s_per_session, status.pass_s_per_row)
    return CellReplica(
        *about,
        num_sessions=status.num_sessions,
        max_sessions=status.max_sessions,
        goodput_tokens_per_s=status.goodput_tokens_per_s,
        num_rows_waiting=status.num_rows_waiting,
        s_per_verdict=status.s_per_verdict,
        pass_s=float(fit.seconds(status.num_sessions, status.num_sessions)),
        num_committed_tokens=status.num_committed_tokens,
    )


def _cells(directory: Directory) -> list[ClusterCell]:
    num_devices: Counter[str] = Counter()
    budgets: dict[str, dict[str, float]] = {}
    for listed, _, status in directory.replicas:
        for load in status.cells if status else ():
            num_devices[load.cell] += load.num_devices
            budgets.setdefault(load.cell, {})[listed.name] = load.budget
    return [
        ClusterCell(cell, num_devices[cell], sum(shares.values()), shares)
        for cell, shares in sorted(budgets.items())
    ]


# --- the sum of cells ----------------------------------------------------------------------------


def merged(directory: Directory, told: Mapping[str, bytes]) -> Cell:
    """What a server's /api/cell says, over all replicas that answered; the acceptance is weighted
    by goodput. Devices have the replica's name beside the number that they have there."""
    cells: dict[str, Cell] = {}
    for name, body in told.items():
        try:
            cells[name] = msgspec.json.decode(body, type=Cell)
        except msgspec.DecodeError as error:
            log.error("the cell of replica %s is left out: %s", name, error)
    parts = list(cells.values())
    counters: Counter[str] = Counter()
    for part in parts:
        counters.update(part.counters)
    devices = [
        msgspec.structs.replace(device, replica=name)
        for name, part in cells.items()
        for device in part.devices
    ]
    return Cell(
        target=", ".join(directory.target_names),
        mode=_common([part.mode for part in parts]) or UNKNOWN,
        policy=_common([part.policy for part in parts]),
        num_sessions=sum(part.num_sessions for part in parts),
        clock_s=time.monotonic(),
        counters={"num_errors": 0, **counters},
        goodput_tokens_per_s=sum(part.goodput_tokens_per_s for part in parts),
        acceptance=_acceptance(parts),
        passes=_passes([part.passes for part in parts]),
        devices=devices[:MAX_DEVICES],
        without_drafter=WithoutDrafter(
            sum(part.without_drafter.num_sessions for part in parts),
            sum(part.without_drafter.goodput_tokens_per_s for part in parts),
        ),
        replicas=[_replica(state) for state in directory.replicas],
    )


def _common(values: Sequence[str | None]) -> str | None:
    """What all say."""
    different = set(values)
    return MIXED if len(different) > 1 else next(iter(different), None)


def _acceptance(parts: Sequence[Cell]) -> float | None:
    known = [(p.acceptance, p.goodput_tokens_per_s) for p in parts if p.acceptance is not None]
    weight = sum(goodput for _, goodput in known)
    return sum(share * goodput for share, goodput in known) / weight if weight else None


def _passes(parts: Sequence[Passes]) -> Passes:
    """Means over all passes; of the shares of time, over the replicas."""
    rates = [part.busy_share / part.seconds_mean if part.seconds_mean else 0.0 for part in parts]
    total = sum(rates) or 1.0
    return Passes(
        sum(rate * part.rows_mean for rate, part in zip(rates, parts, strict=True)) / total,
        sum(part.busy_share for part in parts) / total,
        sum(part.busy_share for part in parts) / max(len(parts), 1),
    )


def cell_routes(directory: Directory, watches: Watches) -> list[Route]:
    async def cell(request: Request) -> Response:
        return _json(merged(directory, await watches.ask("cell")))

    async def cluster(request: Request) -> Response:
        return _json(cluster_state(directory))

    return [Route("/api/cell", cell), Route("/api/cluster", cluster)]


def _json(document: msgspec.Struct) -> Response:
    return Response(msgspec.json.encode(document), media_type="application/json")
