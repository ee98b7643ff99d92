"""What `multispin cluster` does, on whichever Ray, and as far as can be without one.

A cluster's folder on the machine where `up` ran has its record: which Ray, and what is to run.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, TypeAlias

import msgspec
from msgspec.structs import replace

from multispin.cell.deployment import DIRECTORY, Deployment
from multispin.cluster import folder as files
from multispin.cluster import local_ray
from multispin.cluster.connection import Connection, check_installed, check_reachable, connected
from multispin.cluster.folder import Kept, folder_of
from multispin.cluster.keeper import GRACE_S, Condition, KeeperState
from multispin.cluster.overview import Overview, ReplicaRow, row
from multispin.cluster.process import end_all
from multispin.cluster.watches import Watches
from multispin.errors import BadInput, MultispinError, PeerError

Say: TypeAlias = Callable[[str], None]

FILE = "cluster.json"
LOOK_S = 0.5
HOPELESS = 3  # starts in a row that failed: nobody waits for another one
WATCH_S = 3.0  # replicas get so long to say what they do, where Ray does not
RUNNING_RAY = Path("/tmp/ray/ray_current_cluster")  # where Ray notes one that was started by hand


class Record(msgspec.Struct, frozen=True):
    deployment: Deployment
    ray: str  # its address


def named(cluster: str | None) -> str:
    """The cluster that is meant; raise BadInput if none is, or any could be."""
    known = files.clusters_here()
    if cluster is None and len(known) == 1:
        return known[0]
    if cluster in known:
        return str(cluster)
    if not known:
        raise BadInput("--cluster", cluster, "no cluster is known here: `multispin cluster up`")
    raise BadInput("--cluster", cluster, f"choose one of those known here: {', '.join(known)}")


async def up(deployment: Deployment, wait_s: float, say: Say) -> list[str]:
    """The addresses of the directories. Raise PeerError naming what does not serve in time."""
    check_installed()
    name = deployment.cluster.name
    folder = folder_of(name)
    with files.alone(folder):
        address = await asyncio.to_thread(_find_ray, deployment, folder, say)
        async with _connected(address, name) as ray:
            files.begin(folder)  # after a `down` that was cut off
            await ray.apply(deployment)
            files.write(folder / FILE, Record(deployment, address))
            if wait_s == 0:
                return []
            return await _until_all_serve(ray, name, wait_s, say)


async def look(cluster: str) -> Overview:
    """What the supervisor knows; without one, what is known on this machine."""
    record = _record(cluster)
    if record is None:
        trouble = "this machine has no record of the cluster: `up` ran on another one"
    else:
        try:
            async with _connected(record.ray, cluster) as ray:
                return await ray.look(cluster)
        except MultispinError as error:
            trouble = str(error)
    return await _look_here(cluster, record, trouble)


async def drain(cluster: str, name: str) -> None:
    async with _connected(_needed(cluster).ray, cluster) as ray:
        await ray.drain(cluster, name)


async def scale(cluster: str, target: str, least: int, most: int) -> None:
    with files.alone(folder_of(cluster)):
        record = _needed(cluster)
        async with _connected(record.ray, cluster) as ray:
            deployment = (await ray.look(cluster)).deployment
            changed = _scaled(deployment, target, least, most)
            await ray.apply(changed)
        files.write(folder_of(cluster) / FILE, replace(record, deployment=changed))


async def down(cluster: str, say: Say) -> None:
    """Ends what can be ended from here; says what cannot."""
    folder = folder_of(cluster)
    with files.alone(folder):
        record = _record(cluster)
        if record is not None:
            limit_s = _drain_s(record.deployment) + GRACE_S
            try:
                async with _connected(record.ray, cluster) as ray:
                    await ray.stop(cluster, limit_s)
            except MultispinError as error:
                say(f"{error}; what runs on this machine is ended without it")
        files.end(folder)
        await asyncio.to_thread(_end_orphans, folder)
        await asyncio.to_thread(local_ray.stop_ray, folder)
    shutil.rmtree(folder, ignore_errors=True)


def told(overview: Overview) -> dict[str, Any]:
    """For `status --json`."""
    section = overview.deployment.cluster
    rows = [
        {
            **msgspec.structs.asdict(one.keeper),
            "condition": one.condition,
            "num_sessions": one.num_sessions,
            "goodput_tokens_per_s": one.goodput_tokens_per_s,
        }
        for one in overview.rows
    ]
    for one in rows:
        del one["digest"]
    return {
        "cluster": section.name,
        "degraded": overview.trouble or None,
        "directories": overview.directories,
        "num_wanted": overview.num_wanted,
        "replicas": rows,
    }


# --- Ray -----------------------------------------------------------------------------------------


def _find_ray(deployment: Deployment, folder: Path, say: Say) -> str:
    """The address of the Ray that is meant; a local one is started if that is."""
    given = deployment.cluster.ray
    if given not in (None, "local"):
        return str(given)
    if (mine := local_ray.running(folder)) is not None and mine.address:
        with contextlib.suppress(PeerError):
            check_reachable(mine.address)
            return mine.address
    if given is None and (running := _running_ray()) is not None:
        return running
    local_ray.stop_ray(folder)  # what is left of one whose head is lost
    say("starting a local Ray …")
    return local_ray.start_ray(folder).address


def _running_ray() -> str | None:
    """That of the environment, or one that was started on this machine, if it answers."""
    if address := os.environ.get("RAY_ADDRESS"):
        return address
    with contextlib.suppress(OSError, MultispinError):
        address = RUNNING_RAY.read_text().strip()
        check_reachable(address)
        return address
    return None


@contextlib.asynccontextmanager
async def _connected(address: str, cluster: str) -> AsyncIterator[Connection]:
    check_installed()
    folder = folder_of(cluster)
    mine = local_ray.running(folder)
    is_mine = mine is not None and mine.address == address
    token = str(local_ray.token_path(folder)) if is_mine else ""
    async with connected(address, cluster, folder, token) as connection:
        yield connection


async def _until_all_serve(ray: Connection, cluster: str, wait_s: float, say: Say) -> list[str]:
    end = time.monotonic() + wait_s
    said: set[str] = set()
    while True:
        overview = await ray.look(cluster)
        lacking = overview.lacking()
        if not lacking:
            return overview.directories
        for line in _news(overview):
            if line not in said:
                said.add(line)
                say(line)
        failed = [one for one in overview.rows if _is_hopeless(one)]
        waits = [one for one in overview.rows if not one.serves and one not in failed]
        if (failed and not waits) or time.monotonic() > end:
            raise PeerError(f"not all serve, and go on being tried: {'; '.join(lacking)}")
        await asyncio.sleep(LOOK_S)


def _is_hopeless(one: ReplicaRow) -> bool:
    keeper = one.keeper
    return keeper.condition == "failed" and one.is_current and keeper.num_failed >= HOPELESS


def _news(overview: Overview) -> list[str]:
    serve = [one for one in overview.rows if one.serves]
    failed = [one.keeper for one in overview.rows if one.keeper.condition == "failed"]
    return [
        f"{len(serve)} of {len(overview.rows)} replicas and directories serve",
        *(f"{keeper.name}: {keeper.why}" for keeper in failed),
    ]


# --- this machine alone --------------------------------------------------------------------------


async def _look_here(cluster: str, record: Record | None, trouble: str) -> Overview:
    """What the keepers' files name, and what those replicas say."""
    if record is None:
        raise PeerError(trouble)
    keepers = [_state_of(kept) for kept in files.kept_in(folder_of(cluster)) if kept.process.lives]
    watches = Watches(record.deployment.cluster)
    watches.watch(keepers)
    num = sum(keeper.target != DIRECTORY and keeper.server != "" for keeper in keepers)
    end = time.monotonic() + WATCH_S
    while len(watches.statuses()) < num and time.monotonic() < end:
        await asyncio.sleep(0.05)
    statuses = watches.statuses()
    await watches.close()
    rows = [row(keeper, statuses.get(keeper.name)) for keeper in keepers]
    return Overview(record.deployment, {}, rows, trouble)


