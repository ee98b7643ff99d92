"""The cluster on Ray: keepers and the supervisor as named, detached actors.

Only this file imports Ray, and only the driver's process and Ray's own import this file. Everything
that is known of a cluster is in its actors, by their names, and in the supervisor's arguments:
whoever restarts finds all of it there.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
import time
import traceback
from collections.abc import Iterator
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError
from ray.util import list_named_actors

from multispin.cell.cluster_sections import ResourcesSection
from multispin.cell.deployment import DIRECTORY, Deployment
from multispin.cell.replica_list import ReplicaList
from multispin.cluster.charge import Charge
from multispin.cluster.folder import folder_of
from multispin.cluster.keeper import Keeper, KeeperState
from multispin.cluster.overview import Overview
from multispin.cluster.supervising import Supervising
from multispin.errors import BadInput, PeerError
from multispin.net.logs import log_to_stderr

KEEPER, SUPERVISOR = "keeper:", "supervisor"
HEAD = "node:__internal_head__"  # the resource that Ray gives to the head alone
STEP_S = 0.2  # of a keeper
ANSWER_S = 1.0  # keepers get so long to answer the supervisor
LONG_S = 20.0  # the supervisor, a command: on a busy machine it takes seconds to start
NOT_PLACED = "Ray has not placed it yet, or has not as much free as it asks for"


def namespace_of(cluster: str) -> str:
    return f"multispin-{cluster}"


# --- actors --------------------------------------------------------------------------------------


class KeeperActor:
    def __init__(self, charge: Charge, cluster: str) -> None:
        node = ray.util.get_node_ip_address()
        self._keeper = Keeper(charge, folder_of(cluster), node, time.monotonic)
        self._keeper.step()  # what it has found is known before anybody asks
        threading.Thread(target=self._run, daemon=True).start()

    def state(self) -> KeeperState:
        return self._keeper.state()

    def drain(self) -> None:
        self._keeper.drain()

    def list_replicas(self, replicas: ReplicaList) -> None:
        self._keeper.list_replicas(replicas)

    def _run(self) -> None:
        with _ending_the_process():
            while True:
                self._keeper.step()
                time.sleep(STEP_S)


class SupervisorActor:
    def __init__(self, deployment: Deployment) -> None:
        log_to_stderr("text", "info")  # into Ray's log of this actor
        self._deployment = deployment
        self._started = threading.Event()
        threading.Thread(target=self._run, daemon=True).start()

    async def _supervise(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._supervising = Supervising(self._deployment, RayFleet(self._deployment.cluster.name))
        await self._supervising.step()
        self._started.set()
        await self._supervising.run()

    def overview(self) -> Overview:
        self._started.wait()

        async def look() -> Overview:
            return self._supervising.overview()

        return asyncio.run_coroutine_threadsafe(look(), self._loop).result()

    def _run(self) -> None:
        with _ending_the_process():
            asyncio.run(self._supervise())


@contextlib.contextmanager
def _ending_the_process() -> Iterator[None]:
    """What goes wrong in an actor's own thread ends the actor, and Ray starts it again."""
    try:
        yield
    finally:
        traceback.print_exc()
        os._exit(1)


# --- the supervisor's hands ----------------------------------------------------------------------


