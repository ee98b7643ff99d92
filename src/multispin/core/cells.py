"""The radio cells of a server: each has its own uplink, devices and plan.

A cell is there as long as it has links; the unnamed one always is. Of the server's time, passes are
everybody's and planning takes one cell's turn after the other. The budget of a cell is what was
said last, for ever, or else what the server was started with.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Hashable, Mapping

import numpy as np

from multispin.control.estimate import DeviceEstimate, VerificationFit
from multispin.control.problem import Floats
from multispin.core.controller import Controller, ControlSettings, Grant, SessionKey
from multispin.core.planning import CellView, Others
from multispin.core.server_time import ServerTime
from multispin.errors import BadInput, PeerError
from multispin.types import Mode
from multispin.wire.payload import Payload
from multispin.wire.replica import CellLoad

MAX_CELLS = 64
MAX_NAME = 64  # characters of a cell's
MAX_BUDGETS = 4096  # that are remembered, of cells without devices, too
RETRY_S = 10.0


class Cells:
    """A Controller for each cell, behind the calls of one."""

    def __init__(
        self,
        settings: ControlSettings,
        payload: Payload,
        max_draft_length: int,
        clock: Callable[[], float],
        mode: Mode,
    ) -> None:
        self.budgets: dict[str, float] = {}  # that were said, the oldest first
        self._settings = settings
        self._payload = payload
        self._max_draft_length = max_draft_length
        self._clock = clock
        self._mode = mode
        self._server = ServerTime(clock)
        self._cells = {"": self._new("")}
        self._links: dict[Hashable, Controller] = {}
        self._sessions: dict[SessionKey, Controller] = {}
        self._planner: Controller | None = None  # whose plan is in the making

    def _new(self, name: str) -> Controller:
        cell = Controller(
            self._settings,
            self._payload,
            self._max_draft_length,
            self._clock,
            self._mode,
            self._server,
            functools.partial(self._others, name),
            name,
        )
        if (budget := self.budgets.get(name)) is not None:
            cell.set_budget(budget)
        return cell

    def _others(self, name: str) -> Others:
        """What cells of other names are to the one of this."""
        rest = [cell.beside_others for cell in self._cells.values() if cell.name != name]
        gains = np.concatenate([np.zeros(0), *(each.gains for each in rest)])
        return Others(gains, sum(each.num_drafting for each in rest))

    # --- observe -------------------------------------------------------------------------------

    def connect(
        self,
        link: Hashable,
        spectral_efficiency: float,
        payload: Payload | None = None,
        cell: str = "",
    ) -> None:
        """A device of the cell; see Controller. Raise BadInput or PeerError for one cell too many.

        Devices name their cells, and may name any: those that have a budget are never too many.
        """
        if len(cell) > MAX_NAME:
            raise BadInput("cell", f"{cell[:MAX_NAME]}…", f"at most {MAX_NAME} characters")
        if cell not in self._cells:
            if len(self._cells) >= MAX_CELLS and cell not in self.budgets:
                text = f"cell = {cell}: this server has devices of {MAX_CELLS} cells already"
                raise PeerError(text, code="overloaded", retry_after_s=RETRY_S)
            self._cells[cell] = self._new(cell)
        self._links[link] = self._cells[cell]
        self._cells[cell].connect(link, spectral_efficiency, payload)

    def join(self, key: SessionKey, max_length: int) -> None:
        cell = self._sessions[key] = self._of(key.link)
        cell.join(key, max_length)

    def leave(self, key: SessionKey) -> None:
        """The link may be gone already: its last pass had to end."""
        cell = self._sessions.pop(key)
        cell.leave(key)
        self._forget(cell)

    def drop(self, link: Hashable) -> None:
        cell = self._of(link)
        self._links.pop(link, None)
        cell.drop(link)
        self._forget(cell)

    def _of(self, link: Hashable) -> Controller:
        return self._links.get(link) or self._cells[""]

    def _forget(self, cell: Controller) -> None:
        if cell.name and cell.is_empty:
            del self._cells[cell.name]
            if self._planner is cell:
                self._planner = None

    def drafted(
        self, key: SessionKey, num_tokens: int, drafting_s: float, turnaround_s: float | None
    ) -> None:
        self._sessions[key].drafted(key, num_tokens, drafting_s, turnaround_s)

    def answered(self, key: SessionKey) -> None:
        self._sessions[key].answered(key)

    def compared(self, key: SessionKey, num_tokens: int, num_same: int) -> None:
        self._sessions[key].compared(key, num_tokens, num_same)

    def passed(self, num_rows: int, num_sequences: int, seconds: float) -> None:
        self._server.passed(num_rows, num_sequences, seconds)

    # --- tell ----------------------------------------------------------------------------------

    def pass_seconds(self, max_rows: int) -> Floats:
        """Expected time of a pass with 1, 2, … ``max_rows`` rows [max_rows]."""
        return self._server.pass_seconds(max_rows)

    @property
    def fit(self) -> VerificationFit:
        """Of the time of a pass."""
        return self._server.fit

    @property
    def failure(self) -> str | None:
        """Why there was no new plan when one was due."""
        return next((cell.failure for cell in self._cells.values() if cell.failure), None)

    def estimate(self, link: Hashable) -> DeviceEstimate | None:
        """Of a device that is connected."""
        return self._of(link).estimate(link)

    def beliefs(self) -> tuple[list[SessionKey], CellView]:
        """Of the cell with the most devices: its sessions, and what a plan would be made of."""
        return max(self._cells.values(), key=lambda cell: cell.num_devices).beliefs()

    def loads(self) -> list[CellLoad]:
        """Of every cell that has links."""
        is_shared = self._settings.policy is not None
        return [
            CellLoad(
                cell.name,
                cell.num_devices,
                (cell.budget or 0.0) if is_shared else 0.0,
                cell.price,
            )
            for cell in self._cells.values()
            if not cell.is_empty
        ]

    # --- grant ---------------------------------------------------------------------------------

    def grant(self, key: SessionKey) -> Grant:
        return self._sessions[key].grant(key)

    def plan(self) -> None:
        """Go on planning, for a slice of time, for the cell whose turn it is."""
        if self._settings.policy is None:
            return
        cells = [self._planner] if self._planner else list(self._cells.values())
        self._planner = next((cell for cell in cells if cell.plan()), None)
        if self._planner is not None and not self._planner.is_planning:
            self._cells[self._planner.name] = self._cells.pop(self._planner.name)
            self._planner = None

    def set_budgets(self, budgets: Mapping[str, float]) -> None:
        """Of the cells that are named; the others' stay. Raise BadInput for what none can be."""
        self.budgets = with_budgets(self.budgets, budgets)
        for name, budget in budgets.items():
            if name in self._cells:
                self._cells[name].set_budget(budget)


def with_budgets(known: Mapping[str, float], said: Mapping[str, float]) -> dict[str, float]:
    """What is said now, behind what was; the oldest are forgotten where there are too many. Raise
    BadInput for what no uplink can carry."""
    for name, budget in said.items():
        if len(name) > MAX_NAME:
            raise BadInput("budgets", f"{name[:MAX_NAME]}…", f"at most {MAX_NAME} characters")
        if not (math.isfinite(budget) and budget >= 0):
            raise BadInput(f"budgets: {name}", budget, "must be a finite number, 0 or more")
    budgets = {name: budget for name, budget in known.items() if name not in said} | dict(said)
    return dict(list(budgets.items())[-MAX_BUDGETS:])
