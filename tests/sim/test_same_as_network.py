"""The simulator tells the truth: net/ and sim/ make the same of one cell, frame by frame.

Net code runs as it is (EdgeServer, Device, DeviceLink), on an event loop with a virtual clock and
over links of known delay and rate. Every frame that arrives anywhere is compared with the
simulator's: what was drafted and when it was sent, what was judged, accepted, granted and when.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, get_args

import pytest

from multispin.core.batch import BatchLimits
from multispin.core.controller import ControlSettings
from multispin.core.cost import CostEngine, Costs
from multispin.core.drafter import Drafted, Drafter, ModelDrafter
from multispin.core.engine import Batch, StepResult
from multispin.core.limits import ServerLimits
from multispin.lm.ngram import NgramModel
from multispin.net.device import Device, Request
from multispin.net.line import Line
from multispin.net.link import DeviceLink
from multispin.net.server import EdgeServer
from multispin.net.transport import MemoryServerTransport
from multispin.sim.events import Stopwatch
from multispin.sim.seat import Text, Told, VirtualDevice
from multispin.sim.virtual_cell import VirtualCell
from multispin.types import Mode, SamplingParams, TokenIds
from multispin.wire import frames
from multispin.wire.frames import TRANSPORT_BITS, Draft, Frame, Open, Verdict
from tests.core.harness import new_engine
from tests.sim.virtual_loop import VirtualLoop

SECONDS = 12.0
PROMPTS = ("The phone drafts and the server ", "Once upon a time")
PARAMS = SamplingParams(temperature=0.8)
COSTS = Costs(fixed_s=0.031, per_sequence_s=0.0007, per_row_s=0.0019)


class Kind(NamedTuple):
    """A device: the target is of order 4."""

    order: int | None  # of its drafter; None without one
    draft_s_per_token: float
    round_trip_s: float
    glances: bool = False  # has every third token for nothing

    @property
    def draft_length(self) -> int:
        return 12 if self.order else 0


KINDS = (
    Kind(3, 0.0201317, 0.0113),
    Kind(4, 0.0040713, 0.0209),
    Kind(4, 0.0009371, 0.0037),  # several tokens to a frame
    Kind(2, 0.0102171, 0.0511, glances=True),
    Kind(None, 0.0, 0.0307),
)


class Seen(NamedTuple):
    at_s: float
    frame: Frame


@dataclass
class Log:
    """What arrives: from each device at the server, and the other way."""

    up: list[list[Seen]] = field(default_factory=lambda: [[] for _ in KINDS])
    down: list[list[Seen]] = field(default_factory=lambda: [[] for _ in KINDS])
    texts: list[list[list[int]]] = field(default_factory=lambda: [[] for _ in KINDS])


class Scene(NamedTuple):
    mode: Mode
    control: ControlSettings
    link_bits_per_s: float = math.inf

    @property
    def limits(self) -> ServerLimits:
        # The slow device misses rounds.
        batch = BatchLimits(max_rows=13 * len(KINDS), mode=self.mode, round_timeout_s=0.2)
        return ServerLimits(max_draft_length=12, batch=batch, control=self.control)


class Glancing(ModelDrafter):
    """Says of some tokens that it looked them up."""

    def draft(self, *arguments) -> Drafted:  # type: ignore[no-untyped-def,override]
        drafted = super().draft(*arguments)
        return drafted._replace(is_lookup=len(arguments[1]) % 3 == 0)


def drafter(kind: Kind) -> Drafter | None:
    if kind.order is None:
        return None
    model = NgramModel.from_text(order=kind.order, num_sequences=1, context_length=512)
    found = Glancing(model) if kind.glances else ModelDrafter(model)
    found.is_light = True  # a thread would run on a real clock
    return found


def engine() -> CostEngine:
    """One sequence too few: somebody waits for a place."""
    watch = Stopwatch()
    return CostEngine(new_engine(len(KINDS) - 1), COSTS, "ngram", clock=watch, sleep=watch.sleep)


def request(kind: Kind, number: int) -> Request:
    prompt = PROMPTS[number % len(PROMPTS)]
    return Request(prompt, PARAMS, "coupled", number, 40, kind.draft_length, [])


def draft_bits(draft: Draft) -> int:
    return 8 * len(frames.encode(draft)) + TRANSPORT_BITS


# --- the simulator ------------------------------------------------------------------------------


def simulated(scene: Scene) -> Log:
    log, target = Log(), engine()

    def device(index: int, kind: Kind) -> VirtualDevice:
        own = drafter(kind)

        def write(number: int) -> Text:
            if own is not None:
                own.free(0)
            wanted = request(kind, number)._asdict()
            del wanted["provisional"], wanted["wish"]  # which others are to read
            has_text = own is None or own.vocabulary is None
            message = Open(session=number, **wanted, wants_text=has_text)
            return Text(message, target.tokenize(message.prompt, parse_special=False), own)

        def upload(start_s: float, draft: Draft, bits_per_s: int) -> float:
            assert not (bits_per_s and math.isfinite(scene.link_bits_per_s))
            return start_s + draft_bits(draft) / (bits_per_s or scene.link_bits_per_s)

        return VirtualDevice(write, upload, kind.draft_s_per_token, kind.round_trip_s)

    class Watch:
        def passed(self, start_s: float, seconds: float, num_rows: int) -> None:
            pass

        def told(self, told: Told) -> None:
            log.down[told.device].append(Seen(told.at_s, told.verdict))
            session = cell.seats[told.device].session
            if told.verdict.finish and session is not None:
                log.texts[told.device].append(session.committed)

    cell = VirtualCell(target, scene.limits, [device(i, k) for i, k in enumerate(KINDS)], Watch())
    spy(cell, log)
    cell.run(SECONDS)
    return log


def spy(cell: VirtualCell, log: Log) -> None:
    take = cell.core.draft

    def draft(link, message):  # type: ignore[no-untyped-def]
        log.up[link].append(Seen(cell.events.now, message))
        return take(link, message)

    cell.core.draft = draft  # type: ignore[method-assign]


# --- the network --------------------------------------------------------------------------------


class Wire:
    """One way of a link: drafts take their time to send, every frame takes its time to arrive."""

    def __init__(self, delay_s: float, bits_per_s: float, arrived: Callable[[bytes], None]) -> None:
        self._delay_s = delay_s
        self._bits_per_s = bits_per_s
        self._arrived = arrived
        self._free_at = 0.0

    async def send(self, data: bytes) -> None:
        loop = asyncio.get_running_loop()
        if math.isfinite(self._bits_per_s) and isinstance(
            frame := frames.decode_from_device(data), Draft
        ):
            begins = max(self._free_at, loop.time())
            self._free_at = begins + draft_bits(frame) / self._bits_per_s
            await asyncio.sleep(self._free_at - loop.time())
        self.post(data)

    def post(self, data: bytes) -> None:
        asyncio.get_running_loop().call_later(self._delay_s, self._arrived, data)


class End:
    """A device's end of a link: a Transport."""

    def __init__(self, up: Wire) -> None:
        self.arrived: asyncio.Queue[bytes] = asyncio.Queue()
        self._up = up

    async def send(self, data: bytes) -> None:
        await self._up.send(data)

    async def receive(self) -> bytes:
        return await self.arrived.get()

    async def close(self) -> None:
        pass


