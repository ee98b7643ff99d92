"""Cells on a virtual clock whose devices write with n-gram models, for ever."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from multispin.core.batch import BatchLimits
from multispin.core.controller import ControlSettings
from multispin.core.cost import CostEngine, Costs
from multispin.core.drafter import Drafter
from multispin.core.engine import Engine
from multispin.core.limits import ServerLimits
from multispin.sim.events import Stopwatch
from multispin.sim.seat import Text, Told, VirtualDevice
from multispin.sim.virtual_cell import VirtualCell
from multispin.types import Mode
from multispin.wire import frames
from multispin.wire.frames import TRANSPORT_BITS, Draft
from tests.core.harness import new_engine, request


@dataclass
class Hardware:
    """A device and its link, as they truly are."""

    drafter: Drafter | None
    draft_s_per_token: float = 0.0
    draft_length: int = 32  # what it asks for
    round_trip_s: float = 0.01
    uplink_bits_per_s: float = 1e9  # of its own radio, whatever it is granted
    spectral_efficiency: float = 1.0
    cell: str = ""

    def upload(self, start_s: float, draft: Draft, bits_per_s: int) -> float:
        bits = 8 * len(frames.encode(draft)) + TRANSPORT_BITS
        return start_s + bits / min(bits_per_s or 1e12, self.uplink_bits_per_s)


class Cell(VirtualCell):
    """Counts committed tokens and keeps the grants."""

    def __init__(
        self,
        hardware: list[Hardware],
        costs: Costs,
        *,
        mode: Mode = "rounds",
        control: ControlSettings | None = None,
        engine: Engine | None = None,
        prompts: Sequence[str] = ("The phone drafts and the server ",),
        temperature: float = 0.8,
        max_tokens: int = 1500,
    ) -> None:
        self.committed = [0] * len(hardware)
        self.grants: list[list[int]] = [[] for _ in hardware]
        self._model = engine or new_engine(len(hardware), 2048)
        self._prompts = prompts
        self._temperature = temperature
        self._max_tokens = max_tokens
        self._num_texts = 0
        limits = ServerLimits(
            batch=BatchLimits(max_rows=33 * len(hardware), mode=mode),
            control=control or ControlSettings(),
        )
        watch = Stopwatch()
        engine_with_costs = CostEngine(self._model, costs, "ngram", clock=watch, sleep=watch.sleep)
        super().__init__(engine_with_costs, limits, [self._device(each) for each in hardware], self)

    def goodput(self, seconds: float) -> float:
        """Let virtual time pass; committed tokens per second of it."""
        before = sum(self.committed)
        self.run(self.events.now + seconds)
        return (sum(self.committed) - before) / seconds

    def passed(self, start_s: float, seconds: float, num_rows: int) -> None:
        pass

    def told(self, told: Told) -> None:
        self.committed[told.device] += told.verdict.num_committed
        self.grants[told.device].append(told.verdict.draft_length)

    def _device(self, hardware: Hardware) -> VirtualDevice:
        return VirtualDevice(
            write=partial(self._write, hardware),
            upload=hardware.upload,
            draft_s_per_token=hardware.draft_s_per_token,
            round_trip_s=hardware.round_trip_s,
            spectral_efficiency=hardware.spectral_efficiency,
            cell=hardware.cell,
        )

    def _write(self, hardware: Hardware, number: int) -> Text:
        if hardware.drafter:
            hardware.drafter.free(0)
        seed, self._num_texts = self._num_texts, self._num_texts + 1
        prompt = self._prompts[seed % len(self._prompts)]
        message = request(
            number,
            prompt,
            rule="coupled" if self._temperature else "greedy",
            temperature=self._temperature,
            max_tokens=self._max_tokens,
            draft_length=hardware.draft_length if hardware.drafter else 0,
            seed=seed,
        )
        ids = self._model.tokenize(prompt, parse_special=False)
        return Text(message, ids, hardware.drafter)
