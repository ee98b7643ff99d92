"""One cell: what `multispin.control` solves, and what the simulator needs beside it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from multispin.cell.sections import AcceptanceModel, Csi, CurveSection
from multispin.control.problem import Problem
from multispin.radio.fading import Radio
from multispin.radio.link import LinkBudget
from multispin.radio.units import db_to_linear

Floats = npt.NDArray[np.float64]
Lengths = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Energy:
    """Power in watts of K devices [K] while they draft, transmit or wait, and of the server."""

    draft_w: Floats
    transmit_w: Floats
    idle_w: Floats
    server_busy_w: float
    server_idle_w: float


@dataclass(frozen=True, eq=False)
class Cell:
    """A named cell: ``names[k]`` belongs to device k of everything else.

    The uplink of ``problem`` has the ergodic rates of ``radio`` at an equal share of the band.
    ``csi`` says what a plan is made for: these, or the gains of the blocks at hand.
    """

    names: tuple[str, ...]
    problem: Problem
    radio: Radio
    link: LinkBudget
    acceptance_models: tuple[AcceptanceModel, ...]
    energy: Energy
    answer_tokens: Lengths  # [K] tokens of an answer, after which a new prompt comes
    csi: Csi
    curve: CurveSection | None = None  # measured passes, which the running server's modes take

    def drawn(self, rng: np.random.Generator) -> Cell:
        """The same with line of sight and shadowing drawn where the file leaves them to chance."""
        if not self.link.is_random:
            return self
        power = db_to_linear(self.link.drawn_db(rng))
        radio = replace(self.radio, power_to_noise_hz=power)
        uplink = radio.mean_uplink(self.problem.bandwidth_hz)
        return replace(self, radio=radio, problem=replace(self.problem, uplink=uplink))
