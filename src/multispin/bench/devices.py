"""Replayed devices: real sessions over real sockets, at the speeds of the devices that they stand
for. All of them live in one process, so that hundreds cost the server's machine little."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence

import msgspec

from multispin.bench.link import ShapedSocket
from multispin.bench.measures import Measured, Spent, TextLog, measure
from multispin.core.mixed import MixedDrafter
from multispin.core.prompt import prompt_text
from multispin.core.replay import ReplayDrafter
from multispin.core.speculation import SpeculationStats
from multispin.errors import BadInput
from multispin.lm.base import Vocabulary
from multispin.lm.record import Record, RecordedText, read_record
from multispin.net.device import Device, Request
from multispin.net.line import Line
from multispin.net.link import DeviceLink
from multispin.net.writing import Writing
from multispin.types import SamplingParams
from multispin.wire.frames import ChatMessage

TELL_S = 0.25


class DeviceSpeed(msgspec.Struct, frozen=True):
    """What a replayed device stands for. An uplink of 0 bit/s is not limited."""

    draft_s_per_token: float
    round_trip_s: float
    uplink_bits_per_s: float


class Wrote(msgspec.Struct, frozen=True, tag=True):
    """Progress: tokens since measuring began, and how much of the measuring time is over."""

    num_tokens: int
    share: float  # 0 when measuring begins, 1 when it ends


Tell = Callable[[Wrote], None]


class Play(msgspec.Struct, frozen=True, tag=True):
    """Let these devices write the texts of a record with the server for so many seconds.

    With ``warm`` the server has read every prompt before, and has room to keep them all.
    """

    server: str
    record: str
    devices: list[DeviceSpeed]
    draft_length: int
    seconds: float
    warm: bool = False


class ReplayedDevice:
    """Writes one text after the other, for ever."""

    def __init__(self, device: Device, requests: Iterator[Request]) -> None:
        self.logs: list[TextLog] = []
        self.has_written = asyncio.Event()
        self._device = device
        self._requests = requests
        self._finished = SpeculationStats()
        self._writing: Writing | None = None

    async def run(self) -> None:
        for request in self._requests:
            log = TextLog(self._device.clock())
            self.logs.append(log)
            async with self._device.write(request) as writing:
                self._writing = writing
                async for committed in writing:
                    log.arrivals.append((self._device.clock(), len(committed.ids)))
                    self.has_written.set()
                self._finished.add(writing.stats)
                self._writing = None

    @property
    def all_stats(self) -> list[SpeculationStats]:
        return [self._finished] + ([self._writing.stats] if self._writing else [])

    async def close(self) -> None:
        await self._device.close()


async def play(job: Play, tell: Tell, *, clock: Callable[[], float] = time.monotonic) -> Measured:
    """Measuring begins when every device has its first token."""
    record = read_record(job.record, "--record")
    drafter = ReplayDrafter(record)
    requests = requests_of(record, job.draft_length)
    links = await asyncio.gather(*(_connect(job.server, drafter, s) for s in job.devices))
    devices = [
        ReplayedDevice(link, _every(requests, number, len(links)))
        for number, link in enumerate(links)
    ]
    try:
        if job.warm:
            await _read_prompts(links[0], requests)
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(device.run()) for device in devices]
            await asyncio.gather(*(device.has_written.wait() for device in devices))
            begin = clock()
            before = _spent(devices)
            while (now := clock()) < begin + job.seconds:
                num_tokens = _spent(devices).num_tokens - before.num_tokens
                tell(Wrote(num_tokens, (now - begin) / job.seconds))
                await asyncio.sleep(min(TELL_S, begin + job.seconds - now))
            spent = Spent(*(b - a for a, b in zip(before, _spent(devices), strict=True)))
            tell(Wrote(spent.num_tokens, 1.0))
            for task in tasks:
                task.cancel()
    finally:
        await asyncio.gather(*(device.close() for device in devices))
    return measure([log for device in devices for log in device.logs], begin, now, spent)


async def _read_prompts(device: Device, requests: Sequence[Request]) -> None:
    for request in requests:
        async with device.write(request._replace(max_tokens=1, draft_length=0)) as writing:
            async for _ in writing:
                pass


def requests_of(record: Record, draft_length: int) -> list[Request]:
    """What asks a server for the recorded texts, each as far as it was recorded."""
    vocabulary = record.vocabulary()
    return [
        Request(
            prompt=_prompt(text, vocabulary),
            params=SamplingParams(),
            rule="greedy",
            seed=0,
            max_tokens=len(text.path) // 4,
            draft_length=draft_length,
            stop=[],
        )
        for text in record.texts
    ]


def _prompt(text: RecordedText, vocabulary: Vocabulary) -> str | list[ChatMessage]:
    """Recorded with --chat, the prompt is the template around a user's words: take these."""
    if vocabulary.chat_template is None:
        return text.prompt
    mark = "\N{SECTION SIGN}"
    before, _, after = prompt_text([ChatMessage("user", mark)], vocabulary)[0].partition(mark)
    is_chat = text.prompt.startswith(before) and text.prompt.endswith(after)
    if not is_chat or before == after == "":
        return text.prompt
    words = text.prompt[len(before) : len(text.prompt) - len(after)]
    if prompt_text([ChatMessage("user", words)], vocabulary)[0] != text.prompt:
        raise BadInput("--record", text.prompt[:40], "no chat message gives this prompt again")
    return [ChatMessage("user", words)]


def _every(requests: Sequence[Request], number: int, num_devices: int) -> Iterator[Request]:
    """A device's texts: the devices deal them out, and then go through them again."""
    while True:
        yield requests[number % len(requests)]
        number += num_devices


async def _connect(server: str, drafter: ReplayDrafter, speed: DeviceSpeed) -> Device:
    socket = await ShapedSocket.connect(server, speed.round_trip_s, speed.uplink_bits_per_s)
    fingerprint = drafter.vocabulary.fingerprint if drafter.vocabulary else None
    link = await DeviceLink.greet(socket, drafter.name, fingerprint)
    return Device(Line(link), MixedDrafter(drafter), draft_s_per_token=speed.draft_s_per_token)


def _spent(devices: Sequence[ReplayedDevice]) -> Spent:
    return Spent.of(stats for device in devices for stats in device.all_stats)