class RayFleet:
    """The keepers of a cluster. One that has answered before and does not now is as it was."""

    def __init__(self, cluster: str) -> None:
        self._cluster = cluster
        self._namespace = namespace_of(cluster)
        self._asked: dict[str, Any] = {}
        self._states: dict[str, KeeperState] = {}
        self.head = head_address()

    def keepers(self) -> dict[str, KeeperState]:
        names = keeper_names(self._cluster)
        for name in [name for name in self._states if name not in names]:
            del self._states[name]
        self._asked = {name: ref for name, ref in self._asked.items() if name in names}
        for name in names:
            if name not in self._asked and (keeper := self._keeper(name)) is not None:
                self._asked[name] = keeper.state.remote()
        asked = self._asked
        ready: list[Any] = []
        if asked:
            ready, _ = ray.wait(list(asked.values()), num_returns=len(asked), timeout=ANSWER_S)
        has_answered = set(ready)
        for name in [name for name, ref in asked.items() if ref in has_answered]:
            try:
                self._states[name] = ray.get(asked.pop(name))
            except RayActorError:  # Ray restarts it, and what it keeps goes on
                continue
        return {name: self._states.get(name) or _waiting(name) for name in names}

    def start(self, charge: Charge) -> None:
        options: dict[str, Any] = {"num_cpus": charge.cpus, "num_gpus": charge.gpus}
        if charge.memory_bytes:
            options["memory"] = charge.memory_bytes
        if charge.name == f"{DIRECTORY}-0":
            options["resources"] = {HEAD: 0.001}
        else:
            options["scheduling_strategy"] = "SPREAD"
        actor = ray.remote(KeeperActor).options(
            **_kept_for_ever(f"{KEEPER}{charge.name}", self._namespace), **options
        )
        actor.remote(charge, self._cluster)

    def drain(self, name: str) -> None:
        if (keeper := self._keeper(name)) is not None:
            keeper.drain.remote()

    def end(self, name: str) -> None:
        if (keeper := self._keeper(name)) is not None:
            ray.kill(keeper, no_restart=True)

    def list_replicas(self, name: str, replicas: ReplicaList) -> None:
        if (keeper := self._keeper(name)) is not None:
            keeper.list_replicas.remote(replicas)

    def _keeper(self, name: str) -> Any:
        return actor(self._cluster, f"{KEEPER}{name}")


def _waiting(name: str) -> KeeperState:
    return KeeperState(name, name.rpartition("-")[0], "waiting", why=NOT_PLACED)


def keeper_names(cluster: str) -> list[str]:
    actors: Any = list_named_actors(all_namespaces=True)
    names = [one["name"] for one in actors if one["namespace"] == namespace_of(cluster)]
    return sorted(name.removeprefix(KEEPER) for name in names if name.startswith(KEEPER))


def actor(cluster: str, name: str) -> Any:
    """None if there is none."""
    try:
        return ray.get_actor(name, namespace=namespace_of(cluster))
    except ValueError:
        return None


def head_address() -> str:
    nodes = [node for node in ray.nodes() if node["Alive"]]
    head = next((node for node in nodes if HEAD in node["Resources"]), nodes[0])
    return str(head["NodeManagerAddress"])


def _kept_for_ever(name: str, namespace: str) -> dict[str, Any]:
    return {"name": name, "namespace": namespace, "lifetime": "detached", "max_restarts": -1}


# --- commands ------------------------------------------------------------------------------------


def apply(deployment: Deployment) -> None:
    """Have a supervisor for this deployment, in the place of another one; what is kept, stays.

    It is at work when this returns: whoever called may be gone at once.
    """
    check_resources(deployment)
    name = deployment.cluster.name
    end_supervisor(name)
    fleet = RayFleet(name)
    for keeper in fleet.keepers().values():
        if keeper.condition == "waiting":  # perhaps it asks for less now
            fleet.end(keeper.name)
    options = _kept_for_ever(SUPERVISOR, namespace_of(name))
    end = time.monotonic() + LONG_S
    while True:
        try:
            ray.remote(SupervisorActor).options(num_cpus=0, **options).remote(deployment)
            break
        except ValueError:  # the old one still has the name
            if time.monotonic() > end:
                raise PeerError(
                    f"another `multispin cluster up` of {name} is at work: wait for its end"
                ) from None
            time.sleep(0.1)
    look(name)


def end_supervisor(cluster: str) -> None:
    if (old := actor(cluster, SUPERVISOR)) is not None:
        ray.kill(old, no_restart=True)


def look(cluster: str) -> Overview:
    """Raise PeerError if there is no supervisor that answers."""
    supervisor = actor(cluster, SUPERVISOR)
    if supervisor is None:
        raise PeerError(f"no cluster {cluster} runs on this Ray: `multispin cluster up` starts it")
    try:
        overview: Overview = ray.get(supervisor.overview.remote(), timeout=LONG_S)
    except (GetTimeoutError, RayActorError):
        raise PeerError("the supervisor does not answer; Ray restarts it if it can") from None
    return overview


