"""Rounds, stop-and-wait and the sliding window over the round trip.

Rounds are the paper's: planned for a cell that is known, simulated on it. The other two are the
running server's own code on a virtual clock: it starts knowing nothing, measures while the devices
write, plans, grants, and leaves every device 0.97 of server-only generation; its figures leave out
the time in which it learns. Beside them stands what ``control`` plans for the same cell.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from multispin.control import Problem, solve_stop_and_wait, solve_window
from multispin.sim.reproduce.paper import PAIRS, Draw, Pair, Setting, draw_all, stated
from multispin.sim.reproduce.result import Claim, Figure, Panel, Reproduction
from multispin.sim.reproduce.sweep import (
    Points,
    Rule,
    Tell,
    averaged,
    by_policy,
    planned,
    simulated,
)
from multispin.sim.shell import simulate_core
from multispin.sim.trace import Trace
from multispin.types import Mode
from multispin.wire.payload import payload

ROUNDS, STOP_AND_WAIT, WINDOW = "rounds", "stop-and-wait", "window"
ALONE = "server-only"
NUM_DEVICES = 8
MILLISECONDS = (0.0, 50.0, 100.0, 200.0, 400.0)  # of round trip
NUM_ROUNDS = 200  # simulated of each draw
NUM_PASSES = 180  # of the running server
LEARNING = 1 / 3  # of the time
ID_BITS = payload("coupled", 248_320)


def window(draws: int, seed: int, tell: Tell) -> Reproduction:
    panels = []
    for pair in PAIRS:
        tell(pair.title)
        panels.append(_panel(pair, draw_all(pair, draws, seed)))
    parameters = {
        **stated(_setting(PAIRS[0], 0.0)),
        "payload": f"{ID_BITS.bits_per_token} bit a token, {ID_BITS.bits_per_draft} a draft",
        "simulated": f"{NUM_ROUNDS} rounds; {NUM_PASSES} passes of the running server, of which "
        f"the first third of the time is left out",
    }
    claims = tuple(claim for panel in panels for claim in _claims(panel))
    figure = Figure("round-trip", tuple(panels))
    return Reproduction("window", seed, draws, parameters, (figure,), claims)


def _setting(pair: Pair, round_trip_ms: float) -> Setting:
    return Setting(
        pair, num_devices=NUM_DEVICES, round_trip_s=round_trip_ms / 1e3, **ID_BITS._asdict()
    )


def _panel(pair: Pair, draws: Sequence[Draw]) -> Panel:
    points: Points = [(ms, _setting(pair, ms)) for ms in MILLISECONDS]
    rules: dict[str, Rule] = {
        WINDOW: _plan_window,
        STOP_AND_WAIT: lambda problem: solve_stop_and_wait(problem).goodput_tokens_per_s,
        ROUNDS: by_policy("heterogeneous"),
        ALONE: by_policy("server-only"),
    }
    curves = [
        *planned(points, draws, rules),
        *averaged("simulated", points, draws, [WINDOW, STOP_AND_WAIT], _run_server),
        *simulated(points, draws, {ROUNDS: "heterogeneous"}, NUM_ROUNDS),
    ]
    return Panel(pair.title, "round trip, ms", tuple(curves))


def _plan_window(problem: Problem) -> float:
    positions = np.arange(1, problem.max_draft_length + 1)
    survival = problem.acceptance[:, None] ** positions
    round_trip_s = np.full(problem.num_devices, problem.round_trip_s)
    return solve_window(problem, survival, round_trip_s).goodput_tokens_per_s


def _run_server(setting: Setting, draw: Draw) -> list[float]:
    modes: tuple[Mode, ...] = ("window", "stop-and-wait")
    cell = setting.cell(draw)
    return [
        _settled(simulate_core(cell, mode, "heterogeneous", NUM_PASSES, draw.seed))
        for mode in modes
    ]


def _settled(trace: Trace) -> float:
    """Goodput once the server has learnt."""
    begin_s = LEARNING * trace.simulated_s
    tokens = trace.num_committed[trace.at_s > begin_s].sum()
    return float(tokens / (trace.simulated_s - begin_s))


def _claims(panel: Panel) -> list[Claim]:
    rounds, waits, ahead = (
        panel.curve(label, "simulated") for label in (ROUNDS, STOP_AND_WAIT, WINDOW)
    )
    return [
        Claim(
            f"{panel.title}: over rounds at {ms:g} ms",
            f"window {ahead.gain(rounds, ms)}, stop-and-wait {waits.gain(rounds, ms)}",
        )
        for ms in MILLISECONDS
    ]
