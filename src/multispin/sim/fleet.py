"""A fleet and its cluster at the level of texts: who is where, who writes how fast, what is lost.

Steps of STEP_S. A text opens on an idle device (Poisson), is placed on a replica by the rule of the
product (`control.replicas`), reads its prompt and writes at the planned steady state of its replica
and its radio cell (`steady`), until it ends (lengths are geometric). Devices move into a
neighbouring radio cell and reconnect; replicas fail, and are drained when `control.autoscale` has
them go: then a text is placed anew and reads again what it had, prompt and written tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from multispin.cell.cluster import Cluster, Target
from multispin.control.autoscale import AIM, Autoscaler, Scaling
from multispin.control.replicas import NOWHERE, place_all, replica_seeds, room_of
from multispin.sim.steady import SteadyState

Floats: TypeAlias = npt.NDArray[np.float64]
Ints: TypeAlias = npt.NDArray[np.int64]
Bools: TypeAlias = npt.NDArray[np.bool_]

STEP_S = 1.0
SCALE_S = 15.0  # between two looks at the number of replicas
DETECT_S = 10.0  # keep-alives find a dead replica within this
PATIENCE_S = 60.0  # a text that finds no place for so long is lost
NEW, FAILURE, DRAIN, MOVE = range(4)  # why a text does not write: it looks for a place, or moves


@dataclass(eq=False)
class Texts:
    """All texts of one target, in the order in which they were opened; all arrays [N]."""

    key: npt.NDArray[np.uint64]
    cell: Ints
    replica: Ints  # NOWHERE while it looks for a place
    prompt: Floats  # tokens
    written: Floats
    left: Floats
    since: Floats  # it was opened, or lost its place
    asks_at: Floats  # from when it looks for a place
    ready_at: Floats  # from when it writes
    cause: Ints

    def __len__(self) -> int:
        return len(self.key)

    def keep(self, mask: Bools) -> None:
        for f in fields(self):
            setattr(self, f.name, getattr(self, f.name)[mask])

    def add(self, more: Texts) -> None:
        for f in fields(self):
            setattr(self, f.name, np.concatenate([getattr(self, f.name), getattr(more, f.name)]))


def opened(
    key: npt.NDArray[np.uint64], cell: Ints, prompt: Ints, answer: Ints, now: float
) -> Texts:
    """Texts that look for their first place."""
    times = np.full(len(key), now)
    return Texts(
        key=key,
        cell=cell,
        replica=np.full(len(key), NOWHERE),
        prompt=prompt.astype(np.float64),
        written=np.zeros(len(key)),
        left=answer.astype(np.float64),
        since=times,
        asks_at=times.copy(),
        ready_at=times.copy(),
        cause=np.full(len(key), NEW),
    )


class Site:
    """The replicas of one target, and its texts."""

    def __init__(self, target: Target, num_cells: int, policy: str) -> None:
        section = target.section
        self.section = section
        self.band_hz = target.file.cell.bandwidth_hz
        self.round_trip_s = target.file.server.round_trip_s
        self.num_cells = num_cells
        nobody = np.empty(0, np.int64)
        self.texts = opened(nobody.astype(np.uint64), nobody, nobody, nobody, 0.0)
        self.up_at = np.full(section.most_replicas, np.inf)
        self.up_at[: section.min_replicas] = 0.0
        self.pauses: list[tuple[int, Floats]] = []  # why, and seconds without a token
        self.num_lost = self.num_ended = 0
        self._seeds = replica_seeds(f"{section.name}-{i}" for i in range(section.most_replicas))
        self._steady = SteadyState(target, policy)
        self._scaler = Autoscaler(Scaling(section.min_replicas, section.most_replicas))

    @property
    def num_present(self) -> int:
        """Replicas that serve or are about to."""
        return int(np.isfinite(self.up_at).sum())

    def displace(self, is_gone: Bools, now: float, cause: int, asks_at: float) -> None:
        """Texts on these replicas [R] look for another place."""
        texts = self.texts
        hit = (texts.replica != NOWHERE) & is_gone[texts.replica]
        texts.replica[hit] = NOWHERE
        texts.since[hit], texts.asks_at[hit], texts.cause[hit] = now, asks_at, cause

    def fail(self, now: float, is_failed: Bools) -> None:
        failed = is_failed & (self.up_at <= now)
        if failed.any():
            self.up_at[failed] = now + self.section.start_s
            self.displace(failed, now, FAILURE, now + DETECT_S)

    def scale(self, now: float) -> None:
        num = self.num_present
        load = len(self.texts) / (num * self.section.max_sessions * AIM)
        wanted = self._scaler.wanted(now, num, load)
        if wanted > num:
            absent = np.flatnonzero(np.isinf(self.up_at))[: wanted - num]
            self.up_at[absent] = now + self.section.start_s
        elif wanted < num:
            going = np.isfinite(self.up_at)
            going[np.flatnonzero(going)[:wanted]] = False
            self.up_at[going] = np.inf
            self.displace(going, now, DRAIN, now)

    def place(self, now: float) -> None:
        texts = self.texts
        asking = np.flatnonzero((texts.replica == NOWHERE) & (texts.asks_at <= now))
        if not len(asking):
            return
        taken = np.bincount(texts.replica[texts.replica != NOWHERE], minlength=len(self.up_at))
        places = np.where(self.up_at <= now, self.section.max_sessions, 0)
        room = room_of(taken, places, len(asking))
        found = place_all(texts.key[asking], self._seeds, room)
        placed, found = asking[found != NOWHERE], found[found != NOWHERE]
        texts.replica[placed] = found
        reads_s = (texts.prompt + texts.written)[placed] * self.section.prefill_s_per_token
        texts.ready_at[placed] = now + reads_s + self.round_trip_s
        pauses = texts.ready_at[placed] - texts.since[placed]
        for cause in (NEW, FAILURE, DRAIN):
            self.pauses.append((cause, pauses[texts.cause[placed] == cause]))
        self._give_up(now)

    def _give_up(self, now: float) -> None:
        texts = self.texts
        lost = (texts.replica == NOWHERE) & (now - texts.since > PATIENCE_S)
        if lost.any():
            self.num_lost += int(lost.sum())
            texts.keep(~lost)

    def move(self, now: float, draws: Floats, chance: float) -> None:
        """Some devices are in a neighbouring cell now, and connect anew."""
        texts = self.texts
        moving = draws < chance
        step = np.where(draws[moving] < chance / 2, 1, -1)
        texts.cell[moving] = (texts.cell[moving] + step) % self.num_cells
        writing = moving & (texts.replica != NOWHERE) & (texts.ready_at <= now)
        texts.ready_at[writing] = now + 2 * self.round_trip_s
        self.pauses.append((MOVE, np.full(int(writing.sum()), 2 * self.round_trip_s)))

    def write(self, now: float, num_in_cell: Ints) -> Floats:
        """A step: the tokens of each text that writes."""
        texts = self.texts
        writing = (texts.replica != NOWHERE) & (texts.ready_at < now + STEP_S)
        replica, cell = texts.replica[writing], texts.cell[writing]
        at_replica = np.bincount(replica, minlength=len(self.up_at))[replica]
        rate = self._steady.rate(at_replica, self.band_hz / num_in_cell[cell])
        seconds = np.minimum(now + STEP_S - texts.ready_at[writing], STEP_S)
        tokens = np.minimum(rate * seconds, texts.left[writing])
        texts.left[writing] -= tokens
        texts.written[writing] += tokens
        ended = texts.left <= 0
        self.num_ended += int(ended.sum())
        texts.keep(~ended)
        return np.asarray(tokens)

    def paused(self, cause: int) -> Floats:
        """Seconds without a token, each time."""
        return np.concatenate([[], *(pauses for why, pauses in self.pauses if why == cause)])


@dataclass(frozen=True, eq=False)
class FleetTrace:
    """What the steps brought, by step and target [T, S]."""

    sites: list[Site]
    tokens: Floats
    sessions: Ints  # texts that are open
    replicas: Ints


def simulate_fleet(
    cluster: Cluster,
    policy: str,
    seed: int,
    on_progress: Callable[[int, int], None] | None = None,
) -> FleetTrace:
    """``cluster.fleet.hours`` in steps of STEP_S. Raises BadInput for an unknown policy."""
    fleet = cluster.fleet
    arrivals, lengths, moves, failures = map(
        np.random.default_rng, np.random.SeedSequence(seed).spawn(4)
    )
    sites = [Site(target, fleet.radio_cells, policy) for target in cluster.targets]
    shares = np.array([site.section.share for site in sites])
    num_steps = max(1, round(fleet.hours * 3600 / STEP_S))
    tokens = np.zeros((num_steps, len(sites)))
    sessions = np.zeros((num_steps, len(sites)), np.int64)
    replicas = np.zeros((num_steps, len(sites)), np.int64)
    per_step = STEP_S / 3600
    for step in range(num_steps):
        now = step * STEP_S
        load = fleet.load(fleet.start_hour + now / 3600)
        idle = fleet.devices - sum(len(site.texts) for site in sites)
        mean = max(idle, 0) * fleet.texts_per_hour * load * per_step
        for index, (site, num) in enumerate(
            zip(sites, arrivals.poisson(mean * shares / shares.sum()), strict=True)
        ):
            site.fail(now, failures.random(len(site.up_at)) < fleet.failures_per_hour * per_step)
            if now % SCALE_S == 0:
                site.scale(now)
            site.texts.add(
                opened(
                    arrivals.integers(0, 2**64, num, np.uint64),
                    arrivals.integers(0, fleet.radio_cells, num),
                    lengths.geometric(1 / fleet.prompt_tokens, num),
                    lengths.geometric(1 / fleet.answer_tokens, num),
                    now,
                )
            )
            site.place(now)
            site.move(now, moves.random(len(site.texts)), fleet.moves_per_hour * per_step)
            sessions[step, index], replicas[step, index] = len(site.texts), site.num_present
        in_cell = sum(np.bincount(s.texts.cell, minlength=fleet.radio_cells) for s in sites)
        for index, site in enumerate(sites):
            tokens[step, index] = site.write(now, np.asarray(in_cell)).sum()
        if on_progress is not None:
            on_progress(step + 1, num_steps)
    return FleetTrace(sites, tokens, sessions, replicas)