def _state_of(kept: Kept) -> KeeperState:
    condition: Condition = "draining" if kept.is_draining else "up" if kept.server else "starting"
    return KeeperState(
        name=kept.name,
        target=kept.target,
        condition=condition,
        server=kept.server,
        pid=kept.process.pid,
        num_restarts=kept.num_restarts,
    )


def _end_orphans(folder: Path) -> None:
    """Who lives on without a keeper."""
    end_all([kept.process for kept in files.kept_in(folder)], GRACE_S)


# --- records -------------------------------------------------------------------------------------


def _record(cluster: str) -> Record | None:
    return files.read(folder_of(cluster) / FILE, Record)


def _needed(cluster: str) -> Record:
    record = _record(cluster)
    if record is None:
        raise BadInput("--cluster", cluster, "did not come up from this machine")
    return record


def _scaled(deployment: Deployment, name: str, least: int, most: int) -> Deployment:
    if deployment.target(name) is None:
        known = ", ".join(target.name for target in deployment.targets)
        raise BadInput("TARGET", name, f"choose one of {known}")
    targets = [
        replace(target, min_replicas=least, max_replicas=most) if target.name == name else target
        for target in deployment.targets
    ]
    return replace(deployment, targets=targets)


def _drain_s(deployment: Deployment) -> float:
    return max(target.serve.drain_s for target in deployment.targets)
