"""Many texts on replicas that are killed, drained, added and taken away, behind a directory.

Every session is a device that writes one text after another, all with the same beginning: as long
as nothing happens they are all written on one replica. Every text is compared with what an engine
that nothing happens to writes.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import statistics
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from multispin.errors import PeerError
from multispin.net.device import Device
from multispin.net.writing import Writing
from multispin.wire.frames import Open
from tests.core.harness import PROMPT, Writer, new_engine, new_server, request, run
from tests.faults.crowd import PATIENCE_S, bias, dial, wanted
from tests.faults.load import costs
from tests.faults.replicas import Cluster, Replica, cluster_of

SEEDS = (0, 1)  # of every session's texts, in turn
AT_ONCE = 50  # texts that the undisturbed engine writes together
BACK_S = 0.5  # until a keeper starts again what has died
RECENT_S = 15.0  # a drain takes less


def prompt_of(number: int) -> str:
    return f"Session {number}. {PROMPT}"


@cache
def undisturbed(num_sessions: int, longest: int) -> list[dict[int, list[int]]]:
    """The texts of each session by seed, as an engine that nothing happens to writes them."""
    texts: list[dict[int, list[int]]] = [{} for _ in range(num_sessions)]
    jobs = [(number, seed) for number in range(num_sessions) for seed in SEEDS]
    for begin in range(0, len(jobs), AT_ONCE):
        some = jobs[begin : begin + AT_ONCE]
        harness = new_server(new_engine(num_sequences=len(some), context_length=1024))
        writers = [
            Writer(harness, _order(number, seed, longest), None, f"{number} {seed}")
            for number, seed in some
        ]
        run(harness, writers)
        for (number, seed), writer in zip(some, writers, strict=True):
            texts[number][seed] = writer.session.committed
    return texts


def _order(number: int, seed: int, longest: int) -> Open:
    return request(seed=seed, prompt=prompt_of(number), max_tokens=longest, logit_bias=bias(seed))


@dataclass(frozen=True)
class Blow:
    kind: str  # "killed" or "drained"
    server: str
    at: float


@dataclass(frozen=True)
class Move:
    """A text went on elsewhere, or anew where it was: between two of its commits."""

    session: int
    before: str  # the replica's address
    after: str
    pause_s: float
    at: float


@dataclass(eq=False)
class Sessions:
    """``homes`` and ``num_begun`` [sessions]: where the last text began, and how many did."""

    directory: str
    num: int
    seed: int
    lengths: tuple[int, int]  # of the texts, tokens
    moves: list[Move] = field(default_factory=list)
    homes: list[str] = field(default_factory=list)
    num_begun: list[int] = field(default_factory=list)
    num_texts: int = 0
    num_tokens: int = 0
    num_refused: int = 0  # before they began
    num_moved_between: int = 0  # texts that began elsewhere than the one before
    ends: bool = False  # no more texts begin
    running: asyncio.Task[None] | None = None

    def __post_init__(self) -> None:
        self.homes, self.num_begun = [""] * self.num, [0] * self.num
        self._writes = [False] * self.num
        self._texts = undisturbed(self.num, self.lengths[1])

    def check(self) -> None:
        """Raise what went wrong with any text."""
        if self.running is not None and self.running.done():
            self.running.result()

    async def until(self, done: Callable[[], bool]) -> None:
        while not done():
            self.check()
            await asyncio.sleep(0.05)

    async def until_all_have_begun(self, num_more: int) -> None:
        """So many texts more than now."""
        before = list(self.num_begun)
        await self.until(
            lambda: all(n >= b + num_more for n, b in zip(self.num_begun, before, strict=True))
        )

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for number in range(self.num):
                group.create_task(self._session(number))

    async def _session(self, number: int) -> None:
        rng = random.Random(f"{self.seed} {number}")
        await asyncio.sleep(rng.uniform(0.0, 1.0))
        device = await dial(self.directory)
        try:
            while not self.ends:
                try:
                    await self._write(device, number, rng)
                except PeerError as error:  # no place for a new text now: its client tries again
                    if error.code != "overloaded" or self._writes[number]:
                        raise
                    self.num_refused += 1
                    await asyncio.sleep(error.retry_after_s)
        finally:
            await device.close()

    async def _write(self, device: Device, number: int, rng: random.Random) -> None:
        seed, max_tokens = rng.choice(SEEDS), rng.randrange(*self.lengths)
        order = wanted(seed, max_tokens)._replace(prompt=prompt_of(number))
        whole = self._texts[number][seed][:max_tokens]
        ids: list[int] = []
        text = ""
        async with device.write(order) as writing:
            self._writes[number] = True
            self._begun(number, _server(writing))
            async for committed in self._watched(number, writing):
                ids += committed.ids
                text += committed.text
                self.num_tokens += len(committed.ids)
        assert ids == whole == writing.session.committed, (number, seed, len(ids), len(whole))
        assert text == bytes(whole).decode("utf-8", "replace")
        self._writes[number] = False
        self.num_texts += 1

    def _begun(self, number: int, server: str) -> None:
        self.num_moved_between += self.homes[number] not in ("", server)
        self.homes[number] = server
        self.num_begun[number] += 1

    async def _watched(self, number: int, writing: Writing) -> AsyncIterator:
        """Its commits; where a text goes on in another place it is noted."""
        clock = asyncio.get_running_loop().time
        commits = aiter(writing)
        place, last = writing._home, clock()
        while True:
            try:
                async with asyncio.timeout(PATIENCE_S):
                    committed = await anext(commits)
            except StopAsyncIteration:
                return
            if writing._home is not place:
                before, after = place.server, writing._home.server
                self.moves.append(Move(number, before, after, clock() - last, clock()))
                self.homes[number] = after
                place = writing._home
            last = clock()
            yield committed


def _server(writing: Writing) -> str:
    return writing._home.server


@contextlib.asynccontextmanager
async def sessions_on(
    cluster: Cluster, num: int, seed: int, lengths: tuple[int, int]
) -> AsyncIterator[Sessions]:
    """They are there as long as this context; at its end all write their last text to its end."""
    they = Sessions(cluster.directory, num, seed, lengths)
    they.running = asyncio.create_task(they.run())
    try:
        yield they
        they.ends = True
        await they.running
    finally:
        they.running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await they.running


# --- a calm day ----------------------------------------------------------------------------------


async def calm(
    num_sessions: int, num_texts: int, seed: int, pass_s: float, lengths: tuple[int, int]
) -> dict[str, object]:
    """Nothing fails: who keeps its replica? Then a fourth replica comes: who moves to it?"""
    with costs(pass_s) as path, tempfile.TemporaryDirectory() as folder:
        async with cluster_of(3, Path(folder), path, 2 * num_sessions) as cluster:
            descriptors = cluster.directory_descriptors
            async with sessions_on(cluster, num_sessions, seed, lengths) as they:
                await they.until_all_have_begun(1)
                homes = list(they.homes)
                await they.until_all_have_begun(num_texts)
                kept = [a == b for a, b in zip(homes, they.homes, strict=True)]
                changes = len(they.moves) + they.num_moved_between
                spread = Counter(they.homes)
                before = list(they.homes)
                more = cluster.add()
                await cluster.start(more)
                await they.until(lambda: more.server in they.homes)  # the directory knows it
                await they.until_all_have_begun(2)
                moved = [a != b for a, b in zip(before, they.homes, strict=True)]
                to_it = they.homes.count(more.server)
                in_midst = len(they.moves)
            left = await cluster.sessions_left()
            descriptors_left = await cluster.descriptors_left(
                descriptors + 1
            )  # one more is watched
    return {
        "sessions": num_sessions,
        "texts": they.num_texts,
        "tokens": they.num_tokens,
        "on_each_replica": sorted(spread.values()),
        "share_that_kept_its_replica": statistics.fmean(kept),
        "changes_while_nothing_failed": changes,
        "share_moved_by_a_fourth": statistics.fmean(moved),
        "share_on_the_fourth": to_it / num_sessions,
        "texts_moved_in_their_midst": in_midst,
        "sessions_left": left,
        "directory_descriptors_left": descriptors_left,
    }


# --- blows ---------------------------------------------------------------------------------------


@dataclass(eq=False)
class Keeper:
    """Strikes, and starts again what has died."""

    cluster: Cluster
    rng: random.Random
    blows: list[Blow] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)
    _drained: set[str] = field(default_factory=set)  # at present
    _extra: list[Replica] = field(default_factory=list)
    starts_s: list[float] = field(default_factory=list)

    def check(self) -> None:
        for task in self._tasks:
            if task.done():
                task.result()

    async def all_done(self) -> None:
        """Whoever should be there serves."""
        await asyncio.gather(*self._tasks)

    def num_steady(self) -> int:
        """Replicas that serve and are to go on."""
        return len(self._steady())

    def kill(self) -> None:
        replica = self.rng.choice(self._steady())
        self._strike("killed", replica)
        self.cluster.kill(replica)
        self._do(self._restart(replica))

    def drain(self) -> None:
        self._do(self._drain(self.rng.choice(self._steady()), comes_back=True))

    def scale_up(self) -> None:
        self.counts["added"] += 1
        self._extra.append(self.cluster.add())
        self._do(self._restart(self._extra[-1]))

    def scale_down(self) -> None:
        if going := [replica for replica in self._steady() if replica in self._extra]:
            self.counts["taken away"] += 1
            self._extra.remove(going[0])
            self._do(self._drain(going[0], comes_back=False))

    def cause(self, move: Move) -> str:
        """The last blow to where the text was; "else" if there was none of late."""
        since = move.at - move.pause_s - RECENT_S
        kinds = [
            blow.kind
            for blow in self.blows
            if blow.server == move.before and since < blow.at <= move.at
        ]
        return kinds[-1] if kinds else "else"

    def _steady(self) -> list[Replica]:
        return [r for r in self.cluster.running if r.is_listed and r.name not in self._drained]

    def _strike(self, kind: str, replica: Replica) -> None:
        self.counts[kind] += 1
        now = asyncio.get_running_loop().time()
        self.blows.append(Blow(kind, replica.server, now))

    async def _drain(self, replica: Replica, *, comes_back: bool) -> None:
        self._drained.add(replica.name)
        self._strike("drained", replica)
        await self.cluster.drain(replica)
        self._drained.discard(replica.name)
        if comes_back:
            await self._restart(replica)
        else:
            self.cluster.remove(replica)

    async def _restart(self, replica: Replica) -> None:
        await asyncio.sleep(BACK_S)
        began = asyncio.get_running_loop().time()
        await self.cluster.start(replica)
        self.starts_s.append(asyncio.get_running_loop().time() - began)

    def _do(self, work: Coroutine[None, None, None]) -> None:
        self._tasks.append(asyncio.create_task(work))


async def blows(
    num_sessions: int,
    num_kills: int,
    seed: int,
    pass_s: float,
    lengths: tuple[int, int],
    kill_each_s: float,
) -> dict[str, object]:
    """A replica is killed every ``kill_each_s``, half-way between one is drained, added or taken
    away, in turn; all that as soon as another one serves: a slow machine strikes more rarely."""
    with costs(pass_s) as path, tempfile.TemporaryDirectory() as folder:
        async with cluster_of(3, Path(folder), path, 2 * num_sessions) as cluster:
            descriptors = cluster.directory_descriptors - 3
            keeper = Keeper(cluster, random.Random(seed))
            between = itertools.cycle(
                (keeper.drain, keeper.scale_up, keeper.drain, keeper.scale_down)
            )
            async with sessions_on(cluster, num_sessions, seed, lengths) as they:
                await they.until_all_have_begun(1)
                began = asyncio.get_running_loop().time()
                for _ in range(num_kills):
                    for strike in (next(between), keeper.kill):
                        await asyncio.sleep(kill_each_s / 2)
                        await they.until(lambda: keeper.num_steady() > 1)
                        strike()
                        keeper.check()
                seconds = asyncio.get_running_loop().time() - began
                await keeper.all_done()
            await cluster.until_all_serve()
            left = await cluster.sessions_left()
            watched = sum(replica.is_listed for replica in cluster.replicas.values())
            descriptors_left = await cluster.descriptors_left(descriptors + watched)
    pauses = {
        kind: [move.pause_s for move in they.moves if keeper.cause(move) == kind]
        for kind in ("killed", "drained", "else")
    }
    return {
        "sessions": num_sessions,
        "seconds": seconds,
        "blows": dict(keeper.counts),
        "texts": they.num_texts,
        "refused_before_they_began": they.num_refused,
        "tokens": they.num_tokens,
        "start_s_median": statistics.median(keeper.starts_s),
        **{f"pause_s_{kind}": spread_of(each) for kind, each in pauses.items()},
        "sessions_left": left,
        "directory_descriptors_left": descriptors_left,
    }


def spread_of(values: Sequence[float]) -> dict[str, float]:
    if len(values) < 2:
        return {"num": len(values)}
    percentiles = statistics.quantiles(values, n=20)
    return {
        "num": len(values),
        "median": round(percentiles[9], 3),
        "p95": round(percentiles[18], 3),
        "max": round(max(values), 3),
    }