class ServerEnd(MemoryServerTransport):
    """The other end."""

    def __init__(self, down: Wire) -> None:
        super().__init__()
        self._down = down

    def write(self, data: bytes) -> None:
        self._down.post(data)


class VirtualEngine:
    """The same engine behind the network server: its steps take virtual time."""

    ready = True

    def __init__(self) -> None:
        self._engine = engine()
        self.info = self._engine.info

    async def step(self, batch: Batch) -> StepResult:
        result = self._engine.step(batch)
        await asyncio.sleep(result.forward_s)
        return result

    async def tokenize(self, text: str, *, parse_special: bool) -> TokenIds:
        return self._engine.tokenize(text, parse_special)

    async def close(self) -> None: ...


async def write_for_ever(server: EdgeServer, scene: Scene, index: int, log: Log) -> None:
    kind, now = KINDS[index], asyncio.get_running_loop().time

    def seen_up(data: bytes) -> None:
        frame = frames.decode_from_device(data)
        if isinstance(frame, Draft):
            log.up[index].append(Seen(now(), frame))
        assert far.receiver is not None
        far.receiver(data)

    def seen_down(data: bytes) -> None:
        frame = frames.decode_from_server(data)
        if isinstance(frame, Verdict):
            log.down[index].append(Seen(now(), frame))
        near.arrived.put_nowait(data)

    near = End(Wire(kind.round_trip_s / 2, scene.link_bits_per_s, seen_up))
    far = ServerEnd(Wire(kind.round_trip_s / 2, math.inf, seen_down))
    serving = asyncio.create_task(server.serve(far))
    try:
        own = drafter(kind)
        name = own.name if own else "none"
        link = await DeviceLink.greet(near, name, server.core.info.fingerprint)
        device = Device(Line(link), own, draft_s_per_token=kind.draft_s_per_token, clock=now)
        for number in range(1000):
            async with device.write(request(kind, number)) as writing:
                async for _ in writing:
                    pass
                log.texts[index].append(writing.session.committed)
    finally:
        serving.cancel()