def drain(cluster: str, name: str) -> None:
    """Begin. Raise BadInput if there is no such replica, PeerError if its keeper does not hear."""
    names = keeper_names(cluster)
    if name not in names:
        raise BadInput("NAME", name, f"choose one of {', '.join(names) or '(none)'}")
    keeper = actor(cluster, f"{KEEPER}{name}")
    try:
        ray.get(keeper.drain.remote(), timeout=LONG_S)
    except (GetTimeoutError, RayActorError):
        raise PeerError(
            f"the keeper of {name} does not answer; Ray restarts it if it can"
        ) from None


def stop(cluster: str, limit_s: float) -> None:
    """Everything drains at the same time, and is gone."""
    end_supervisor(cluster)
    fleet = RayFleet(cluster)
    end = time.monotonic() + limit_s
    keepers = fleet.keepers()
    while keepers and time.monotonic() < end:
        for keeper in keepers.values():
            if keeper.condition in ("ended", "waiting"):
                fleet.end(keeper.name)
            elif keeper.condition != "draining":
                fleet.drain(keeper.name)
        time.sleep(STEP_S)
        keepers = fleet.keepers()
    for name in keepers:
        fleet.end(name)
    while keeper_names(cluster) and time.monotonic() < end + LONG_S:
        time.sleep(STEP_S)


def check_resources(deployment: Deployment) -> None:
    """Raise BadInput for a target whose least number of replicas has no place in this cluster."""
    nodes = [node for node in ray.nodes() if node["Alive"]]
    if deployment.cluster.is_local and len({node["NodeManagerAddress"] for node in nodes}) > 1:
        raise BadInput(
            "cluster.host",
            deployment.cluster.host,
            f"is reached on one machine alone, and this Ray has {len(nodes)}: take 0.0.0.0",
        )
    asked: dict[str, float] = {}
    for target in deployment.targets:
        for kind, (unit, amount) in _amounts(target.resources).items():
            there = [node["Resources"].get(kind, 0.0) for node in nodes]
            asked[kind] = asked.get(kind, 0.0) + target.min_replicas * amount
            field = f"target {target.name!r}.resources"
            if amount > max(there, default=0.0):
                most = _shown(kind, max(there, default=0.0))
                remedy = f"no machine of this Ray has as much: the largest has {most} {unit}"
                raise BadInput(field, f"{_shown(kind, amount)} {unit}", remedy)
            if asked[kind] > sum(there):
                raise BadInput(
                    field,
                    f"{target.min_replicas} x {_shown(kind, amount)} {unit}",
                    f"this Ray has {_shown(kind, sum(there))} {unit} for all, and with the targets "
                    f"before it {_shown(kind, asked[kind])} are asked for: take fewer replicas, or "
                    "add machines",
                )


def _amounts(resources: ResourcesSection) -> dict[str, tuple[str, float]]:
    """Of what is asked for: what Ray calls it, what we call it, how much of it, in Ray's unit."""
    known = {
        "CPU": ("CPUs", resources.cpus),
        "GPU": ("GPUs", resources.gpus),
        "memory": ("GB of memory", resources.memory_gb * 1e9),
    }
    return {kind: amount for kind, amount in known.items() if amount[1] > 0}


def _shown(kind: str, amount: float) -> str:
    return f"{amount / 1e9 if kind == 'memory' else amount:.4g}"


def connect(address: str, cluster: str) -> None:
    """Raise PeerError, saying what to do, for the mistakes that Ray knows."""
    try:
        ray.init(
            address=address,
            namespace=namespace_of(cluster),
            log_to_driver=False,
            logging_level=logging.ERROR,
            configure_logging=False,
        )
    except RuntimeError as error:  # of these, Ray has two that a person can cure
        told = " ".join(str(error).split())
        raise PeerError(f"Ray at {address}: {told}", code="unreachable") from None
