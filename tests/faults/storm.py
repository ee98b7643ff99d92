"""Sessions in a storm: a server that is killed, devices that are killed, clocks that jump, and
between them a relay that loses, delays, doubles and reorders what it should carry.

The server is a whole one (uvicorn, sockets, the n-gram model), in this process, so that its insides
can be looked at when the storm is over; killed means that its links break and nobody answers. For
`kill -9` of a server's process see load.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from multispin.api.app import ServerState, create_app
from multispin.api.serving import address_of, bind, serve_app
from multispin.core.batch import BatchLimits
from multispin.core.detached import RESUME_S
from multispin.core.limits import ServerLimits
from multispin.net.device import Device
from multispin.net.drafting import DrafterOptions, connect
from multispin.net.engine_process import LocalEngine
from multispin.net.server import EdgeServer
from multispin.types import Mode
from tests.core.harness import new_engine
from tests.faults.crowd import NUM_TEXTS, PATIENCE_S, expected, wanted
from tests.faults.proxy import Act, Deed, Message, Proxy, Script
from tests.process import num_descriptors

NOWHERE = "127.0.0.1:9"  # the port of discard, which nobody serves
ACTS = (Act.CUT_BEFORE, Act.CUT_INSIDE, Act.CUT_BEHIND, Act.TWICE, Act.SWAP)
LONGEST = 100  # tokens of a text
LATENCY_S = 2.0
RETRY_S = 0.2  # of TCP: a lost packet is sent again after that, then after twice that ...
LOSS = 0.3  # ... while each is lost with this probability
JUMPS_S = (-5.0, 3.0, 60.0, RESUME_S + 1, 3600.0)


class JumpingClock:
    """Monotonic, but for its jumps."""

    offset_s = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.offset_s


@dataclass(frozen=True)
class Weather:
    """Probabilities for each message of each way, and seconds between two blows to everybody."""

    fault: float = 0.02
    late: float = 0.001  # LATENCY_S
    lossy: float = 0.005  # a stall, as loss would cause
    silence: float = 0.001  # half-open
    blow_each_s: float = 1.0  # of the server, of a device, a jump of a clock: one in turn


@dataclass
class Storm:
    """The proxy, the server behind it at the time, and what has happened."""

    weather: Weather
    seed: int
    mode: Mode
    clocks: list[JumpingClock] = field(
        default_factory=lambda: [JumpingClock()]
    )  # devices', server's
    blows: Counter[str] = field(default_factory=Counter)
    num_texts: int = 0
    num_tokens: int = 0
    left_behind: list[str] = field(default_factory=list)
    _servers: list[asyncio.Task[None]] = field(default_factory=list)

    def script_of(self, number: int) -> Script:
        rng, weather = random.Random(f"{self.seed} {number}"), self.weather

        def script(message: Message) -> Deed:
            if rng.random() < weather.fault:
                return Deed(rng.choice(ACTS))
            if rng.random() < weather.silence:
                return Deed(Act.SILENCE)
            if rng.random() < weather.late:
                return Deed(late_s=LATENCY_S)
            if rng.random() < weather.lossy:
                return Deed(late_s=_stall_s(rng))
            return Deed()

        return script

    # --- the server ----------------------------------------------------------------------------

    async def run(self, num_devices: int, num_texts: int) -> None:
        """Until every device has written so many texts, each compared with the undisturbed one."""
        async with Proxy(NOWHERE, self.script_of) as proxy:
            self.proxy = proxy
            self.end = await self.start_server()
            writing = asyncio.create_task(self._write_all(num_devices, num_texts))
            rng = random.Random(f"{self.seed} blows")
            try:
                while not writing.done():
                    await asyncio.wait({writing}, timeout=self.weather.blow_each_s)
                    if not writing.done():
                        await self._blow(rng)
                await writing
            finally:
                writing.cancel()
                await asyncio.gather(writing, return_exceptions=True)
            await self.end_server(self.end)

    async def start_server(self) -> asyncio.Event:
        """At the proxy's other end; the event ends it."""
        end = asyncio.Event()
        ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._servers.append(asyncio.create_task(self._serve(end, ready)))
        self.proxy.target = await ready
        return end

    async def end_server(self, end: asyncio.Event) -> None:
        """The last one; wait for all."""
        self.proxy.target = NOWHERE
        end.set()
        await asyncio.gather(*self._servers)

    async def _serve(self, end: asyncio.Event, ready: asyncio.Future[str]) -> None:
        engine = LocalEngine(new_engine(num_sequences=8))
        limits = ServerLimits(batch=BatchLimits(max_rows=64, mode=self.mode))
        clock = JumpingClock()
        self.clocks = [self.clocks[0], clock]
        server = EdgeServer(engine, limits, clock=clock)
        listening = bind("127.0.0.1", 0)
        running = asyncio.create_task(server.run())
        serving = asyncio.create_task(
            serve_app(create_app(ServerState(server)), listening, running)
        )
        await asyncio.sleep(0)
        ready.set_result(address_of(listening))
        await end.wait()
        assert not running.done(), running.exception()
        self.left_behind += await left_behind(server, clock)
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await serving

    async def _blow(self, rng: random.Random) -> None:
        """One more fault of the large kind."""
        match rng.randrange(4):
            case 0:
                self.blows["server killed"] += 1
                self.proxy.target = NOWHERE
                self.proxy.cut()
                self.end.set()
                await asyncio.sleep(rng.uniform(0.0, 0.3))
                self.end = await self.start_server()
            case 1:
                self.blows["device killed"] += 1
                rng.choice(self._tasks).cancel("killed")
            case 2:
                self.blows["all links cut"] += 1
                self.proxy.cut()
            case _:
                self.blows["clock jumped"] += 1
                rng.choice(self.clocks).offset_s += rng.choice(JUMPS_S)

    # --- the devices ---------------------------------------------------------------------------

    async def _write_all(self, num_devices: int, num_texts: int) -> None:
        self._tasks = [
            asyncio.create_task(self._device(number, num_texts)) for number in range(num_devices)
        ]
        await asyncio.gather(*self._tasks)

    async def _device(self, number: int, num_texts: int) -> None:
        """A device; when it is killed, the next one takes its place and does what is left."""
        rng = random.Random(f"{self.seed} device {number}")
        done = 0
        while done < num_texts:
            try:
                async with self._dialled(number, rng) as device:
                    while done < num_texts:
                        await self._write(device, rng)
                        done += 1
            except asyncio.CancelledError as killed:
                if killed.args != ("killed",):
                    raise
                asyncio.current_task().uncancel()  # type: ignore[union-attr]

    @asynccontextmanager
    async def _dialled(self, number: int, rng: random.Random) -> AsyncIterator[Device]:
        kind = "none" if number % 5 == 4 else "lookup"
        device = await self._connect(kind, rng)
        device.clock = self.clocks[0]
        try:
            yield device
        except asyncio.CancelledError:
            transport = device.line._link._transport  # it dies without a word
            transport._socket.transport.abort()  # type: ignore[attr-defined]
            raise
        finally:
            await device.close()

    async def _connect(self, kind: str, rng: random.Random) -> Device:
        """A device that is being started tries until it is in."""
        for attempt in range(200):
            with contextlib.suppress(Exception):
                return await connect(self.proxy.address, DrafterOptions(kind), rng=rng)
            await asyncio.sleep(min(0.02 * attempt, 0.3))
        raise AssertionError("a device cannot connect any more")

    async def _write(self, device: Device, rng: random.Random) -> None:
        seed, max_tokens = rng.randrange(NUM_TEXTS), rng.randrange(30, LONGEST)
        whole = expected(seed, LONGEST)[:max_tokens]
        ids: list[int] = []
        text = ""
        async with asyncio.timeout(PATIENCE_S), device.write(wanted(seed, max_tokens)) as writing:
            async for committed in writing:
                assert not committed.provisional
                ids += committed.ids
                text += committed.text
        assert ids == whole == writing.session.committed, (len(ids), len(whole))
        assert text == bytes(whole).decode("utf-8", "replace")
        self.num_texts += 1
        self.num_tokens += len(ids)

    @property
    def num_faults(self) -> int:
        return self.proxy.done.total() + self.proxy.num_late + self.blows.total()

    def figures(self) -> dict[str, object]:
        done = {act.value: count for act, count in self.proxy.done.items()}
        return {
            "texts": self.num_texts,
            "tokens": self.num_tokens,
            "faults": self.num_faults,
            "links": self.proxy.num_links,
            "of_these": {**done, "late": self.proxy.num_late, **self.blows},
            "left_behind": self.left_behind,
        }