def networked(scene: Scene) -> Log:
    log = Log()

    async def main() -> None:
        clock = asyncio.get_running_loop().time
        server = EdgeServer(VirtualEngine(), scene.limits, clock)
        tasks = [asyncio.create_task(server.run())]
        tasks += [
            asyncio.create_task(write_for_ever(server, scene, index, log))
            for index in range(len(KINDS))
        ]
        done, _ = await asyncio.wait(tasks, timeout=SECONDS, return_when=asyncio.FIRST_EXCEPTION)
        for task in tasks:
            task.cancel()
        assert not done, [task.exception() for task in done]
        await asyncio.gather(*tasks, return_exceptions=True)

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(main())
    return log


# --- the same -----------------------------------------------------------------------------------

CONTROLS = {
    "without a policy": (ControlSettings(), 12_000.0),
    "heterogeneous": (ControlSettings("heterogeneous", uplink_bits_per_s=40_000.0), math.inf),
    "heterogeneous, ample": (ControlSettings("heterogeneous"), math.inf),
    "fixed": (ControlSettings("fixed", uplink_bits_per_s=60_000.0), math.inf),
}


@pytest.mark.parametrize("mode", get_args(Mode))
@pytest.mark.parametrize("control", CONTROLS)
def test_both_shells_take_the_same_decisions_at_the_same_times(mode: Mode, control: str) -> None:
    scene = Scene(mode, *CONTROLS[control])
    ours, theirs = simulated(scene), networked(scene)
    for index in range(len(KINDS)):
        for way in ("up", "down"):
            one, other = getattr(ours, way)[index], getattr(theirs, way)[index]
            for number, (a, b) in enumerate(zip(one, other, strict=False)):
                assert a.frame == b.frame, (KINDS[index], way, number, a, b)
                assert a.at_s == pytest.approx(b.at_s, abs=1e-6), (KINDS[index], way, number)
            # The clocks differ in the last digits: one frame may arrive at the very end.
            assert abs(len(one) - len(other)) <= 1
        texts = list(zip(ours.texts[index], theirs.texts[index], strict=False))
        assert texts and all(one == other for one, other in texts)
    verdicts = [seen.frame for downs in ours.down for seen in downs]
    assert len(verdicts) > 150
    assert sum(v.num_accepted for v in verdicts if isinstance(v, Verdict)) > 50