def _stall_s(rng: random.Random) -> float:
    """How long TCP stands still when a message is lost, once or several times in a row."""
    stall_s, retry_s = RETRY_S, RETRY_S
    while rng.random() < LOSS:
        retry_s *= 2
        stall_s += retry_s
    return min(stall_s, 3.0)


async def left_behind(server: EdgeServer, clock: JumpingClock) -> list[str]:
    """What a server still holds when all its links are gone and nobody has come back in time."""
    core, found = server.core, []
    for _ in range(300):
        await asyncio.sleep(0.01)
        if not server.links and core.num_sessions == 0:
            break
    clock.offset_s += RESUME_S + 3600.0  # more than all its jumps back
    placement = core._placement
    for name, number in (
        ("links", len(server.links)),
        ("sessions", core.num_sessions),
        ("detached", core.num_detached),
        ("placed", len(placement.sessions)),
        ("calibrations", len(core._reception._calibrations)),
    ):
        if number:
            found.append(f"{number} {name}")
    return found


def weather_storm(
    num_devices: int, num_texts: int, seed: int, mode: Mode, weather: Weather = Weather()
) -> dict[str, object]:
    """The whole of it; the figures."""
    for text in range(NUM_TEXTS):
        expected(text, LONGEST)
    descriptors = num_descriptors()
    storm = Storm(weather, seed, mode)
    began = time.monotonic()
    asyncio.run(storm.run(num_devices, num_texts))
    figures = storm.figures()
    return {
        **figures,
        "seconds": time.monotonic() - began,
        "descriptors_left": num_descriptors() - descriptors,
    }
